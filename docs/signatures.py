"""Signatures of classes whose fields are their arguments: named tuples and linen modules."""

from __future__ import annotations

from typing import Any

import griffe

BASES = ("NamedTuple", "Module")


class FieldSignatures(griffe.Extension):
    """Gives such classes the constructor that they have when they run."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Adds the constructors of a package, once all of its classes are known."""
        modules = [pkg]
        while modules:
            module = modules.pop()
            modules += [member for member in module.modules.values() if not member.is_alias]
            for cls in module.classes.values():
                if not cls.is_alias:
                    add_constructor(cls)


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
