"""An exported file gives the numbers of its run, without the package; one that is damaged is refused."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import Geometry, SupernodePoolingConfig, Surrogate, deploy
from emmi_jax.inference.exporting import Program, export_surrogate
from emmi_jax.layers.supernode_pooling import search_neighbors
from emmi_jax.points import PointSet
from tests.deploy_cases import KINDS, surrogate

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
POINTS = {branch: RNG.uniform(-1, 1, (30, 3)) for branch in ("surface", "volume")}
SIZES = {branch: RNG.uniform(0, 1, 30) for branch in POINTS}
QUERIES = RNG.uniform(-1, 1, (11, 3)).astype(np.float32)
FEATURES = {"volume": RNG.normal(size=(30, 3)), "geometry": RNG.normal(size=(30, 2))}
OF_QUERIES = FEATURES["volume"][:11]


@pytest.fixture(scope="module")
def exported_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports each kind of model once."""

    @functools.cache
    def export(kind: str) -> Path:
        path = tmp_path_factory.mktemp("exported") / "model.emmi"
        export_surrogate(surrogate(kind), path, units={"position": "m", "volume/velocity": "m/s"})
        return path

    return export


@pytest.fixture(scope="module")
def file(exported_file: Callable[[str], Path]) -> Path:
    return exported_file("geometry")


@pytest.fixture(scope="module")
def exported(file: Path) -> deploy.ExportedSurrogate:
    return deploy.load(file)


def arguments(kind: str, num_points: int) -> dict[str, Any]:
    run = surrogate(kind)
    points = {
        b: PointSet(
            POINTS[b][:num_points],
            {},
            SIZES[b][:num_points],
            features=FEATURES[b][:num_points] if b in run.features else None,
        )
        for b in run.model.config.branches
    }
    condition = None if run.model.config.condition_dim is None else [0.5, -1.0]
    needs_geometry = run.model.config.has_geometry and run.context is None and "surface" not in points
    geometry: Any = POINTS["surface"] if needs_geometry else None
    if "geometry" in run.features:
        geometry = PointSet(POINTS["surface"], {}, features=FEATURES["geometry"])
    return {"points": points, "geometry": geometry, "condition": condition, "seed": 3}


@pytest.fixture(scope="module", params=[kind for kind in KINDS if "cuDNN" not in kind])
def pair(request: pytest.FixtureRequest, exported_file: Callable[[str], Path]) -> Any:
    """A kind of model, its surrogate, and what came back from the file that it was exported to."""
    return request.param, surrogate(request.param), deploy.load(exported_file(request.param))


def test_the_sizes_of_the_run_give_its_numbers_bit_for_bit(pair: Any) -> None:
    kind, run, exported = pair
    features = {"volume": OF_QUERIES} if run.features else {}
    expected, found = (
        model.encode(**arguments(kind, 30)).predict({"volume": QUERIES}, query_features=features)
        for model in (run, exported)
    )
    assert {name: values.tolist() for name, values in found.items()} == {n: v.tolist() for n, v in expected.items()}


def test_any_sizes_give_the_numbers_of_the_run_to_rounding(pair: Any) -> None:
    kind, run, exported = pair
    # Fewer points than the run draws, and other anchors than those of a context.
    few = arguments(kind, 7) | ({"anchors": {"volume": POINTS["volume"][:5]}} if run.context else {})
    features = {"volume": OF_QUERIES} if run.features else {}
    expected = run.encode(**few).predict({"volume": QUERIES}, query_features=features)
    found = exported.encode(**few).predict({"volume": QUERIES}, query_features=features, chunk_size=4)
    tolerance = 2e-2 if "bfloat16" in kind else 1e-5
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= tolerance * np.abs(values).max(), name


