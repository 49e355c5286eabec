"""Public names of a package, imported on first use: each stands once, in the imports under its `TYPE_CHECKING`."""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` for the names that a package imports if `TYPE_CHECKING`."""
    namespace = vars(sys.modules[package])
    blocks = [node for node in ast.parse(namespace["__loader__"].get_source(package)).body if isinstance(node, ast.If)]
    sources = {
        alias.asname or alias.name: node.module or ""
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        source = sources[name]
        try:
            is_module = source == package
            value = importlib.import_module(f"{source}.{name}" if is_module else source)
            namespace[name] = value if is_module else getattr(value, name)
        except ModuleNotFoundError as error:
            advice = f"{package}.{name} needs more packages ({error}): pip install 'emmi-jax[train]'"
            raise ImportError(advice) from error
        return namespace[name]

    return get, lambda: sorted({*namespace, *sources}), sorted(sources)
