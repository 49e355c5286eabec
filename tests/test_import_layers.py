"""A file imports only from lower-numbered rooms or its own room, without cycles; optional packages come lazily."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "emmi_jax"
ROOMS = {
    "lazy": 0,
    "tokens": 0,
    "config": 0,
    "points": 0,
    "deploy": 0,
    "ops": 1,
    "files": 1,
    "layers": 2,
    "meshes": 2,
    "models": 3,
    "data": 3,
    "convert": 4,
    "plots": 4,
    "inference": 5,
    "design": 6,
    "runs": 6,
    "training": 7,
    "jobs": 8,
    "cli": 9,
    "": 10,
}
"""Number of each file or folder of the package; the package's own `__init__` comes last."""

LAZY = {"torch", "pyvista", "matplotlib", "optax", "orbax", "tensorstore", "rich", "typer", "scipy"}


def module_name(path: Path, package: Path) -> str:
    """Dotted name of a file below the package, that of a folder for its `__init__`."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, package: Path, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, in functions and for type checking too."""
    folder = path.relative_to(package.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == package.name:
                name = target.removeprefix(package.name).removeprefix(".")
                # What is no module is a name in one.
                yield name if name in modules else name.rpartition(".")[0]


def violations(package: Path) -> list[str]:
    """Imports that break the rule, and cycles, in words."""
    paths = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    graph = {name: set(imported_modules(path, package, set(paths))) - {name} for name, path in paths.items()}
    found = []
    for name, targets in graph.items():
        room = name.split(".")[0]
        if room not in ROOMS:
            found.append(f"{name} is in no room")
            continue
        for target in sorted(targets):
            is_lower = ROOMS.get(target.split(".")[0], 99) < ROOMS[room]
            is_beside = target in paths and paths[target].parent == paths[name].parent and target != ""
            is_own_room = is_beside or target.split(".")[0] == room
            if not is_lower and not is_own_room:
                found.append(f"{name} imports {target or package.name}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"cycle: {' -> '.join(error.args[1])}")
    return found


def test_every_file_imports_from_lower_rooms_or_its_own_only() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"ops/a.py": "from emmi_jax.tokens import X", "tokens.py": ""}, []),
        ({"ops/a.py": "from emmi_jax.ops.b import x", "ops/b.py": ""}, []),
        ({"ops/a.py": "from emmi_jax.layers import b", "layers/b.py": ""}, ["ops.a imports layers.b"]),
        ({"ops/a.py": "def f():\n    import emmi_jax.cli", "cli.py": ""}, ["ops.a imports cli"]),
        ({"data/a.py": "from emmi_jax.plots.b import x", "plots/b.py": ""}, ["data.a imports plots.b"]),
        ({"ops/a.py": "from ..layers import b", "layers/b.py": ""}, ["ops.a imports layers.b"]),
        ({"ops/a.py": "from . import b", "ops/b.py": ""}, []),
        ({"ops/a.py": "from emmi_jax import TokenSpec"}, ["ops.a imports emmi_jax", "cycle"]),
        ({"tokens.py": "from emmi_jax.config import x", "config.py": ""}, []),
        ({"attic.py": ""}, ["attic is in no room"]),
        (
            {"ops/a.py": "from emmi_jax.ops.b import x", "ops/b.py": "def f():\n    from emmi_jax.ops import a"},
            ["cycle"],
        ),
    ],
)
def test_the_rule_is_enforced(files: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    for name, text in {"__init__.py": "import emmi_jax.ops.a", "ops/a.py": "", **files}.items():
        path = tmp_path / "emmi_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [line.partition(":")[0] for line in violations(tmp_path / "emmi_jax")] == expected


def test_importing_the_package_brings_no_optional_one() -> None:
    code = (
        "import sys, json, flax.linen\n"
        "before = set(sys.modules)\n"
        "import emmi_jax\n"
        "[getattr(emmi_jax, name) for name in dir(emmi_jax) if name != 'load_run']\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    brought = json.loads(run.stdout)
    assert "emmi_jax.layers.anchor_attention" in brought
    assert LAZY & {name.split(".")[0] for name in brought} == set()
    assert not any("pallas" in name for name in brought)


def test_benchmarks_import_nothing_from_the_tests() -> None:
    files = sorted((REPOSITORY / "benchmarks").glob("*.py"))
    imported = {name for file in files for node in ast.walk(ast.parse(file.read_text())) for name in _imports(node)}
    assert "emmi_jax" in imported
    assert "tests" not in imported


def _imports(node: ast.AST) -> list[str]:
    """The top-level packages that a statement imports."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return [name.partition(".")[0] for name in names]
