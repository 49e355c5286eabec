"""Neighbour search on the host and on the device: equal to brute force, bit for bit."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emmi_jax.ops import neighbors_host
from emmi_jax.ops.neighbors import Neighbors, nearest_neighbors, radius_neighbors
from emmi_jax.ops.neighbors_host import nearest_neighbors_host, radius_neighbors_host

RADIUS = {"device": radius_neighbors, "host": radius_neighbors_host}
NEAREST = {"device": nearest_neighbors, "host": nearest_neighbors_host}
NAN, INF = math.nan, math.inf

where = pytest.mark.parametrize("where", ["device", "host"])
every_search = pytest.mark.parametrize(
    "search",
    [
        pytest.param(partial(radius_neighbors, radius=0.5, max_degree=5), id="radius-device"),
        pytest.param(partial(radius_neighbors_host, radius=0.5, max_degree=5), id="radius-host"),
        pytest.param(partial(nearest_neighbors, k=5), id="nearest-device"),
        pytest.param(partial(nearest_neighbors_host, k=5), id="nearest-host"),
    ],
)


def squared_distances(points: np.ndarray, supernode_idx: np.ndarray) -> np.ndarray:
    """Every d² [M, P], each product and each sum rounded to float32, first axis first."""
    squares = np.square(points[None] - points[supernode_idx][:, None])
    total = squares[..., 0]
    for axis in range(1, points.shape[1]):
        total = total + squares[..., axis]
    return total


def brute_force_radius(points: np.ndarray, supernode_idx: np.ndarray, radius: float, max_degree: int) -> list[list]:
    is_within = np.sqrt(squared_distances(points, supernode_idx)) <= np.float32(radius)
    return [list(np.flatnonzero(row)[:max_degree]) for row in is_within]


def brute_force_nearest(points: np.ndarray, supernode_idx: np.ndarray, k: int) -> list[list]:
    return [list(np.argsort(row, kind="stable")[:k]) for row in squared_distances(points, supernode_idx)]


def as_lists(found: Neighbors, slots: int) -> list[list]:
    """The real neighbours of each supernode, after checking the form that every result has."""
    idx, mask = np.asarray(found.idx), np.asarray(found.mask)
    assert idx.dtype == np.int32
    assert mask.dtype == np.bool_
    assert idx.shape == mask.shape
    assert idx.shape[-1] == slots
    assert not idx[~mask].any()
    np.testing.assert_array_equal(mask, np.sort(mask, axis=-1)[..., ::-1])
    return [list(row[is_real]) for row, is_real in zip(idx, mask, strict=True)]


def assert_equal(found: Neighbors, expected: Neighbors) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def cloud(kind: str, num_points: int, num_axes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.random((num_points, num_axes), dtype=np.float32)
    return rng.integers(0, 5, (num_points, num_axes)).astype(np.float32)


@where
@pytest.mark.parametrize(
    ("kind", "radius"), [("uniform", 0.2), ("uniform", 3.0), ("grid", 1.0), ("grid", math.sqrt(2)), ("grid", 2.0)]
)
@pytest.mark.parametrize("num_axes", [1, 3])
def test_radius_equals_brute_force(where: str, kind: str, radius: float, num_axes: int) -> None:
    points, supernode_idx = cloud(kind, 300, num_axes), np.arange(0, 300, 7, dtype=np.int32)
    found = RADIUS[where](points, supernode_idx, radius=radius, max_degree=9)
    assert as_lists(found, 9) == brute_force_radius(points, supernode_idx, radius, 9)


@where
@pytest.mark.parametrize("kind", ["uniform", "grid"])
@pytest.mark.parametrize(("num_axes", "k"), [(1, 9), (3, 1), (3, 9), (3, 320)])
def test_nearest_equals_brute_force(where: str, kind: str, num_axes: int, k: int) -> None:
    points, supernode_idx = cloud(kind, 300, num_axes), np.arange(0, 300, 7, dtype=np.int32)
    found = NEAREST[where](points, supernode_idx, k=k)
    assert as_lists(found, k) == brute_force_nearest(points, supernode_idx, k)


@where
def test_a_distance_as_the_radius_is_within_and_the_next_smaller_radius_is_not(where: str) -> None:
    points = cloud("uniform", 64, 3, seed=1)
    distances = np.sqrt(squared_distances(points, np.array([0]))[0])
    for point in range(1, 64):
        # A fused multiply-add moves the last bit of about every tenth of these distances.
        for radius, expected in ((distances[point], True), (np.nextafter(distances[point], np.float32(0)), False)):
            found = RADIUS[where](points, np.array([0]), radius=float(radius), max_degree=64)
            assert (point in as_lists(found, 64)[0]) is expected


@where
@pytest.mark.parametrize("radius", [0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 1.6])
def test_lattice_points_at_exactly_the_radius_are_neighbours(where: str, radius: float) -> None:
    points = np.arange(-20, 21, dtype=np.float32)[:, None] * np.float32(0.1) * np.eye(3, dtype=np.float32)[:1]
    at_radius = 20 + round(10 * radius)
    assert points[at_radius, 0] == np.float32(radius)
    found = as_lists(RADIUS[where](points, np.array([20]), radius=radius, max_degree=64), 64)
    assert found == brute_force_radius(points, np.array([20]), radius, 64)
    assert {40 - at_radius, at_radius} <= set(found[0])


@where
def test_within_radius_0_are_copies_of_the_supernode(where: str) -> None:
    points = np.array([[0.3, 0], [0, 0.3], [0.3, 1e-7], [0.3, 0], [np.nan, 0]], np.float32)
    assert as_lists(RADIUS[where](points, np.array([3, 1]), radius=0, max_degree=4), 4) == [[0, 3], [1]]


coordinates = st.one_of(st.integers(-3, 3).map(float), st.floats(-3, 3, width=32), st.sampled_from([0.1, 0.7, 1e3]))
# Rounded so that no two are so close that the square of their distance would underflow.
small_clouds = arrays(np.float32, (40, 2), elements=coordinates).map(lambda points: np.round(points, 6))
some_supernodes = arrays(np.int32, 6, elements=st.integers(0, 39))


@settings(max_examples=30, deadline=None)
@given(small_clouds, some_supernodes, st.sampled_from([0.1, 0.5, 1.0, math.sqrt(2), math.sqrt(5), 3.0, 1e4]))
def test_radius_equals_brute_force_on_any_cloud(points: np.ndarray, supernode_idx: np.ndarray, radius: float) -> None:
    expected = brute_force_radius(points, supernode_idx, radius, 6)
    for search in RADIUS.values():
        assert as_lists(search(points, supernode_idx, radius=radius, max_degree=6), 6) == expected


@settings(max_examples=30, deadline=None)
@given(small_clouds, some_supernodes)
def test_nearest_equals_brute_force_on_any_cloud(points: np.ndarray, supernode_idx: np.ndarray) -> None:
    expected = brute_force_nearest(points, supernode_idx, 6)
    for search in NEAREST.values():
        assert as_lists(search(points, supernode_idx, k=6), 6) == expected


@where
def test_cap_keeps_the_lowest_indices_and_may_cut_the_supernode_away(where: str) -> None:
    points = np.array([[0, 0.4], [0, 0.3], [9, 9], [0, 0.2], [0, 0.1], [0, 0.2], [0, 0]], np.float32)
    found = RADIUS[where](points, np.array([6, 1, 2]), radius=0.5, max_degree=5)
    assert as_lists(found, 5) == [[0, 1, 3, 4, 5], [0, 1, 3, 4, 5], [2]]


@where
def test_equally_near_points_come_by_index(where: str) -> None:
    points = np.array([[1, 0], [0, 0], [-1, 0], [0, 1], [0, 0], [0, -1], [0, 0.5]], np.float32)
    found = NEAREST[where](points, np.array([1, 4, 6]), k=5)
    assert as_lists(found, 5) == [[1, 4, 6, 0, 2], [1, 4, 6, 0, 2], [6, 1, 3, 4, 0]]


@every_search
def test_copies_of_one_point_and_repeated_supernodes(search: Any) -> None:
    assert as_lists(search(np.full((7, 2), 0.3, np.float32), np.array([6, 6, 2])), 5) == [[0, 1, 2, 3, 4]] * 3


def test_copies_beyond_the_slots_change_nothing_on_the_host() -> None:
    points = np.tile(np.array([[0, 0], [1, 0], [-0.0, 0]], np.float32), (40, 1))
    points[::50] = 0.5
    supernode_idx = np.arange(0, 120, 13)
    for k in (1, 7, 100):
        found = nearest_neighbors_host(points, supernode_idx, k=k)
        assert as_lists(found, k) == brute_force_nearest(points, supernode_idx, k)


@every_search
def test_slots_beyond_the_points_are_masked(search: Any) -> None:
    rows = as_lists(search(np.array([[0.0], [0.25], [0.125]], np.float32), np.array([0, 1])), 5)
    assert [sorted(row) for row in rows] == [[0, 1, 2]] * 2


@every_search
def test_a_single_point_is_its_own_neighbour(search: Any) -> None:
    assert as_lists(search(np.array([[0.7, 0.2]], np.float32), np.array([0])), 5) == [[0]]


@every_search
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_supernodes(search: Any, shape: tuple[int, ...]) -> None:
    found = search(np.zeros((*shape[:-1], 4, 2), np.float32), np.zeros(shape, np.int32))
    assert np.shape(found.idx) == np.shape(found.mask) == (*shape, 5)


@every_search
def test_no_points(search: Any) -> None:
    assert as_lists(search(np.zeros((0, 2), np.float32), np.array([0, 1])), 5) == [[], []]


@every_search
@pytest.mark.parametrize("absent", [(NAN, 0), (0, INF), (-INF, INF), (NAN, NAN)])
def test_points_that_are_not_finite_neither_are_nor_have_neighbours(search: Any, absent: tuple[float, float]) -> None:
    points = np.array([absent, (0, 0), absent, (0, 0.25), absent, absent, absent], np.float32)
    rows = as_lists(search(points, np.array([0, 1, 6])), 5)
    assert [sorted(row) for row in rows] == [[], [1, 3], []]


@every_search
def test_supernodes_outside_the_points_have_no_neighbours(search: Any) -> None:
    assert as_lists(search(np.zeros((7, 2), np.float32), np.array([-1, 7, 1])), 5) == [[], [], [0, 1, 2, 3, 4]]


@where
def test_points_too_far_for_float32_are_no_neighbours(where: str) -> None:
    points = np.array([[-3e38, 0], [0, 0], [1e19, 0], [3e38, 0], [0, 3e38], [0, -3e38], [3e38, 3e38]], np.float32)
    supernode_idx, expected = np.array([0, 1, 2]), [[0], [1, 2], [1, 2]]
    for found in (
        NEAREST[where](points, supernode_idx, k=5),
        RADIUS[where](points, supernode_idx, radius=INF, max_degree=5),
    ):
        assert [sorted(row) for row in as_lists(found, 5)] == expected


@where
@pytest.mark.parametrize(("radius", "last"), [(1e-300, 1), (1e-30, 1), (1e-15, 3), (1e18, 5), (1e30, 5), (1e300, 5)])
def test_radii_whose_square_leaves_float32(where: str, radius: float, last: int) -> None:
    points = np.array([[0, 0], [1e-25, 1e-40], [1e-16, 0], [0, 1e-16], [1e17, 0], [0, 1e17], [3e38, 0]], np.float32)
    found = RADIUS[where](points, np.array([0, 0, 0]), radius=radius, max_degree=5)
    assert as_lists(found, 5) == [list(range(last + 1))[:5]] * 3


@every_search
def test_a_batch_is_its_samples(search: Any) -> None:
    points = np.stack([cloud("uniform", 90, 2, seed) for seed in range(3)])
    supernode_idx = np.random.default_rng(0).integers(0, 90, (3, 11))
    samples = [search(points[sample], supernode_idx[sample]) for sample in range(3)]
    expected = Neighbors(*(np.stack(x) for x in zip(*samples, strict=True)))
    assert_equal(search(points, supernode_idx), expected)


@pytest.mark.parametrize(
    "search", [partial(radius_neighbors, radius=0.5, max_degree=5), partial(nearest_neighbors, k=5)]
)
def test_jit_and_vmap_change_nothing(search: Any) -> None:
    points = np.stack([cloud("uniform", 90, 2, seed) for seed in range(3)])
    supernode_idx = np.random.default_rng(0).integers(0, 90, (3, 11))
    assert_equal(jax.jit(jax.vmap(search))(points, supernode_idx), search(points, supernode_idx))


@pytest.mark.parametrize(
    "search", [partial(radius_neighbors, radius=0.5, max_degree=5), partial(nearest_neighbors, k=5)]
)
def test_one_exported_program_serves_every_batch(search: Any) -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.ShapeDtypeStruct((batch, 90, 2), jnp.float32), jax.ShapeDtypeStruct((batch, 11), jnp.int32)
    points = np.stack([cloud("uniform", 90, 2, seed) for seed in range(3)])
    supernode_idx = np.random.default_rng(0).integers(0, 90, (3, 11), dtype=np.int32)
    exported = jax.export.export(jax.jit(search))(*shapes)
    assert_equal(Neighbors(*exported.call(points, supernode_idx)), search(points, supernode_idx))


def test_gradients_see_the_neighbours_as_constants() -> None:
    points = jnp.asarray(cloud("uniform", 90, 2))

    def sum_of_neighbors(points: jax.Array) -> jax.Array:
        return points[nearest_neighbors(points, jnp.arange(11), k=5).idx].sum()

    expected = np.zeros(points.shape, np.float32)
    np.add.at(expected, np.asarray(nearest_neighbors(points, jnp.arange(11), k=5).idx), 1)
    np.testing.assert_array_equal(jax.grad(sum_of_neighbors)(points), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
@every_search
def test_other_floats_are_compared_in_float32(search: Any, dtype: Any) -> None:
    points = cloud("uniform", 90, 2).astype(dtype)
    assert_equal(search(points, np.arange(11)), search(points.astype(np.float32), np.arange(11)))


def test_many_chunks_on_the_device_give_what_the_host_gives() -> None:
    points = cloud("uniform", 20_000, 3)
    supernode_idx = np.arange(0, 20_000, 9)  # 2223, in two chunks for the radius and seven for the nearest
    found = radius_neighbors(points, supernode_idx, radius=0.06)
    assert 0.3 < found.mask.mean() < 0.9
    assert_equal(found, radius_neighbors_host(points, supernode_idx, radius=0.06))
    assert_equal(nearest_neighbors(points, supernode_idx, k=32), nearest_neighbors_host(points, supernode_idx, k=32))


@pytest.mark.parametrize("kind", ["uniform", "grid"])
def test_many_chunks_on_the_host_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points, supernode_idx = cloud(kind, 600, 3), np.arange(0, 600, 11)
    monkeypatch.setattr(neighbors_host, "_CHUNK_PAIRS", 10)
    monkeypatch.setattr(neighbors_host, "_FIRST_POINTS", 3)
    found = radius_neighbors_host(points, supernode_idx, radius=0.3, max_degree=12)
    assert as_lists(found, 12) == brute_force_radius(points, supernode_idx, 0.3, 12)
    found = nearest_neighbors_host(points, supernode_idx, k=12)
    assert as_lists(found, 12) == brute_force_nearest(points, supernode_idx, 12)


@pytest.mark.parametrize("search", [partial(radius_neighbors, radius=0.25), partial(nearest_neighbors, k=32)])
def test_the_distance_matrix_is_never_in_memory(search: Any) -> None:
    points = jax.ShapeDtypeStruct((2, 65_536, 3), jnp.float32)
    supernode_idx = jax.ShapeDtypeStruct((2, 16_384), jnp.int32)
    analysis = jax.jit(search).lower(points, supernode_idx).compile().memory_analysis()
    # Even at one bit a pair, the matrix of one sample would take 128 MiB.
    assert analysis.temp_size_in_bytes < 32 * 2**20


@where
@pytest.mark.parametrize("radius", [-1e-9, -1.5, NAN])
def test_a_radius_that_is_negative_or_no_number_is_refused(where: str, radius: float) -> None:
    with pytest.raises(ValueError, match=f"radius must be a number of at least 0, got {radius}"):
        RADIUS[where](np.zeros((4, 2), np.float32), np.array([0]), radius=radius, max_degree=3)


@where
@pytest.mark.parametrize("slots", [0, -2])
def test_less_than_one_slot_is_refused(where: str, slots: int) -> None:
    points, supernode_idx = np.zeros((4, 2), np.float32), np.array([0])
    with pytest.raises(ValueError, match=f"max_degree must be at least 1, got {slots}"):
        RADIUS[where](points, supernode_idx, radius=1, max_degree=slots)
    with pytest.raises(ValueError, match=f"k must be at least 1, got {slots}"):
        NEAREST[where](points, supernode_idx, k=slots)


@every_search
@pytest.mark.parametrize(
    ("points_shape", "supernode_shape", "expected"),
    [
        ((4,), (2,), "expected points"),
        ((4, 2), (), "expected points"),
        ((4, 2), (1, 2), "expected points"),
        ((1, 4, 2), (2,), "expected points"),
        ((1, 1, 4, 2), (1, 1, 2), "expected points"),
        ((3, 4, 2), (2, 2), "the same batch size"),
        ((4, 0), (2,), "at least one coordinate"),
    ],
)
def test_shapes_that_do_not_fit_are_quoted(
    search: Any, points_shape: tuple[int, ...], supernode_shape: tuple[int, ...], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        search(np.zeros(points_shape, np.float32), np.zeros(supernode_shape, np.int32))
    assert f"got points {points_shape} and supernode_idx {supernode_shape}" in str(error.value)


@every_search
@pytest.mark.parametrize(("points_dtype", "supernode_dtype"), [(np.int32, np.int32), (np.float32, np.float32)])
def test_wrong_dtypes_are_quoted(search: Any, points_dtype: type, supernode_dtype: type) -> None:
    with pytest.raises(ValueError, match=f"got points {np.dtype(points_dtype)}"):
        search(np.zeros((4, 2), points_dtype), np.zeros(2, supernode_dtype))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("method", ["radius", "nearest"])
def test_neighbors_in_float64_keep_their_digits_far_from_the_origin(method, on_host):
    points = np.random.default_rng(0).uniform(0, 1, (200, 3))
    points[7] = np.nan
    options = {"radius": 0.2, "max_degree": 8} if method == "radius" else {"k": 5}
    search = {
        ("radius", False): radius_neighbors,
        ("radius", True): radius_neighbors_host,
        ("nearest", False): nearest_neighbors,
        ("nearest", True): nearest_neighbors_host,
    }[method, on_host]
    here, there = (search(points + offset, np.arange(50), **options) for offset in (0.0, np.array([4e5, 5e6, 0.0])))
    np.testing.assert_array_equal(here.idx, there.idx)
    np.testing.assert_array_equal(here.mask, there.mask)
