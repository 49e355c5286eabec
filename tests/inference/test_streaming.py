"""Streaming: the numbers of one call of the model, in one compiled shape, two chunks at a time, on any devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from emmi_jax.inference import chunks, streaming
from emmi_jax.inference.streaming import encode, predict, stream
from tests.inference.streaming_cases import (
    ANCHORS,
    CHUNK,
    CONDITIONED,
    CONFIG,
    FIELDS,
    FORWARD,
    GEOMETRY,
    NORMALIZER,
    NUM_POINTS,
    QUERIES,
    TRACED,
    assert_expected,
    case,
    empty,
    positions,
)
from tests.tolerances import assert_close


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
