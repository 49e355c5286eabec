"""Small OpenFOAM cases: a box of cells around one that is missing, the body, with fields that are known everywhere."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

CELLS = (4, 3, 3)
HOLE = (1, 1, 1)
HOLES = {HOLE}
SPACING = np.array([0.5, 0.4, 0.3])
KINDS = {"inlet": "patch", "outlet": "patch", "ground": "wall", "sides": "patch", "body": "wall"}
DIMENSIONS = {
    "p": "[0 2 -2 0 0 0 0]",
    "U": "[0 1 -1 0 0 0 0]",
    "wallShearStress": "[0 2 -2 0 0 0 0]",
    "k": "[0 2 -2 0 0 0 0]",
}
_SIDES = {  # corners of the face towards each neighbour, turning counter-clockwise seen from outside
    (-1, 0, 0): ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    (1, 0, 0): ((1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)),
    (0, -1, 0): ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    (0, 1, 0): ((0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 1, 0)),
    (0, 0, -1): ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
    (0, 0, 1): ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)),
}
FIELDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "p": lambda x: x[:, 0] - 2 * x[:, 2],
    "U": lambda x: np.stack([1 + x[:, 1], x[:, 2], -x[:, 0]], axis=1),
    "wallShearStress": lambda x: np.stack([x[:, 0], x[:, 1], 0 * x[:, 2]], axis=1) - 1,
}


def all_cells() -> list[tuple[int, int, int]]:
    return [tuple(map(int, c)) for c in np.ndindex(*CELLS) if c not in HOLES]


def cell_centres(cells: Sequence[tuple[int, int, int]] | None = None) -> np.ndarray:
    return (np.array(cells or all_cells()) + 0.5) * SPACING


def body_centres() -> np.ndarray:
    return (np.array(HOLE) + 0.5 + 0.5 * np.array(list(_SIDES))) * SPACING


def write_foam_case(
    path: Path,
    *,
    binary: bool = False,
    compress: bool = False,
    processors: int = 0,
    times: Sequence[str] = ("0", "100"),
    fields: Sequence[str] = ("p", "U", "wallShearStress"),
    mesh_at: str = "constant",
    origin: Sequence[float] = (0.0, 0.0, 0.0),
) -> Path:
    """Writes a case; the fields of time t are those of `FIELDS` at positions without the origin, times 1 + t / 1000."""
    write_head(path / "system/controlDict", "dictionary", "application simpleFoam; deltaT 1; endTime 10;\n", False)
    parts = [all_cells()]
    if processors:
        number = [cell[0] * processors // CELLS[0] for cell in all_cells()]
        parts = [[c for c, n in zip(all_cells(), number, strict=True) if n == p] for p in range(processors)]
    for part, cells in enumerate(parts):
        root = path / f"processor{part}" if processors else path
        centres = _write_mesh(root / mesh_at / "polyMesh", cells, part, binary, compress, origin)
        for time in times:
            for name in fields:
                _write_field(root / time / name, cells, centres, 1 + float(time) / 1000, binary, compress)
    return path


def write_head(path: Path, kind: str, body: str | bytes, binary: bool, compress: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    how = 'format binary; arch "LSB;label=32;scalar=64"' if binary else "format ascii"
    head = f"/* a comment {{ }} */\nFoamFile\n{{ version 2.0; {how}; class {kind}; object {path.name}; }}\n\n"
    content = head.encode() + (body.encode() if isinstance(body, str) else body)
    if compress:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def values_text(values: np.ndarray, binary: bool) -> bytes:
    """A list of numbers or vectors as OpenFOAM writes it."""
    if binary:
        return f"{len(values)}\n(".encode() + np.ascontiguousarray(values).tobytes() + b")"
    rows = [f"({' '.join(map(repr, map(float, v)))})" if values.ndim > 1 else repr(v.item()) for v in values]
    return f"{len(values)}\n(\n{chr(10).join(rows)}\n)\n".encode()


def _write_mesh(
    folder: Path,
    cells: list[tuple[int, int, int]],
    part: int,
    binary: bool,
    compress: bool,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
) -> dict[str, np.ndarray]:
    """Writes the mesh and returns the centres of the faces of each patch."""
    number = {cell: i for i, cell in enumerate(cells)}
    corners = sorted({tuple(np.add(cell, c)) for cell in cells for side in _SIDES.values() for c in side})
    index = {corner: i for i, corner in enumerate(corners)}
    inner: list[tuple[int, int, list[int]]] = []
    outer: dict[str, list[tuple[int, list[int]]]] = {name: [] for name in KINDS}
    for cell, owner in number.items():
        for step, side in _SIDES.items():
            other = tuple(np.add(cell, step))
            face = [index[tuple(np.add(cell, c))] for c in side]
            if other in number:
                inner += [(owner, number[other], face)] if number[other] > owner else []
            elif other in all_cells():
                to = part + step[0]
                outer.setdefault(f"procBoundary{part}to{to}", []).append((owner, face))
            else:
                outer[_patch(step, other)].append((owner, face))
    inner.sort(key=lambda f: f[:2])
    faces = [f[2] for f in inner] + [f[1] for patch in outer.values() for f in patch]
    owners = [f[0] for f in inner] + [f[0] for patch in outer.values() for f in patch]
    points = np.array(corners) * SPACING
    lists = {
        "points": ("vectorField", points + np.array(origin)),
        "owner": ("labelList", np.array(owners, np.int32)),
        "neighbour": ("labelList", np.array([f[1] for f in inner], np.int32)),
    }
    for name, (kind, values) in lists.items():
        write_head(folder / name, kind, values_text(values, binary), binary, compress)
    if binary:
        offsets = values_text(4 * np.arange(len(faces) + 1, dtype=np.int32), True)
        write_head(
            folder / "faces",
            "faceCompactList",
            offsets + b"\n" + values_text(np.ravel(faces).astype(np.int32), True),
            True,
            compress,
        )
    else:
        text = "\n".join(f"4({' '.join(map(str, face))})" for face in faces)
        write_head(folder / "faces", "faceList", f"{len(faces)}\n(\n{text}\n)\n", False, compress)
    start, entries = len(inner), []
    for name, patch in outer.items():
        kind = KINDS.get(name, f"processor; myProcNo {part}; neighbProcNo {name.rpartition('to')[2]}")
        entries.append(f"{name}\n{{ type {kind}; nFaces {len(patch)}; startFace {start}; }}")
        start += len(patch)
    write_head(
        folder / "boundary", "polyBoundaryMesh", f"{len(entries)}\n(\n{chr(10).join(entries)}\n)\n", False, compress
    )
    return {
        name: points[np.array([f[1] for f in patch], int).reshape(-1, 4)].mean(axis=1) for name, patch in outer.items()
    }


def _patch(step: tuple[int, int, int], other: tuple[int, ...]) -> str:
    if other in HOLES:
        return "body"
    return {(-1, 0, 0): "inlet", (1, 0, 0): "outlet", (0, 0, -1): "ground"}.get(step, "sides")


def _write_field(
    path: Path,
    cells: list[tuple[int, int, int]],
    centres: dict[str, np.ndarray],
    scale: float,
    binary: bool,
    compress: bool,
) -> None:
    values = FIELDS.get(path.name, lambda x: 0.1 + 0 * x[:, 0])
    kind = "vector" if values(np.zeros((1, 3))).ndim == 2 else "scalar"

    def listed(position: np.ndarray) -> bytes:
        return f"nonuniform List<{kind}> ".encode() + values_text(scale * values(position), binary) + b";\n"

    text = (
        f"dimensions {DIMENSIONS[path.name]};\ninternalField ".encode()
        + listed(cell_centres(cells))
        + b"boundaryField\n{\n"
    )
    for name, position in centres.items():
        how = "calculated" if name in KINDS else "processor"
        text += f"{name} {{ type {how}; value ".encode() + listed(position) + b"}\n"
    kinds = {"vector": "volVectorField", "scalar": "volScalarField"}
    write_head(path, kinds[kind], text + b"}\n", binary, compress)
