"""What supernode pooling means, and what it refuses."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emmi_jax import AttentionConfig, Geometry, SupernodePooling, SupernodePoolingConfig
from emmi_jax.layers.supernode_pooling import check_geometry
from emmi_jax.ops.neighbors import Neighbors
from emmi_jax.ops.sincos import sincos_embedding
from tests.cases import random_array, random_params
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
DIM, BATCH, NUM_POINTS, FEATURES_DIM = 20, 2, 12, 3
MODES = ("abspos", "relpos", "absrelpos")
SUPERNODES = jnp.array([[3, 0, 11, 7], [1, 2, 5, 9]])


TREES = {
    ("abspos", None): {"message_0": 2 * DIM, "message_2": DIM},
    ("relpos", None): {"message_0": DIM, "message_2": DIM},
    ("absrelpos", None): {"message_0": 3 * DIM, "message_2": DIM},
    ("abspos", 3): {
        "message_0": 2 * DIM, "message_2": DIM, "feature_projection": 3, "feature_down_projection": 2 * DIM
    },
    ("relpos", 3): {"message_0": DIM, "message_2": DIM, "feature_projection": 3, "feature_down_projection": 3 * DIM},
}  # fmt: skip


def pooling(*, dtype: Any = None, dim: int = DIM, max_wavelength: float = 10_000, **options: Any) -> SupernodePooling:
    """Sums over the three nearest points unless told otherwise, without what follows the sum."""
    options = {"radius": None, "k": None, "aggregation": "sum", "readd_supernode_pos": False} | options
    options["max_wavelength"] = max_wavelength
    if options["radius"] is None and options["k"] is None:
        options["k"] = 3
    config = AttentionConfig(dim=dim, num_heads=1, dtype=dtype)
    return SupernodePooling(dim, SupernodePoolingConfig(**options), config)


def points(num_axes: int = 3, scale: float = 3.0) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(scale * rng.random((BATCH, NUM_POINTS, num_axes), np.float32))


def features() -> jax.Array:
    return random_array(np.random.default_rng(1), (BATCH, NUM_POINTS, FEATURES_DIM))


@functools.partial(jax.jit, static_argnames=("module",))
def run(module: SupernodePooling, variables: Any, geometry: Geometry) -> jax.Array:
    return module.apply(variables, geometry)


@functools.cache
def variables_of(module: SupernodePooling) -> Any:
    given = features() if module.pooling.input_features_dim else None
    return random_params(module, Geometry(points(), SUPERNODES, features=given))


def pooled(module: SupernodePooling, position: Any = None, supernode_idx: Any = SUPERNODES, **kwargs: Any) -> jax.Array:
    position = points() if position is None else position
    return run(module, variables_of(module), Geometry(position, supernode_idx, **kwargs))


def neighborhood(*lists: list[int]) -> Neighbors:
    """The same neighbours of each supernode in every sample, padded with index 0."""
    width = max(len(entries) for entries in lists)
    idx = np.array([entries + [0] * (width - len(entries)) for entries in lists], np.int32)
    mask = np.array([[True] * len(entries) + [False] * (width - len(entries)) for entries in lists])
    return Neighbors(*(jnp.asarray(np.broadcast_to(a, (BATCH, *a.shape))) for a in (idx, mask)))


# Neighbourhoods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_supernode_without_neighbors_pools_to_zero(aggregation):
    alone = neighborhood([1, 2], [], [4], [])
    y = pooled(pooling(aggregation=aggregation), neighbors=alone)
    np.testing.assert_array_equal(y[:, [1, 3]], 0)
    assert np.abs(y[:, [0, 2]]).max(axis=-1).min() > 0


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_supernode_without_neighbors_keeps_its_position_and_has_finite_gradients(aggregation):
    module = pooling(aggregation=aggregation, readd_supernode_pos=True, max_wavelength=300.0)
    alone = neighborhood([1, 2], [], [4], [])
    variables = variables_of(module)

    def total(variables: Any, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = module.apply(variables, Geometry(position, SUPERNODES, alone))
        return y.sum(), y

    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, y), gradients = grad(variables, points())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    kernel, bias = variables["params"]["proj"]["kernel"], variables["params"]["proj"]["bias"]
    supernodes = sincos_embedding(jnp.take_along_axis(points(), SUPERNODES[..., None], axis=1), DIM, 300.0)
    assert_close(y[:, [1, 3]], (supernodes @ kernel[DIM:] + bias)[:, [1, 3]], FORWARD)


def test_supernode_whose_index_lies_outside_serves_as_padding():
    outside = SUPERNODES.at[:, 1].set(NUM_POINTS).at[:, 2].set(-1)
    module = pooling(radius=1.0)
    y = pooled(module, supernode_idx=outside)
    np.testing.assert_array_equal(y[:, [1, 2]], 0)
    assert_close(y[:, [0, 3]], pooled(module)[:, [0, 3]], FORWARD)


def test_masked_supernode_serves_as_padding():
    module = pooling(radius=1.0)
    mask = jnp.array([[True, True, False, True], [True, False, False, True]])
    np.testing.assert_array_equal(pooled(module, mask=mask), jnp.where(mask[..., None], pooled(module), 0))


def test_neighbor_whose_index_lies_outside_counts_as_masked():
    module = pooling(aggregation="mean")
    outside = neighborhood([1, NUM_POINTS], [4], [-1, 6], [-1, NUM_POINTS])
    expected = pooled(module, neighbors=neighborhood([1], [4], [6], []))
    assert_close(pooled(module, neighbors=outside), expected, FORWARD)


@pytest.mark.parametrize(
    ("mode", "features_dim", "given"),
    [*((*case, True) for case in TREES), ("absrelpos", None, False)],
)
def test_absent_points_change_neither_the_output_nor_any_gradient(mode, features_dim, given):
    options = {"aggregation": "mean", "readd_supernode_pos": True, "input_features_dim": features_dim}
    module = pooling(mode=mode, radius=1.5, **options)
    neighbors = neighborhood([1, 2], [3], [4, 5], []) if given else None
    variables = variables_of(module)
    whole = Geometry(points(), SUPERNODES, neighbors, features() if features_dim else None)
    # The first point is what masked neighbours point to; the last supernode is absent as well.
    position, given_features = (
        None if a is None else jnp.pad(a, ((0, 0), (1, 1), (0, 0)), constant_values=np.nan)
        for a in (whole.position, whole.features)
    )
    shifted = None if neighbors is None else Neighbors(jnp.where(neighbors.mask, neighbors.idx + 1, 0), neighbors.mask)
    if shifted is not None:
        idx, mask = (jnp.pad(a, ((0, 0), (0, 1), (0, 0))) for a in shifted)
        shifted = Neighbors(idx, mask.at[:, -1].set(True))
    supernode_idx = jnp.pad(SUPERNODES + 1, ((0, 0), (0, 1)), constant_values=NUM_POINTS + 1)
    padded = Geometry(position, supernode_idx, shifted, given_features)

    @jax.jit
    def gradients(geometry: Geometry) -> Any:
        def loss(params: Any, position: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = module.apply({"params": params}, geometry._replace(position=position))[:, :4]
            return (y**2).sum(), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], geometry.position)

    (params, position), y = gradients(padded)
    (expected_params, expected_position), expected = gradients(whole)
    assert_close(y, expected, FORWARD)
    jax.tree.map(functools.partial(assert_close, tolerance=TOLERANCES["float32"].gradient), params, expected_params)
    np.testing.assert_array_equal(position[:, [0, -1]], 0)
    assert_close(position[:, 1:-1], expected_position, TOLERANCES["float32"].gradient)


def test_with_fewer_points_than_k_all_of_them_are_neighbors():
    everyone = neighborhood(*[list(range(NUM_POINTS))] * 4)
    expected = pooled(pooling(aggregation="mean"), neighbors=everyone)
    assert_close(pooled(pooling(k=2 * NUM_POINTS, aggregation="mean")), expected, FORWARD)


@pytest.mark.parametrize(("aggregation", "factor"), [("sum", 2), ("mean", 1)])
def test_duplicate_points_count_twice_in_a_sum_and_nothing_in_a_mean(aggregation, factor):
    position = points()
    twice = jnp.concatenate([position, position], axis=1)
    module = pooling(mode="absrelpos", radius=1.5, aggregation=aggregation)
    assert_close(pooled(module, twice), factor * pooled(module), FORWARD)


@pytest.mark.parametrize("options", [{"k": 4}, {"radius": 1.5}])
def test_order_of_the_points_does_not_matter(options):
    order = np.random.default_rng(2).permutation(NUM_POINTS)
    module = pooling(mode="abspos", readd_supernode_pos=True, **options)
    moved = jnp.asarray(order.argsort()[np.asarray(SUPERNODES)])
    assert_close(pooled(module, points()[:, order], moved), pooled(module), FORWARD)


def test_order_and_padding_of_given_neighbors_do_not_matter():
    module = pooling(aggregation="mean")
    first = pooled(module, neighbors=neighborhood([1, 2, 3], [4], [5, 6], [7, 0]))
    second = pooled(module, neighbors=neighborhood([3, 1, 2], [4], [6, 5], [0, 7]))
    assert_close(second, first, FORWARD)


def test_given_neighbors_replace_the_search():
    position, idx = np.asarray(points(), np.float64), np.asarray(SUPERNODES)
    centers = np.take_along_axis(position, idx[..., None], axis=1)
    nearest = np.linalg.norm(centers[:, :, None] - position[:, None], axis=-1).argsort(axis=-1)[..., :3]
    given = Neighbors(jnp.asarray(nearest, jnp.int32), jnp.ones(nearest.shape, bool))
    module = pooling(k=3)
    assert_close(pooled(module, neighbors=given), pooled(module), FORWARD)


def test_of_too_many_points_within_the_radius_the_lowest_indices_stay():
    lowest = neighborhood(*[[0, 1, 2, 3, 4]] * 4)
    assert_close(pooled(pooling(radius=100.0, max_degree=5)), pooled(pooling(radius=100.0), neighbors=lowest), FORWARD)


def test_points_outside_the_neighborhood_do_not_matter():
    module, near = pooling(), neighborhood([1, 2], [1], [4, 5], [4])
    outside = [p for p in range(NUM_POINTS) if p not in (1, 2, 4, 5)]
    supernodes = jnp.broadcast_to(jnp.array([1, 2, 4, 5]), (BATCH, 4))
    changed = points().at[:, jnp.array(outside)].add(7.0)
    before = pooled(module, supernode_idx=supernodes, neighbors=near)
    np.testing.assert_array_equal(pooled(module, changed, supernodes, neighbors=near), before)


# Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_sum_is_the_mean_times_the_number_of_neighbors(mode):
    near = neighborhood([1, 2, 3, 4], [5], [6, 7], [8, 9, 10])
    total, mean = (pooled(pooling(mode=mode, aggregation=a), neighbors=near) for a in ("sum", "mean"))
    assert_close(total, mean * jnp.array([4.0, 1.0, 2.0, 3.0])[:, None], FORWARD)


def test_relative_messages_do_not_notice_a_translation_but_absolute_ones_do():
    # Positions of few digits move without rounding.
    position = jnp.round(points() * 64) / 64
    for mode, notices in (("relpos", False), ("abspos", True), ("absrelpos", True)):
        module = pooling(mode=mode)
        difference = np.abs(pooled(module, position + 16) - pooled(module, position)).max()
        assert (difference > 1e-2) == notices


@pytest.mark.parametrize("mode", ["relpos", "absrelpos"])
def test_gradients_by_positions_are_finite_where_distances_are_zero(mode):
    module = pooling(mode=mode, radius=2.0)
    position = points().at[:, 4].set(points()[:, 3])
    grad = jax.jit(jax.grad(lambda x: module.apply(variables_of(module), Geometry(x, SUPERNODES)).sum()))(position)
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() > 0


@pytest.mark.parametrize("mode", ["abspos", "relpos"])
def test_features_change_only_where_they_are_seen(mode):
    module = pooling(mode=mode, input_features_dim=FEATURES_DIM)
    near = neighborhood([1], [2], [4, 1], [6])
    supernodes = jnp.broadcast_to(jnp.array([8, 9, 10, 1]), (BATCH, 4))
    before, after = (
        pooled(module, supernode_idx=supernodes, neighbors=near, features=given)
        for given in (features(), features().at[:, 1].add(1.0))
    )
    changes = np.abs(after - before).max(axis=(0, 2)) > 1e-3
    # Point 1 is a neighbour of the first and the third supernode, and the fourth supernode itself.
    np.testing.assert_array_equal(changes, [True, False, True, True])


@pytest.mark.parametrize("readd_supernode_pos", [False, True])
@pytest.mark.parametrize(("mode", "features_dim"), TREES)
def test_parameters_have_the_documented_names_and_shapes(mode, features_dim, readd_supernode_pos):
    module = pooling(mode=mode, input_features_dim=features_dim, readd_supernode_pos=readd_supernode_pos)
    expected = TREES[mode, features_dim] | ({"proj": 2 * DIM} if readd_supernode_pos else {})
    expected = {f"{name}/kernel": (size, DIM) for name, size in expected.items()} | {
        f"{name}/bias": (DIM,) for name in expected
    }
    assert jax.tree.map(np.shape, flatten_dict(variables_of(module)["params"], sep="/")) == expected


def test_points_may_have_two_axes():
    module = pooling(radius=1.0, readd_supernode_pos=True)
    assert pooled(module, points(2)).shape == (BATCH, 4, DIM)


def test_batch_samples_do_not_see_one_another():
    module = pooling(radius=1.5)
    together = pooled(module)
    flipped = pooled(module, points()[::-1], SUPERNODES[::-1])
    assert_close(flipped, together[::-1], FORWARD)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_stays_close_to_float32_with_float32_parameters(mode):
    options = {"mode": mode, "aggregation": "mean", "readd_supernode_pos": True}
    half, module = pooling(dtype="bfloat16", **options), pooling(**options)
    near = neighborhood([1, 2, 3], [4], [5, 6], [])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables_of(half))} == {"float32"}
    y = pooled(half, neighbors=near)
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), pooled(module, neighbors=near), TOLERANCES["bfloat16"].forward)


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features_dim", "given", "message"),
    [
        (3, None, "input_features_dim=3 but geometry.features are missing"),
        (None, features(), "input_features_dim=None but geometry.features are given"),
        (
            3,
            features()[..., :2],
            r"features must be floating point of shape \[2, 12, 3\], got float32 of shape \[2, 12, 2\]",
        ),
        (
            3,
            features()[:, :5],
            r"features must be floating point of shape \[2, 12, 3\], got float32 of shape \[2, 5, 3\]",
        ),
        (3, features()[0], r"features must be floating point of shape \[2, 12, 3\], got float32 of shape \[12, 3\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(features_dim, given, message):
    module = pooling(input_features_dim=features_dim)
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), Geometry(points(), SUPERNODES, features=given))


@pytest.mark.parametrize(("mode", "needed"), [("abspos", 6), ("relpos", 8), ("absrelpos", 8)])
def test_too_few_channels_for_the_embedding_are_refused(mode, needed):
    args = (jax.random.key(0), Geometry(points(), SUPERNODES))
    with pytest.raises(ValueError, match=f"{needed - 1} channels are too few for . position axes; needed: {needed}"):
        jax.eval_shape(pooling(mode=mode, dim=needed - 1).init, *args)
    y, _ = jax.eval_shape(pooling(mode=mode, dim=needed).init_with_output, *args)
    assert y.shape == (BATCH, 4, needed)


NEAR = neighborhood([1, 2], [3], [4, 5], [6])
REFUSED = {
    "mask that would broadcast": (
        {"neighbors": NEAR._replace(mask=NEAR.mask[..., :1])},
        r"neighbors.mask must be bool of shape \[2, 4, 2\], got bool of shape \[2, 4, 1\]",
    ),
    "mask of numbers": ({"neighbors": NEAR._replace(mask=NEAR.idx)}, "neighbors.mask must be bool .*, got int32"),
    "neighbor outside": (
        {"neighbors": NEAR._replace(idx=NEAR.idx.at[1, 2, 1].set(NUM_POINTS))},
        r"neighbors.idx must lie in \[0, 12\) where it is not masked, got 12",
    ),
    "negative neighbor": ({"neighbors": NEAR._replace(idx=NEAR.idx.at[0, 0, 0].set(-1))}, "neighbors.idx .* got -1"),
    "supernode outside": ({"supernode_idx": SUPERNODES.at[0, 0].set(12)}, r"supernode_idx .* in \[0, 12\) .* got 12"),
    "negative supernode": ({"supernode_idx": SUPERNODES.at[1, 3].set(-1)}, "supernode_idx .* got -1"),
    "supernodes of numbers": (
        {"supernode_idx": SUPERNODES.astype(float)},
        "supernode_idx must be integer .*, got float32",
    ),
    "supernodes of another batch": ({"supernode_idx": SUPERNODES[:1]}, r"shape \[2, supernodes\], got .* \[1, 4\]"),
    "supernode mask of another shape": (
        {"mask": jnp.ones((BATCH, 1), bool)},
        r"geometry.mask must be bool of shape \[2, 4\], got bool of shape \[2, 1\]",
    ),
    "bfloat16": ({"position": points().astype(jnp.bfloat16)}, "position must be float32 .*, got bfloat16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_geometry_that_does_not_fit_is_refused(name):
    changes, message = REFUSED[name]
    geometry = Geometry(points(), SUPERNODES)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        pooling().apply(variables_of(pooling()), geometry)


def test_index_of_a_masked_supernode_or_neighbor_may_be_anything():
    outside = NEAR._replace(idx=jnp.where(NEAR.mask, NEAR.idx, -1))
    mask = jnp.ones((BATCH, 4), bool).at[0, 1].set(False)
    check_geometry(Geometry(points(), SUPERNODES.at[0, 1].set(-1), outside, mask=mask))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_small_indices_reach_clouds_that_are_larger_than_their_type(dtype, given):
    rng = np.random.default_rng(0)
    position, idx = rng.uniform(0, 10, (1, 300, 3)).astype(np.float32), np.arange(120)[None]
    neighbors = Neighbors(idx[..., None] + np.arange(3), np.ones((1, 120, 3), bool)) if given else None
    wide = Geometry(position, idx.astype(np.int32), neighbors)
    narrow = jax.tree.map(lambda a: a if a.dtype.kind in "fb" else a.astype(dtype), wide)
    layer = pooling(k=3)
    variables = random_params(layer, wide)
    np.testing.assert_array_equal(layer.apply(variables, narrow), layer.apply(variables, wide))
