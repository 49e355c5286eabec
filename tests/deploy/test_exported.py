"""An exported file gives the numbers of its run, for the same arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax import Geometry, SupernodePoolingConfig, Surrogate, deploy
from emmi_jax.inference.exporting import export_surrogate
from emmi_jax.layers.supernode_pooling import search_neighbors
from emmi_jax.points import PointSet
from tests.deploy.cases import FEATURES, KINDS, OF_QUERIES, POINTS, QUERIES, SIZES, surrogate


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