CLOUD, FEW = POINTS["surface"][:20], np.arange(6)
CLOSE = search_neighbors(CLOUD.astype(np.float32), FEW, SupernodePoolingConfig(radius=None, k=3), on_host=True)
WITH_NEIGHBORS = Geometry(CLOUD.astype(np.float32), FEW, CLOSE)
ARGUMENTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "geometry points": ({"geometry": CLOUD}, None),
    "integer geometry points": ({"geometry": (100 * CLOUD).astype(np.int8)}, None),
    "a geometry": ({"geometry": Geometry(CLOUD, FEW)}, None),
    "a geometry of deploy": ({"geometry": deploy.Geometry(CLOUD, FEW, mask=FEW > 2)}, None),
    "small indices": ({"geometry": Geometry(CLOUD, FEW.astype(np.int8))}, None),
    "a mask": ({"geometry": Geometry(CLOUD, FEW, mask=FEW < 4)}, None),
    "a mask in a list, over indices that are none": (
        {"geometry": Geometry(CLOUD, [0, 1, 99], mask=[True, True, False])},
        None,
    ),
    "big-endian anchors": ({"anchors": {"surface": CLOUD.astype(">f4")}}, None),
    "integer anchors": ({"anchors": {"surface": (100 * CLOUD).astype(np.int8)}}, None),
    "a mask of integers": ({"geometry": Geometry(CLOUD, FEW, mask=np.ones(6, int))}, "mask must be bool"),
    "a short mask": ({"geometry": Geometry(CLOUD, FEW, mask=[True])}, "mask must be bool"),
    "features": ({"geometry": Geometry(CLOUD, FEW, features=CLOUD)}, "geometry.features are given"),
    "an index beyond the points": ({"geometry": Geometry(CLOUD, [0, 20])}, r"must lie in \[0, 20\)"),
    "no real supernode": ({"geometry": Geometry(CLOUD, FEW, mask=FEW < 0)}, "the geometry has no supernodes"),
    "no supernode": ({"geometry": Geometry(CLOUD, FEW[:0])}, "the geometry has no supernodes"),
    "no geometry points": ({"geometry": CLOUD[:0]}, "the geometry has no points"),
    "a geometry without points": ({"geometry": Geometry(CLOUD[:0], FEW[:0])}, "the geometry has no points"),
    "no anchors": ({"anchors": {"volume": CLOUD[:0]}}, r"\['volume'\] have no anchors"),
    "no points": ({"points": {**POINTS, "volume": CLOUD[:0]}}, "no anchors for the branch 'volume'"),
    "masked points": ({"points": {**POINTS, "volume": np.ma.masked_less(CLOUD, 0)}}, "masked"),
    "masked anchors": ({"anchors": {"surface": np.ma.masked_less(CLOUD, 0)}}, "masked"),
    "a masked geometry": ({"geometry": np.ma.masked_less(CLOUD, 0)}, "masked"),
    "a list of points": ({"points": {**POINTS, "volume": CLOUD.tolist()}}, "points of 'volume' must be an array"),
    "half precision": ({"anchors": {"surface": CLOUD.astype(np.float16)}}, "float32, float64 or integer"),
    "NaN": ({"anchors": {"surface": CLOUD * np.nan}}, "anchor surface position 0 is not finite"),
    "an unknown branch": ({"anchors": {"wake": CLOUD}}, r"unknown branches \['wake'\]"),
    "a condition": ({"condition": [1.0]}, "condition"),
    "features of anchors": ({"anchor_features": {"volume": np.zeros((4, 2), np.float32)}}, "anchor_features"),
}


