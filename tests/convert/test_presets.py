import math

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig
from emmi_jax.convert import PRESETS
from tests.convert.cases import golden_ab_upt_config, model_shapes


def test_tutorial_model_has_the_published_size():
    shapes = model_shapes(PRESETS["drivaerml-tutorial"].config)
    assert sum(map(math.prod, jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)))) == 8_751_179


def test_tutorial_model_has_the_structure_of_its_golden():
    golden, preset = golden_ab_upt_config("ab_upt_tutorial_48"), PRESETS["drivaerml-tutorial"].config
    assert preset.fields == golden.fields
    assert preset.supernode_pooling.mode == golden.supernode_pooling.mode
    assert preset.physics_blocks[: len(golden.physics_blocks)] == golden.physics_blocks
    assert (preset.geometry_depth, preset.num_heads) == (golden.geometry_depth, golden.num_heads)


@pytest.mark.parametrize("name", PRESETS)
def test_configuration_survives_json(name):
    config = PRESETS[name].config
    assert AbUptConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", PRESETS)
def test_statistics_are_a_normalizer_of_every_channel(name):
    config, normalizer = PRESETS[name].config, PRESETS[name].normalizer
    assert len(normalizer.position_low) == config.num_position_axes
    channels = {
        b: {field: len(scale.std) for field, scale in scales.items()} for b, scales in normalizer.fields.items()
    }
    assert channels == config.to_dict()["fields"]


def test_tutorial_positions_become_0_to_1000_and_vorticity_is_log_scaled():
    normalizer = PRESETS["drivaerml-tutorial"].normalizer
    ends = normalizer.normalize_position([[-40.0] * 3, [80.0] * 3])
    np.testing.assert_allclose(ends, [[0.0] * 3, [1000.0] * 3], rtol=1e-6)
    log_scaled = [
        f"{b}/{field}" for b, scales in normalizer.fields.items() for field, s in scales.items() if s.log_scale
    ]
    assert log_scaled == ["volume/vorticity"]
