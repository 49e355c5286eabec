"""What the reference shows that is not written in the source as it expects it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import griffe

REFERENCE = (Path(__file__).parent / "api").glob("*.md")
ENTRIES = [entry for page in REFERENCE for entry in re.findall(r"^::: (.*)", page.read_text(), re.MULTILINE)]
# Classes by their names, functions by their paths: `mean` may be a word.
LINKS = {entry: entry for entry in ENTRIES} | {
    name: entry for entry in ENTRIES if (name := entry.rpartition(".")[2])[0].isupper()
}
NAME = re.compile(r"(?<!`)`([\w.]+)`(?!`)")
BASES = ("NamedTuple", "Module")


class Signatures(griffe.Extension):
    """Shows examples as code, names as links, and constructors of classes whose fields are their arguments."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Shows the default of a setting, not all that is declared of it."""
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "setting":
            default = attr.value.arguments[0]
            made = re.sub(r"^lambda: ", "", str(default))
            made += "()" * bool(re.fullmatch(r"dict|[A-Z][a-z]\w+", made))
            attr.value = None if made == "dataclasses.MISSING" else made

    def on_class_instance(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Lists the settings of a configuration as its docstring does at run time."""
        if cls.docstring is not None and cls.module.path.startswith("emmi_jax.config."):
            cls.docstring.value = inspect.getdoc(getattr(importlib.import_module(cls.module.path), cls.name)) or ""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Names the section of examples as the parser does, and links what has an entry of its own."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = NAME.sub(link, text)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Adds the constructors of a package, once all of its classes are known."""
        modules = [pkg]
        while modules:
            module = modules.pop()
            modules += [member for member in module.modules.values() if not member.is_alias]
            for cls in module.classes.values():
                if not cls.is_alias:
                    add_constructor(cls)


def link(match: re.Match[str]) -> str:
    """Returns a name, as a link if it has an entry."""
    return f"[{match[0]}][{LINKS[match[1]]}]" if match[1] in LINKS else match[0]


def add_constructor(cls: griffe.Class) -> None:
    """Adds the constructor of one class, if its fields make one."""
    family = [cls, *cls.mro()]
    if not any(str(base).rpartition(".")[2] in BASES for ancestor in family for base in ancestor.bases):
        return
    fields = {
        field.name: field
        for ancestor in reversed(family)
        for field in ancestor.attributes.values()
        if {"instance-attribute", "property"} & field.labels == {"instance-attribute"} and field.annotation is not None
    }
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [
        griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value)
        for field in fields.values()
    ]
    parameters.insert(0, griffe.Parameter("self", kind=kind))
    cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