BY_NAME = {"distance": FEATURES["volume"][:, 0], "part": FEATURES["volume"][:, 1:]}
WITH_FEATURES = {
    "points": {**POINTS, "volume": PointSet(POINTS["volume"], {}, features=FEATURES["volume"])},
    "geometry": PointSet(POINTS["surface"], {}, features=FEATURES["geometry"]),
    "query_features": {"volume": OF_QUERIES},
}
GIVEN = {"anchors": {"volume": POINTS["volume"]}}
FEATURE_ARGUMENTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "an array": ({}, None),
    "an array for each name": ({"query_features": {"volume": {name: a[:11] for name, a in BY_NAME.items()}}}, None),
    "given anchors": ({**GIVEN, "anchor_features": {"volume": BY_NAME}}, None),
    "a geometry": ({"geometry": Geometry(CLOUD, FEW, features=FEATURES["geometry"][:20])}, None),
    "a geometry of deploy": ({"geometry": deploy.Geometry(CLOUD, FEW, None, FEATURES["geometry"][:20])}, None),
    "integers": ({"query_features": {"volume": np.ones((11, 3), np.int8)}}, None),
    "none of queries": ({"query_features": {}}, r"features of the query volume: distance \(1\), part \(2\), got none"),
    "none of anchors": (GIVEN, r"features of the anchor volume: distance \(1\), part \(2\), got none"),
    "none of the geometry": ({"geometry": CLOUD}, r"features of the geometry: normal \(2\), got none"),
    "a name less": ({"query_features": {"volume": {"part": OF_QUERIES[:, 1:]}}}, "the array 'distance' is missing"),
    "a name more": ({"query_features": {"volume": {**BY_NAME, "x": OF_QUERIES}}}, "takes .*, got 'x'"),
    "another shape": ({"query_features": {"volume": OF_QUERIES[:5]}}, r"must be numbers of shape \[11, 3\]"),
    "NaN": ({"query_features": {"volume": OF_QUERIES * np.nan}}, "must hold finite numbers"),
    "masked": ({"query_features": {"volume": np.ma.masked_less(OF_QUERIES, 0)}}, "masked"),
    "another branch": ({"query_features": {"surface": OF_QUERIES}}, r"query_features of \['surface'\] are given"),
}


@pytest.mark.parametrize("name", FEATURE_ARGUMENTS)
def test_features_mean_the_same_live_and_exported(exported_file: Callable[[str], Path], name: str) -> None:
    changes, refusal = FEATURE_ARGUMENTS[name]
    case = {**WITH_FEATURES, **changes}
    features = case.pop("query_features")
    found = []
    for run in (surrogate("features"), deploy.load(exported_file("features"))):
        if refusal is None:
            found.append(run.encode(**case).predict({"volume": QUERIES}, query_features=features))
        else:
            with pytest.raises(ValueError, match=refusal):
                run.encode(**case).predict({"volume": QUERIES}, query_features=features)
    for field, values in found[0].items() if found else ():
        np.testing.assert_allclose(found[1][field], values, atol=1e-5 * np.abs(values).max())


def test_live_and_exported_take_the_same_arguments() -> None:
    live, exported = (inspect.signature(kind.encode).parameters for kind in (Surrogate, deploy.ExportedSurrogate))
    assert list(live) == list(exported)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_mean_the_same_live_and_exported(exported: deploy.ExportedSurrogate, name: str) -> None:
    arguments, refusal = ARGUMENTS[name]
    arguments = {"points": POINTS, **arguments}
    for run in (surrogate("geometry"), exported):
        if refusal is not None:
            with pytest.raises(ValueError, match=refusal):
                run.encode(**arguments)
    if refusal is None:
        expected, found = (
            run.encode(**arguments).predict({"volume": QUERIES}) for run in (surrogate("geometry"), exported)
        )
        for field, values in expected.items():
            np.testing.assert_allclose(found[field], values, atol=1e-5 * np.abs(values).max())


def test_neighbors_that_an_exported_model_would_ignore_are_refused(exported: deploy.ExportedSurrogate) -> None:
    with pytest.raises(ValueError, match=r"geometry\.neighbors are given, but an exported model searches for them"):
        exported.encode(points=POINTS, geometry=WITH_NEIGHBORS)


