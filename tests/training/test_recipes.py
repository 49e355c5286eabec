import re

import numpy as np
import pytest

from emmi_jax.config import TrainSettings
from emmi_jax.convert import PRESETS
from emmi_jax.data.case_split import split_content
from emmi_jax.data.published import STATISTICS
from emmi_jax.files.atomic import read_toml
from emmi_jax.training.plan import default_settings
from emmi_jax.training.recipes import RECIPES, parse_assignment, read_recipe
from emmi_jax.training.settings import model_config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_all_that_the_data_do_not_and_leaves_nothing_to_defaults(name):
    recipe = read_recipe(name)
    is_built_in = name == "ellipsoids-stream"
    settings = TrainSettings(data=None if is_built_in else "cases").updated(recipe)
    of_data = {"position_range"} if name == "bodies" else {"statistics", "split"}
    if is_built_in:
        of_data = {"position_range", "dense_fraction", "stream_angle"}
    assert (
        set(recipe) == {"steps", "batch_size", "checkpoint_every", "loss", "sampling", "model", "optimizer"} | of_data
    )
    assert set(settings.model) - set(recipe["model"]) == (
        {"supernode_pooling"} if name == "bodies" or is_built_in else set()
    )
    for section in ("sampling", "optimizer"):
        left = set(settings.to_dict()[section]) - set(recipe[section])
        of_muon = {"companion", "companion_learning_rate", "companion_weight_decay", "muon_scale"}
        of_others = {"ema_decay", "companion_learning_rate"} if name == "bodies" or is_built_in else set()
        is_muon = recipe["optimizer"]["name"] == "muon"
        assert left <= {"method", "supernode_method", "accumulation"} | of_others | (set() if is_muon else of_muon)


def test_the_drivaerml_recipe_trains_the_published_model():
    preset = PRESETS["drivaerml-tutorial"]
    settings = TrainSettings(data="cases").updated(read_recipe("drivaerml"))
    config = model_config(settings.updated({"model.dtype": "float32"}), preset.config.fields)
    assert config.to_dict() == preset.config.to_dict() | {"dtype": "float32"}
    assert settings.sampling == preset.sampling
    optimizer = settings.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("lion", 5e-5, 0.05)
    assert (optimizer.clip_norm, optimizer.ema_decay, settings.steps) == (0.25, 0.9999, 500 * 400)
    assert optimizer.learning_rate * optimizer.final_fraction == pytest.approx(1e-6)


def test_the_recipes_of_the_reference_since_april_2026_differ_in_positions_and_optimizer():
    published, main, muon = (
        TrainSettings(data="cases").updated(read_recipe(name))
        for name in ("drivaerml", "drivaerml-2026-04", "drivaerml-2026-04-muon")
    )
    fields = PRESETS["drivaerml-tutorial"].config.fields
    config, before = model_config(main, fields), model_config(published, fields)
    assert (config.max_wavelength, config.supernode_pooling.max_wavelength) == (40_000, 10_000)
    low, high = (np.array([[x] * 3]) for x in (-40.0, 80.0))
    scales = STATISTICS[main.statistics]
    np.testing.assert_allclose(scales.normalize_position(low), 0)
    np.testing.assert_allclose(scales.normalize_position(high), 100_000)
    metres = [
        c.supernode_pooling.radius / STATISTICS[s.statistics].position_scale
        for c, s in ((config, main), (before, published))
    ]
    assert metres[0] == pytest.approx(metres[1])
    assert main.optimizer == published.optimizer
    assert muon.updated({"optimizer": main.optimizer.to_dict()}) == main
    optimizer = muon.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("muon", 0.01, 0.01)
    assert (optimizer.companion, optimizer.companion_learning_rate, optimizer.companion_weight_decay) == (
        "lion",
        5e-5,
        0.05,
    )
    assert optimizer.clip_norm == 1.0


def test_the_recipes_of_other_published_models_differ_where_they_should():
    drivaerml, ahmedml, shapenet_car = (
        TrainSettings(data="cases").updated(read_recipe(name)) for name in ("drivaerml", "ahmedml", "shapenet-car")
    )
    assert ahmedml.sampling == drivaerml.sampling
    assert ahmedml.optimizer == shapenet_car.optimizer == drivaerml.optimizer
    assert ahmedml.model["physics_blocks"] == ("perceiver", *("self", "cross") * 4, "self")
    assert ahmedml.model["decoder_depths"] == {"surface": 2, "volume": 2}
    assert {k for k in ahmedml.model if ahmedml.model[k] != drivaerml.model[k]} == {"physics_blocks", "decoder_depths"}
    assert {k for k in ahmedml.model if ahmedml.model[k] != shapenet_car.model[k]} == {"supernode_pooling"}
    assert shapenet_car.model["supernode_pooling"]["radius"] == 9.0
    sampling = shapenet_car.sampling
    assert {sampling.num_anchors, sampling.num_geometry_points, sampling.num_supernodes} == {3586}
    assert (ahmedml.steps, shapenet_car.steps) == (500 * 400, 500 * 789)
    for settings in (drivaerml, ahmedml, shapenet_car):
        train = split_content(settings.split)["train"]
        assert settings.steps == 500 * len(train)
        fields = {
            b: {n: len(s.mean) for n, s in of.items()} for b, of in STATISTICS[settings.statistics].fields.items()
        }
        assert model_config(settings, fields).has_geometry


def test_the_recipe_of_the_bodies_differs_from_the_defaults_where_cases_have_no_far_field(tmp_path):
    defaults = default_settings(str(tmp_path), ("surface", "volume"))
    near_field = {"position_range": 50.0, "model.max_wavelength": 50, "loss": "rmse", "optimizer.weight_decay": 0.1}
    assert defaults.updated(read_recipe("bodies")) == defaults.updated(near_field)


def test_an_unknown_recipe_is_refused_by_the_nearest_name():
    with pytest.raises(ValueError, match=re.escape("unknown recipe 'drivaer'; did you mean 'drivaerml'?")):
        read_recipe("drivaer")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.dim=256", ("model.dim", 256)),
        ("optimizer.learning_rate = 1e-4", ("optimizer.learning_rate", 1e-4)),
        ("optimizer.name=lion", ("optimizer.name", "lion")),
        ('model.physics_blocks=["self", "cross"]', ("model.physics_blocks", ["self", "cross"])),
        ("model.remat=true", ("model.remat", True)),
        ("model.supernode_pooling.radius=none", ("model.supernode_pooling.radius", None)),
        ("statistics=runs/a=b/config.json", ("statistics", "runs/a=b/config.json")),
    ],
)
def test_values_are_read_as_toml_or_else_as_words(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["model.dim", "=3", "", "steps=1\nbatch_size=3"])
def test_what_assigns_nothing_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}")):
        parse_assignment(text)


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused_by_its_name(content, tmp_path):
    (path := tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.toml: not TOML: "):
        read_toml(path)
