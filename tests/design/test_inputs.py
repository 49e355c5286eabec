"""Derivatives past features, and by named conditions, of a model with every option of the reference's main."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emmi_jax.config import SupernodePoolingConfig
from emmi_jax.data.normalization import FieldScale
from emmi_jax.design import drag, evaluate, mean, sensitivity
from emmi_jax.design.morphed import MorphedCase
from emmi_jax.design.morphs import Lattice
from tests.design.cases import VOLUME, build, double_precision, ellipsoid, in_double
from tests.design.test_exactness import DIRECTION, STREAM, central_difference

SURFACE = ellipsoid()
MAIN: dict[str, Any] = {
    "norm": "rms",
    "qk_norm": True,
    "bias": False,
    "eps": 1e-4,
    "layer_scale": 0.5,
    "mlp_hidden_dim": 10,
    "readout_norm": True,
    "decoder_depths": {"surface": 1},
    "conditioning_dims": {"inflow": 1, "design": 2},
    "geometry_conditioning_dims": {"design": 2},
    "feature_dims": {"surface": 2, "volume": 1},
    "supernode_pooling": SupernodePoolingConfig(
        radius=None, k=3, message_mode="linear", bias=False, input_features_dim=1
    ),
}
RNG = np.random.default_rng(7)
FEATURES = {
    "surface": RNG.normal(size=(SURFACE.num_cells, 2)),
    "geometry": {"part": RNG.normal(size=SURFACE.num_cells)},
}
CONDITION = {"inflow": np.array([0.3]), "design": np.array([-0.4, 0.8])}
POINTS = VOLUME._replace(features=RNG.normal(size=(len(VOLUME.position), 1)))
OPTIONS: dict[str, Any] = {"points": {"volume": POINTS}, "features": FEATURES, "condition": CONDITION, "chunk_size": 24}
ALONG = np.array([0.006, -0.01])
"""A direction of the condition, short beside the shortest of the waves that embed it."""
FUNCTIONAL = drag(**STREAM) + mean("volume", "velocity")


def test_gradients_of_every_option_of_main_are_exact() -> None:
    with double_precision():
        surrogate = in_double(build(**MAIN))
        result = sensitivity(surrogate, SURFACE, FUNCTIONAL, **OPTIONS)
        options = {**OPTIONS, "draws": result.draws}

        def moved(step: float) -> float:
            return evaluate(surrogate, SURFACE.moved(SURFACE.vertices + step * DIRECTION), FUNCTIONAL, **options)

        def under(step: float) -> float:
            condition = {**CONDITION, "design": CONDITION["design"] + step * ALONG}
            return evaluate(surrogate, SURFACE, FUNCTIONAL, **{**options, "condition": condition})

        assert (result.vertices * DIRECTION).sum() == pytest.approx(central_difference(moved), rel=1e-6)
        assert isinstance(result.condition, dict)
        assert result.condition["design"] @ ALONG == pytest.approx(central_difference(under), rel=1e-6)


def test_a_morphed_case_predicts_what_the_surrogate_does_with_these_features() -> None:
    surrogate = build(**MAIN)
    lattice = Lattice.around(SURFACE, (2, 2, 2))
    case = MorphedCase(surrogate, SURFACE, FUNCTIONAL, lattice, options={**OPTIONS, "seed": 4})
    assert case.draws is not None
    inputs = case.draws.positions(SURFACE, None)
    encoded = surrogate.encode(**inputs, condition=CONDITION)
    queries = {"surface": SURFACE.centers()}
    expected = encoded.predict(queries, query_features={"surface": FEATURES["surface"]})["surface_pressure"]
    np.testing.assert_allclose(case.fields(lattice.zeros())["pressure"], expected, rtol=1e-4, atol=1e-5)
    others = {**OPTIONS, "features": {**FEATURES, "surface": FEATURES["surface"] + 1}}
    assert case.value(lattice.zeros()) != pytest.approx(evaluate(surrogate, SURFACE, FUNCTIONAL, **others, seed=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {}}, "the model takes features of the cells of the surface, as surface: part"),
        ({"features": {**FEATURES, "wake": FEATURES["surface"]}}, r"features of \['wake'\] are given"),
        ({"points": {"volume": VOLUME}}, "the model takes features of the anchor volume: part"),
        ({"geometry": SURFACE}, "the model takes features of the geometry, which the surface has"),
    ],
)
def test_features_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(build(**MAIN), SURFACE, FUNCTIONAL, **{**OPTIONS, **changes})


def test_features_that_depend_on_the_shape_are_refused_with_the_reason() -> None:
    surrogate = build(**MAIN)
    scale = FieldScale(mean=(0.0, 0.0), std=(1.0, 1.0))
    normalizer = replace(surrogate.normalizer, features={**surrogate.normalizer.features, "surface": {"normal": scale}})
    surrogate = replace(surrogate, normalizer=normalizer)
    with pytest.raises(ValueError, match="the model takes 'normal' of 'surface', which depends on the shape"):
        evaluate(surrogate, SURFACE, FUNCTIONAL, **OPTIONS)
