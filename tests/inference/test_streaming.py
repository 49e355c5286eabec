"""Streaming: the numbers of one call of the model, in one compiled shape, two chunks at a time, on any devices."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, SupernodePoolingConfig
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.inference import chunks, streaming
from emmi_jax.inference.chunks import CPU_CHUNK_SIZE, LARGEST_CHUNK_SIZE, resolve_chunk_size
from emmi_jax.inference.streaming import encode, predict, stream
from emmi_jax.layers.supernode_pooling import Geometry
from tests.cases import random_params
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}
CONFIG = AbUptConfig(
    dim=12,
    num_heads=2,
    fields=FIELDS,
    physics_blocks=("perceiver", "joint"),
    decoder_depths={"surface": 1, "volume": 1},
    geometry_depth=0,
    supernode_pooling=SupernodePoolingConfig(radius=None, k=2),
    mlp_ratio=1,
)
CONDITIONED = dataclasses.replace(CONFIG, condition_dim=2)
NUM_POINTS, CHUNK = 13, 5
NORMALIZER = Normalizer(
    position_low=(-1.0, 2.0, 0.0),
    position_scale=0.5,
    fields={
        branch: {name: FieldScale(mean=(3.0,) * c, std=(2.0,) * c) for name, c in names.items()}
        for branch, names in FIELDS.items()
    },
)
TRACED: list[str] = []


class CountingModel(AnchoredBranchedUPT):
    """Notes which queries each trace is for."""

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        TRACED.append(" ".join(inputs.get("queries") or {}))
        return super().__call__(**inputs)


def positions(num_points: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, size=(num_points, 3)).astype(np.float32)


ANCHORS = {branch: positions(4, seed) for seed, branch in enumerate(FIELDS)}
GEOMETRY = {"geometry": Geometry(positions(6, 2), np.arange(3, dtype=np.int32))}
QUERIES = {branch: positions(NUM_POINTS, seed) for seed, branch in enumerate(FIELDS, 3)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its encoded anchors, and what one uncached call predicts at all queries."""

    model: CountingModel
    variables: Any
    cache: Any
    expected: dict[str, np.ndarray]
    condition: np.ndarray | None

    def __call__(self, queries: Any, *, chunk_size: Any = CHUNK, **options: Any) -> dict[str, Any]:
        args = self.model, self.variables, self.cache, queries
        return predict(*args, chunk_size=chunk_size, condition=self.condition, **options)


@functools.cache
def case(config: AbUptConfig) -> Case:
    model = CountingModel(config)
    condition = None if config.condition_dim is None else np.array([0.3, -1.0], np.float32)
    extra = {} if condition is None else {"condition": condition}
    inputs = jax.tree.map(lambda a: a[None], {"anchors": ANCHORS, **GEOMETRY, **extra})
    batched = {branch: position[None] for branch, position in QUERIES.items()}
    variables = random_params(model, **inputs)
    outputs = jax.jit(model.apply)(variables, **inputs, queries=batched)
    expected = {f"{b}_{name}": np.asarray(outputs[f"query_{b}_{name}"][0]) for b in FIELDS for name in FIELDS[b]}
    cache = encode(model, variables, anchors=ANCHORS, **GEOMETRY, **extra)
    return Case(model, variables, cache, expected, condition)


def assert_expected(fields: dict[str, Any], expected: dict[str, np.ndarray], num_points: int) -> None:
    assert fields
    for name, values in fields.items():
        # Relative to the largest entry of the field, over more points than a short query has.
        largest = float(np.abs(expected[name]).max())
        assert_close(values, expected[name][:num_points], FORWARD, largest=largest)
        assert values.dtype == np.float32


@pytest.mark.parametrize("config", [CONFIG, CONDITIONED], ids=["plain", "conditioned"])
@pytest.mark.parametrize("num_points", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, NUM_POINTS])
def test_any_number_of_queries_gives_what_one_uncached_call_gives(config, num_points):
    fields = case(config)({branch: position[:num_points] for branch, position in QUERIES.items()})
    assert list(fields) == ["surface_pressure", "volume_velocity", "volume_pressure"]
    assert_expected(fields, case(config).expected, num_points)