def test_the_masked_supernodes_of_a_context_are_left_out(tmp_path: Path) -> None:
    run = surrogate("one branch with a context")
    assert run.context is not None
    masked = run.context._replace(geometry=run.context.geometry._replace(mask=np.arange(9) % 2 == 0))
    run = dataclasses.replace(run, context=masked)
    export_surrogate(run, tmp_path / "model.emmi")
    expected, found = (
        model.encode().predict({"volume": QUERIES})["volume_velocity"]
        for model in (run, deploy.load(tmp_path / "model.emmi"))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_fields_units_and_kernels_can_be_read(exported: deploy.ExportedSurrogate) -> None:
    assert exported.fields == {"surface": {"pressure": 1}, "volume": {"velocity": 3, "vorticity": 3}}
    assert exported.units == {"position": "m", "volume/velocity": "m/s"}
    assert set(exported.kernels.values()) == {"xla"}


def test_a_stream_takes_iterables_and_fills_out(exported: deploy.ExportedSurrogate) -> None:
    encoded = exported.encode(points=POINTS)
    whole = encoded.predict({"volume": QUERIES}, chunk_size=4)
    chunks = list(encoded.stream({"volume": iter([QUERIES[:3], QUERIES[3:]])}, chunk_size=4))
    assert [(chunk.start, chunk.num_points) for chunk in chunks] == [(0, 4), (4, 4), (8, 3)]
    joined = np.concatenate([chunk.fields["velocity"] for chunk in chunks])
    assert joined.tolist() == whole["volume_velocity"].tolist()
    out = {name: np.empty_like(values) for name, values in whole.items()}
    encoded.predict({"volume": iter([QUERIES])}, out=out, chunk_size=4)
    assert out["volume_velocity"].tolist() == whole["volume_velocity"].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.encode(), "no anchors for the branch 'surface'"),
        (lambda s: s.encode(points={**POINTS, "wake": QUERIES}), "unknown branches \\['wake'\\]"),
        (lambda s: s.encode(points=POINTS, condition=[1.0]), "takes no condition, got \\[1.0\\]"),
        (lambda s: s.encode(points=POINTS, anchors={"volume": POINTS["volume"][:0]}), "\\['volume'\\] have no anchors"),
        (lambda s: s.encode(points=POINTS | {"volume": [[0.0]]}), "points of 'volume' must be an array"),
        (
            lambda s: s.encode(points=POINTS, geometry=deploy.Geometry(POINTS["surface"], np.arange(3))),
            "at most 24 points and 8 supernodes",
        ),
        (
            lambda s: s.encode(points=POINTS, geometry=deploy.Geometry(POINTS["surface"][:9], np.array([9]))),
            "must lie in \\[0, 9\\)",
        ),
        (lambda s: s.encode(points=POINTS).predict({"wake": QUERIES}), "unknown branches"),
        (lambda s: s.encode(points=POINTS).predict({"volume": QUERIES[:, :2]}), "shape \\[points, 3\\], got float32"),
        (lambda s: s.encode(points=POINTS).predict({"volume": QUERIES * np.nan}), "volume position 0 is not finite"),
        (lambda s: s.encode(points=POINTS).predict({"volume": iter([QUERIES])}), "pass out with .*volume_velocity"),
        (lambda s: s.encode(points=POINTS).predict({"volume": QUERIES}, chunk_size=0), "positive integer, got 0"),
        (lambda s: s.encode(points=POINTS).predict({"volume": QUERIES}, out={}), "out must hold the arrays"),
    ],
)
def test_a_mistake_is_named(exported: Any, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(exported)


def edited(path: Path, folder: Path, change: Callable[[dict[str, bytes]], None], **options: Any) -> Path:
    """The file with other members."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    change(members)
    damaged = folder / "damaged.emmi"
    with zipfile.ZipFile(damaged, "w", **options) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return damaged


def manifest(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changes).encode()

    return change


def scaled(**changes: object) -> Callable[[dict[str, bytes]], None]:
    """Changes the scale of the pressure."""

    def change(members: dict[str, bytes]) -> None:
        values = json.loads(members["manifest.json"])
        values["fields"]["surface"]["pressure"] |= changes
        members["manifest.json"] = json.dumps(values).encode()

    return change


def test_an_older_jax_runs_the_own_sizes_alone_and_says_so(file: Path, tmp_path: Path) -> None:
    newer = edited(file, tmp_path, manifest(jax="99.1.0"))
    surrogate = deploy.load(newer)
    assert set(surrogate.kernels) == {title for title in deploy.load(file).kernels if "any number" not in title}
    anchors = {branch: np.random.default_rng(0).uniform(-1, 1, (5, 3)) for branch in surrogate.fields}
    with pytest.raises(ValueError, match=rf"no program 'encode' .* jax 99\.1\.0 exported it, .* jax {jax.__version__}"):
        surrogate.encode(anchors=anchors)


def pickled(members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    members["arrays/0.npy"] = file.getvalue()


def bare_pickle(members: dict[str, bytes]) -> None:
    members["arrays/0.npy"] = pickle.dumps(print)


def larger_header(members: dict[str, bytes]) -> None:
    content = members["arrays/0.npy"]
    members["arrays/0.npy"] = content[:10] + content[10:].replace(b"(", b"(1000000, ", 1)[: len(content) - 10]


def unrecorded_dtype(members: dict[str, bytes]) -> None:
    values = json.loads(members["manifest.json"])
    next(iter(values["arrays"].values()))["dtype"] = "object"
    members["manifest.json"] = json.dumps(values).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("manifest.json"), "'manifest.json' is missing"),
        (lambda m: m.pop("arrays/0.npy"), "'arrays/0.npy' is missing"),
        (lambda m: m.pop("programs/1"), "'programs/1' is missing"),
        (lambda m: m.update({"../evil": b""}), "'../evil' is not in its manifest"),
        (lambda m: m.update({"manifest.json": b"[1]"}), "not that of an exported model"),
        (lambda m: m.update({"manifest.json": b"{"}), "manifest.json: Expecting"),
        (lambda m: m.update({"manifest.json": b"[" * 200_000}), "manifest.json: it is nested"),
        (manifest(version=2), "format version 2, expected 1"),
        (manifest(format="other"), "not that of an exported model"),
        (manifest(fields={"surface": 3}), "manifest.json: TypeError"),
        (manifest(arrays={"parameters/a": {"dtype": "float32", "shape": [10**12]}}), "the manifest says float32"),
        (manifest(position={"low": ["x", 0, 0], "scale": 1}), "lowest corner must hold finite numbers, got 'x'"),
        (manifest(position={"low": [0, 0], "scale": 1}), "lowest corner must be a list of 3 numbers"),
        (manifest(position={"low": [0, 0, 0], "scale": 0}), "scale of positions must be positive, got 0"),
        (manifest(num_members=2), "its parameters are not those of 2 members"),
        (manifest(num_members=10**7, arrays={}), "its parameters are not those of 10000000 members"),
        (manifest(num_members=0), "not those of 0 members"),
        (manifest(calibration=[1]), "manifest.json: TypeError"),
        (manifest(calibration={"repeats": 1, "share": 0.9, "scores": {"cd": [1.0]}}), "not that of its fields"),
        (manifest(calibration={"repeats": 1, "share": 0.9, "scores": {"cd": ["x"]}}), "scores of cd must hold finite"),
        (manifest(jax="new"), "expected a version of jax, got 'new'"),
        (scaled(std=[0.0]), "surface/pressure needs positive deviations"),
        (scaled(std=[1.0, 1.0]), "std of surface/pressure must be a list of 1 numbers"),
        (scaled(mean=[float("nan")]), "NaN is not a finite number"),
        (scaled(mean=[1e300]), "mean of surface/pressure must hold finite numbers"),
        (scaled(limit=[-1.0]), "limits >= 0"),
        (lambda m: m.update({"manifest.json": b"1" * 5000}), "manifest.json: Exceeds the limit"),
        (manifest(arrays={"parameters/a": {"dtype": "float32", "shape": [-1]}}), "expected a size, got -1"),
        (manifest(programs=[]), "is not in its manifest"),
        (manifest(programs=[{"function": "encode"}]), "manifest.json: TypeError"),
        (manifest(sampling={"method": "all", "supernode_method": "uniform"}), "unknown method 'all'"),
        (manifest(sampling={"method": "uniform", "supernode_method": "uniform", "num_anchors": "9"}), "got '9'"),
        (manifest(geometry={"num_points": 10**9, "num_supernodes": 1}), "got 1000000000"),
        (unrecorded_dtype, "holds"),
        (pickled, "arrays/0.npy"),
        (bare_pickle, "arrays/0.npy"),
        (larger_header, "arrays/0.npy"),
        (lambda m: m.update({"arrays/0.npy": m["arrays/0.npy"][:-1]}), "does not fit the"),
        (lambda m: m.update({"programs/0": m["programs/0"][:500]}), "programs/0 is no program"),
        (lambda m: m.update({"programs/0": b"\x00" * 64}), "programs/0 is no program"),
        (lambda m: m.update({"programs/0": b""}), "programs/0 is no program"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    file: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        deploy.load(edited(file, tmp_path, change))
    assert "\n" not in str(error.value)
    assert "damaged.emmi" in str(error.value)


def test_a_zip_bomb_is_refused_before_it_is_read(file: Path, tmp_path: Path) -> None:
    bomb = edited(file, tmp_path, lambda m: m.update({"a": bytes(10**7)}), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed in an unexpected way"):
        deploy.load(bomb)


def test_a_declared_size_beyond_the_file_is_refused(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "model.emmi").write_bytes(content)
    with pytest.raises(ValueError, match=f"declares {2**31} bytes, beyond the file's {len(content)}"):
        deploy.load(tmp_path / "model.emmi")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    content = file.read_bytes()
    (tmp_path / "model.emmi").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not an exported model, or a damaged one"):
        deploy.load(tmp_path / "model.emmi")


def test_flipped_bits_are_refused(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 1
    (tmp_path / "model.emmi").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.npy: Bad CRC-32"):
        deploy.load(tmp_path / "model.emmi")


def test_a_file_for_another_platform_has_its_kernels_and_says_so(tmp_path: Path) -> None:
    programs: list[Program] = []
    export_surrogate(surrogate("curls"), tmp_path / "model.emmi", platforms=["tpu"], advance=programs.append)
    # A curl needs forward mode, which the kernel of TPUs lacks; and no kernel of TPUs takes any size.
    kernels = {program.function: program.kernel for program in programs if program.anchors}
    assert (kernels["query/surface"], kernels["query/volume"]) == ("splash", "xla")
    assert {program.kernel for program in programs if not program.anchors} == {"xla"}
    with pytest.raises(ValueError, match="exported for tpu, but the devices are of 'cpu'"):
        deploy.load(tmp_path / "model.emmi")


def test_cudnn_is_exported_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    run, programs = surrogate("bfloat16 with heads for cuDNN"), []
    export_surrogate(run, tmp_path / "model.emmi", platforms=["cuda"], advance=programs.append)
    assert {program.kernel for program in programs if program.function == "query/volume"} == {"cudnn", "xla"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"platforms": ["gpu"]}, "platforms must be some of cpu, cuda"), ({"units": {"wake": "m"}}, "got 'wake'")],
)
def test_a_mistaken_export_leaves_no_file(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_surrogate(surrogate("curls"), tmp_path / "model.emmi", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_example_runs_without_the_package(file: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "run_exported.py", tmp_path)
    shutil.copytree(ROOT / "emmi_jax" / "deploy", tmp_path / "deploy")
    np.savez(tmp_path / "points.npz", **POINTS)
    code = (
        "import runpy, sys; sys.path.insert(0, '.')\n"
        "sys.modules.update(emmi_jax=None, flax=None, chex=None)\n"
        f"sys.argv = ['run_exported.py', {str(file)!r}, 'points.npz', 'fields.npz']\n"
        "runpy.run_path('run_exported.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "volume_velocity: 30 points" in run.stdout
    expected = surrogate("geometry").encode(points=POINTS).predict(POINTS)
    with np.load(tmp_path / "fields.npz") as found:
        assert {name: found[name].tolist() for name in found} == {n: v.tolist() for n, v in expected.items()}


def test_deploy_imports_neither_flax_nor_the_rest_of_the_package() -> None:
    code = "import emmi_jax.deploy, json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = json.loads(run.stdout)
    assert {".".join(name.split(".")[:2]) for name in imported if name.startswith("emmi_jax")} == {
        "emmi_jax",
        "emmi_jax.deploy",
        "emmi_jax.lazy",
    }
    assert {"flax", "chex", "optax", "orbax", "typer"} & {name.split(".")[0] for name in imported} == set()


def test_devices_take_turns_at_the_chunks(file: Path, exported: deploy.ExportedSurrogate) -> None:
    device = jax.local_devices()[0]
    found = deploy.load(file, devices=[device, device]).encode(points=POINTS).predict({"volume": QUERIES}, chunk_size=2)
    expected = exported.encode(points=POINTS).predict({"volume": QUERIES}, chunk_size=2)
    assert {name: a.tolist() for name, a in found.items()} == {name: a.tolist() for name, a in expected.items()}
    with pytest.raises(ValueError, match="at least one device, got none"):
        deploy.load(file, devices=[])
