"""Queries, outputs, caches and inputs that do not fit are refused by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from emmi_jax import AnchoredBranchedUPT
from emmi_jax.data.normalization import FieldScale
from emmi_jax.inference.streaming import encode, predict, stream
from emmi_jax.layers.supernode_pooling import Geometry
from tests.inference.streaming_cases import (
    ANCHORS,
    CHUNK,
    CONDITIONED,
    CONFIG,
    GEOMETRY,
    NORMALIZER,
    NUM_POINTS,
    QUERIES,
    CountingModel,
    assert_expected,
    case,
    empty,
    positions,
)


class ForeignTensor:
    """Has the attributes of an array, as a torch tensor does, but no NumPy dtype."""

    shape, dtype = (3, 3), "torch.float32"


def failing_after(num_blocks: int) -> Iterator[np.ndarray]:
    for i in range(num_blocks):
        yield positions(3, i)
    raise OSError("disk gone")


def with_nan(row: int, num_points: int = NUM_POINTS) -> np.ndarray:
    position = positions(num_points, 0)
    position[row, 1] = np.nan
    return position


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ({"wing": positions(3, 0)}, "unknown branches ['wing']"),
        ({"volume": failing_after(4)}, "source of the queries of 'volume' failed after 12 points: OSError: disk gone"),
        ({"volume": with_nan(0, 1)}, "query volume position 0 is not finite: ["),
        ({"volume": with_nan(11)}, "query volume position 11 is not finite: ["),
        ({"surface": iter([positions(4, 0), with_nan(5, 8)])}, "query surface position 9 is not finite: ["),
        ({"volume": np.full((2, 3), 1e300)}, "query volume position 0 is not finite: [1e+300"),
        ({"volume": positions(3, 0)[:, :2]}, "arrays of shape [points, 3], got float32 of shape [3, 2]"),
        ({"volume": iter([positions(4, 0), positions(2, 0)[:, :2]])}, "query volume positions from point 4 must be"),
        ({"volume": iter([np.float32(1)])}, "got float32 of shape []"),
        ({"volume": np.array([["a", "b", "c"]])}, "got <U1 of shape [1, 3]"),
        ({"volume": np.float32(1)}, "got float32 of shape []"),
        ({"volume": positions(3, 0).astype(np.float16)}, "got float16 of shape [3, 3]"),
        ({"volume": ForeignTensor()}, "ForeignTensor"),
        ({"volume": 7}, "queries of 'volume' must be an array or an iterable of arrays, got 7"),
    ],
)
def test_bad_queries_are_named(queries, message):
    found = case(CONFIG)
    with pytest.raises(ValueError, match=re.escape(message)):
        list(stream(found.model, found.variables, found.cache, queries, chunk_size=CHUNK))


def test_chunks_well_before_a_failure_are_written():
    out = empty(NUM_POINTS, "volume")
    with pytest.raises(ValueError, match="position 12 is not finite"):
        case(CONFIG)({"volume": iter([QUERIES["volume"][:12], with_nan(0, 1)])}, chunk_size=4, out=out)
    assert_expected({name: array[:8] for name, array in out.items()}, case(CONFIG).expected, 8)


@pytest.mark.parametrize(
    ("queries", "out", "message"),
    [
        (
            {"volume": iter(())},
            None,
            "the number of queries is unknown: pass out with ['volume_velocity', 'volume_pressure']",
        ),
        ({"volume": positions(3, 0)}, {}, "out must hold the arrays ['volume_pressure', 'volume_velocity'], got []"),
        ({"volume": positions(3, 0)}, empty(3, "volume", "surface"), "out must hold the arrays"),
        ({"volume": positions(3, 0)}, empty(4, "volume"), "out['volume_velocity'] must have the shape [3, 3], got [4"),
        ({"volume": iter([positions(3, 0)])}, empty(4, "volume"), "has 4 rows, but there were 3 queries"),
        ({"volume": iter([positions(3, 0)])}, empty(2, "volume"), "has 2 rows, but there are at least 3 queries"),
        ({"surface": iter(())}, {"surface_pressure": np.zeros((2, 2))}, "must have the shape ['N', 1], got [2, 2]"),
    ],
)
def test_outputs_that_do_not_fit_are_named(queries, out, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        case(CONFIG)(queries, out=out)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_fields_are_never_written_into_arrays_that_hold_no_floats(dtype):
    out = {"surface_pressure": np.zeros((3, 1), dtype)}
    with pytest.raises(ValueError, match="must be a writable array of floats, got"):
        case(CONFIG)({"surface": positions(3, 0)}, out=out)


@pytest.mark.parametrize("what", ["model", "parameters", "condition"])
def test_a_cache_of_something_else_is_refused_by_name(what):
    found = case(CONDITIONED)
    model, variables, condition = found.model, found.variables, found.condition
    if what == "model":
        model = CountingModel(dataclasses.replace(CONDITIONED, max_wavelength=5_000))
    elif what == "parameters":
        variables = jax.tree.map(lambda a: np.nextafter(np.asarray(a), np.float32(np.inf)), variables)
    else:
        condition = condition[::-1]
    with pytest.raises(ValueError, match=f"encoded with another {what}"):
        predict(model, variables, found.cache, QUERIES, condition=condition)


def test_a_cache_may_be_read_by_another_implementation():
    found = case(CONFIG)
    model = AnchoredBranchedUPT(dataclasses.replace(CONFIG, implementation="masked", precision="highest"))
    fields = predict(model, found.variables, found.cache, QUERIES, chunk_size=CHUNK)
    assert_expected(fields, found.expected, NUM_POINTS)


def test_a_bare_collection_is_no_cache():
    found = case(CONFIG)
    with pytest.raises(ValueError, match="cache must come from `encode`, got dict"):
        predict(found.model, found.variables, dict(found.cache.entries), QUERIES)


def test_a_normalizer_with_another_number_of_channels_is_refused():
    found = case(CONFIG)
    scales = {**NORMALIZER.fields, "surface": {"pressure": FieldScale(mean=(0.0,) * 2, std=(1.0,) * 2)}}
    wrong = dataclasses.replace(NORMALIZER, fields=scales)
    message = "surface/pressure have 2 channels, the data have 1"
    with pytest.raises(ValueError, match=message):
        encode(found.model, found.variables, anchors=ANCHORS, **GEOMETRY, normalizer=wrong)
    with pytest.raises(ValueError, match=message):
        case(CONFIG)(QUERIES, normalizer=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": ANCHORS | {"volume": ForeignTensor()}}, "got .*ForeignTensor"),
        ({"anchors": ANCHORS | {"volume": positions(4, 0).astype(np.float16)}}, "got float16 of shape"),
        ({"anchors": ANCHORS | {"volume": jax.numpy.zeros((4, 3), "bfloat16")}}, "got bfloat16 of shape"),
        ({"anchors": {"volume": ANCHORS["volume"]}}, r"anchors must name the branches \['surface', 'volume'\]"),
        ({"geometry": None}, "geometry is missing"),
        ({"geometry": Geometry(positions(6, 2), [0, 6])}, r"supernode_idx must lie in \[0, 6\).* got 6"),
        ({"geometry": Geometry(positions(6, 2), [0, -1])}, r"supernode_idx must lie in \[0, 6\).* got -1"),
        ({"geometry": Geometry(positions(6, 2), ForeignTensor())}, "got .*ForeignTensor"),
        ({"geometry": Geometry(positions(6, 2), [0, 1], mask=[True])}, r"geometry.mask must be bool of shape"),
        ({"anchor_masks": {"volume": [True]}}, r"anchor_masks\['volume'\] must be bool of shape \[1, 4\]"),
        ({"condition": [1.0]}, "condition_dim=None but condition is given"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_when_encoding(changes, message):
    found = case(CONFIG)
    with pytest.raises(ValueError, match=message):
        encode(found.model, found.variables, **{"anchors": ANCHORS, **GEOMETRY} | changes)


def test_lists_serve_as_condition_and_supernodes():
    found = case(CONDITIONED)
    geometry = Geometry(GEOMETRY["geometry"].position, GEOMETRY["geometry"].supernode_idx.tolist())
    cache = encode(found.model, found.variables, anchors=ANCHORS, geometry=geometry, condition=[0.3, -1])
    fields = predict(found.model, found.variables, cache, QUERIES, chunk_size=CHUNK, condition=[0.3, -1])
    assert_expected(fields, found.expected, NUM_POINTS)


def test_a_masked_supernode_is_as_good_as_none():
    found, (position, idx, *_) = case(CONFIG), GEOMETRY["geometry"]
    padded = Geometry(position, np.append(idx, 99).astype(np.int32), mask=np.append(np.ones(3, bool), False))
    cache = encode(found.model, found.variables, anchors=ANCHORS, geometry=padded)
    assert_expected(predict(found.model, found.variables, cache, QUERIES, chunk_size=CHUNK), found.expected, NUM_POINTS)


def test_no_devices_are_refused():
    with pytest.raises(ValueError, match="at least one device"):
        case(CONFIG)(QUERIES, devices=[])


def test_parameters_without_their_name_are_refused():
    found = case(CONFIG)
    with pytest.raises(ValueError, match="variables must hold 'params'"):
        predict(found.model, found.variables["params"], found.cache, QUERIES)


def test_an_anchor_that_is_not_finite_is_named():
    found = case(CONFIG)
    with pytest.raises(ValueError, match="the anchor volume position 2 is not finite"):
        encode(found.model, found.variables, anchors=ANCHORS | {"volume": with_nan(2, 4)}, **GEOMETRY)