@pytest.mark.parametrize("chunk_size", [1, 2, NUM_POINTS - 1, NUM_POINTS, NUM_POINTS + 1, "auto"])
def test_the_chunk_size_does_not_change_a_field(chunk_size, monkeypatch):
    monkeypatch.setattr(chunks, "CPU_CHUNK_SIZE", 3)
    assert_expected(case(CONFIG)({"volume": QUERIES["volume"]}, chunk_size=chunk_size), case(CONFIG).expected, 13)


@pytest.mark.parametrize("branches", [["surface"], ["volume"], ["volume", "surface"]])
def test_any_branches_in_any_order_can_be_asked_for(branches):
    fields = case(CONFIG)({branch: QUERIES[branch] for branch in branches})
    assert list(fields) == [f"{branch}_{name}" for branch in branches for name in FIELDS[branch]]
    assert_expected(fields, case(CONFIG).expected, NUM_POINTS)


def test_no_branch_gives_no_field():
    assert case(CONFIG)({}) == {}


def test_any_number_of_points_is_traced_once_a_branch():
    TRACED.clear()
    for num_points in (0, 1, 3, 4, 9, 13):
        case(CONFIG)({branch: position[:num_points] for branch, position in QUERIES.items()}, chunk_size=4)
    case(CONFIG)({"volume": iter([QUERIES["volume"][:7]])}, chunk_size=4, out=empty(7, "volume"))
    assert sorted(TRACED) == ["surface", "volume"]


def empty(num_points: int, *branches: str) -> dict[str, np.ndarray]:
    return {f"{b}_{name}": np.full((num_points, c), np.nan, "f4") for b in branches for name, c in FIELDS[b].items()}


@pytest.mark.parametrize("sizes", [[13], [1] * 13, [0, 7, 0, 6], [4, 5, 4], [12, 1, 0]])
def test_an_iterator_of_arrays_of_any_lengths_gives_what_one_array_gives(sizes):
    blocks = np.split(QUERIES["volume"], np.cumsum(sizes)[:-1])
    out = empty(NUM_POINTS, "volume")
    fields = case(CONFIG)({"volume": iter(blocks)}, out=out)
    assert all(fields[name] is out[name] for name in out)
    assert_expected(fields, case(CONFIG).expected, NUM_POINTS)


def test_positions_and_fields_can_be_memory_maps(tmp_path):
    np.save(tmp_path / "positions.npy", QUERIES["volume"])
    source = np.load(tmp_path / "positions.npy", mmap_mode="r")
    out = {
        name: np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, array.shape)
        for name, array in empty(NUM_POINTS, "volume").items()
    }
    case(CONFIG)({"volume": source}, out=out)
    for array in out.values():
        array.flush()
    assert_expected({name: np.load(tmp_path / f"{name}.npy") for name in out}, case(CONFIG).expected, NUM_POINTS)


def test_chunks_come_in_order_and_fully_cover_each_branch():
    found = case(CONFIG)
    streamed = list(stream(found.model, found.variables, found.cache, QUERIES, chunk_size=CHUNK))
    assert [(branch, start, len(fields["pressure"])) for branch, start, fields in streamed] == [
        (branch, start, num) for branch in FIELDS for start, num in ((0, 5), (5, 5), (10, 3))
    ]
    velocity = np.concatenate([fields["velocity"] for branch, _, fields in streamed if branch == "volume"])
    assert_close(velocity, found.expected["volume_velocity"], FORWARD)


def num_alive() -> int:
    """Chunks of fields on the device: of the surface, each is one buffer, which several arrays may share."""
    return len({array.unsafe_buffer_pointer() for array in jax.live_arrays() if array.shape == (CHUNK, 1)})


def test_the_next_chunk_is_started_before_one_is_fetched_and_two_are_alive(monkeypatch):
    events: list[tuple[str, int, int]] = []
    stream_fields = streaming.stream_fields

    def noted(query, queries, query_features):
        def start(chunk, features):
            fields = query.start(chunk, features)
            events.append(("started", chunk.start, num_alive()))
            return fields

        for chunk in stream_fields(query._replace(start=start), queries, query_features):
            events.append(("finished", chunk.start, num_alive()))
            yield chunk

    monkeypatch.setattr(streaming, "stream_fields", noted)
    case(CONFIG)({"surface": QUERIES["surface"]})
    assert events == [
        ("started", 0, 1),
        ("started", 5, 2),
        ("finished", 0, 1),
        ("started", 10, 2),
        ("finished", 5, 1),
        ("finished", 10, 1),
    ]
    assert num_alive() == 0


def test_with_a_normalizer_positions_and_fields_are_physical():
    found = case(CONFIG)

    def physical(position):
        return np.asarray(position, np.float64) / NORMALIZER.position_scale + NORMALIZER.position_low

    arrays = {"anchors": {b: physical(a) for b, a in ANCHORS.items()}}
    geometry = {"geometry": GEOMETRY["geometry"]._replace(position=physical(GEOMETRY["geometry"].position))}
    cache = encode(found.model, found.variables, **arrays, **geometry, normalizer=NORMALIZER)
    queries = {branch: physical(position) for branch, position in QUERIES.items()}
    fields = predict(found.model, found.variables, cache, queries, chunk_size=CHUNK, normalizer=NORMALIZER)
    assert_expected(fields, {name: 2.0 * values + 3.0 for name, values in found.expected.items()}, NUM_POINTS)


def test_a_masked_anchor_is_as_good_as_none():
    found = case(CONFIG)
    masks = {"volume": np.array([True, True, True, False])}
    other = ANCHORS | {"volume": np.concatenate([ANCHORS["volume"][:3], positions(1, 9)])}
    first, second = (
        predict(
            found.model,
            found.variables,
            encode(found.model, found.variables, anchors=anchors, anchor_masks=masks, **GEOMETRY),
            {"volume": QUERIES["volume"]},
            chunk_size=CHUNK,
        )
        for anchors in (ANCHORS, other)
    )
    np.testing.assert_array_equal(first["volume_velocity"], second["volume_velocity"])
    assert np.abs(first["volume_velocity"] - found.expected["volume_velocity"]).max() > 1e-3


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


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, "all", True])
def test_a_wrong_chunk_size_is_named(chunk_size):
    with pytest.raises(ValueError, match=re.escape(f"'auto' or a positive integer, got {chunk_size!r}")):
        case(CONFIG)(QUERIES, chunk_size=chunk_size)


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


class FakeDevice:
    platform = "gpu"

    def __init__(self, **stats: int) -> None:
        self.stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats or None


def automatic(*devices: FakeDevice, **changes: Any) -> int:
    cache = {"key": np.zeros((1, 1024, 3, 64), np.float32)}
    return resolve_chunk_size("auto", dataclasses.replace(CONFIG, dim=192, **changes), cache, devices)


def test_the_automatic_chunk_grows_with_free_memory_up_to_a_limit():
    sizes = [automatic(FakeDevice(bytes_limit=gib * 2**30, bytes_in_use=0)) for gib in (1, 4, 1000)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == LARGEST_CHUNK_SIZE
    assert automatic(FakeDevice(bytes_limit=4 * 2**30, bytes_in_use=3 * 2**30)) == sizes[0]


def test_the_automatic_chunk_is_smaller_where_logits_are_held():
    device = FakeDevice(bytes_limit=2**30, bytes_in_use=0)
    assert automatic(device, implementation="masked") < automatic(device)


@pytest.mark.parametrize("device", [FakeDevice(), FakeDevice(bytes_limit=2**30, bytes_in_use=0)])
def test_the_automatic_chunk_is_smaller_for_curls(device):
    assert automatic(device, vector_potentials={"volume": ("velocity",)}) <= automatic(device) // 4


def test_the_automatic_chunk_has_a_default_where_memory_is_not_known_and_counts_devices():
    assert automatic(FakeDevice()) == CPU_CHUNK_SIZE
    small, large = FakeDevice(bytes_limit=2**30, bytes_in_use=0), FakeDevice(bytes_limit=2**34, bytes_in_use=0)
    assert automatic(small, large) == 2 * automatic(small)
