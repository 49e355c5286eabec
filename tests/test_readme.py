"""The README and the pages: every Python block runs, every command parses, every link leads somewhere."""

import json
import re
import runpy
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import typer.main

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, SupernodePoolingConfig
from emmi_jax.cli import app
from emmi_jax.config import Sampling
from emmi_jax.config.mesh_dataset import MeshDataset
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.models.init import init_params
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.training.plan import default_settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = "(?:sh|console|text)"


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page, with the line each starts in."""
    text = page.read_text()
    matches = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in matches]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, language)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: a run, and positions in a file."""
    folder = tmp_path_factory.mktemp("workspace")
    fields = {"surface": {"pressure": 1}, "volume": {"velocity": 3}}
    model = AbUptConfig(
        dim=24,
        num_heads=2,
        fields=fields,
        physics_blocks=("perceiver", "joint"),
        decoder_depths={},
        geometry_depth=0,
        mlp_ratio=1,
        supernode_pooling=SupernodePoolingConfig(radius=None, k=2),
    )
    scales = {
        branch: {name: FieldScale(mean=(0.0,) * channels, std=(1.0,) * channels) for name, channels in names.items()}
        for branch, names in fields.items()
    }
    config = RunConfig(
        model=model,
        normalizer=Normalizer(position_low=(0.0,) * 3, position_scale=1000.0, fields=scales),
        sampling=Sampling(
            num_anchors=8,
            num_queries=8,
            num_test_anchors=8,
            num_geometry_points=16,
            num_supernodes=4,
            num_test_supernodes=4,
        ),
        sources={},
    )
    run = RunDirectory.create(folder / "runs" / "car", config)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(0, {"params": init_params(AnchoredBranchedUPT(model), seed=0)})
    (folder / "runs" / "first").symlink_to(folder / "runs" / "car")
    scales = {name: ConditionScale(unit="deg", kind="angle", low=-15, high=15, std=8.7) for name in ("pitch", "yaw")}
    conditioned = replace(
        config, model=replace(model, condition_dim=2), normalizer=replace(config.normalizer, conditions=scales)
    )
    run = RunDirectory.create(folder / "runs" / "stream", conditioned)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(0, {"params": init_params(AnchoredBranchedUPT(conditioned.model), seed=0)})
    _write_run_with_features(folder / "runs" / "parts", config)
    np.save(folder / "positions.npy", _points("positions"))
    body = import_pyvista().Sphere(radius=0.3, center=(0.5, 0.5, 0.5), theta_resolution=8, phi_resolution=8)
    body.save(folder / "car.vtp")
    return folder


def _write_run_with_features(path: Path, config: RunConfig) -> None:
    fields = {"volume": config.model.fields["volume"]}
    model = replace(config.model, fields=fields, physics_blocks=("self",), feature_dims={"volume": 1})
    features = {"volume": {"distance": FieldScale(mean=(0.0,), std=(1.0,))}}
    normalizer = replace(config.normalizer.for_fields(fields), features=features)
    run = RunDirectory.create(path, replace(config, model=model, normalizer=normalizer))
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(0, {"params": init_params(AnchoredBranchedUPT(model), seed=0)})


def _points(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).uniform(size=(50, 3)).astype(np.float32)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, Any] = {name: _points(name) for name in ("geometry", "surface", "volume", "positions")}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, page, "exec"), names)
    results = jax.tree.leaves([names.get("y"), names.get("fields"), names.get("out")])
    assert results
    assert all(np.isfinite(result).all() and np.any(result) for result in results)


@pytest.mark.parametrize("page", pages_with(COMMANDS))
def test_commands_parse(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for _, script in blocks(page, COMMANDS):
        for line in script.replace("\\\n", " ").splitlines():
            _, found, arguments = line.partition("emmi-jax ")
            if found:
                name, *rest = shlex.split(arguments, comments=True)
                group.commands[name].make_context(name, rest)


@pytest.mark.parametrize("page", pages_with("(?:toml|json)"))
def test_settings_and_json_are_valid(page: Path) -> None:
    for _, text in blocks(page, "toml"):
        values = tomllib.loads(text)
        assert MeshDataset.from_dict(values) if "branches" in values else default_settings(None).updated(values)
    for _, text in blocks(page, "json"):
        assert json.loads(text)


def test_benchmarks_have_the_options_that_pages_name() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    commands = re.findall(r"python -m benchmarks\.(\w+)([^`\n]*)", text)
    assert commands
    for name, options in commands:
        source = "".join((ROOT / "benchmarks" / f"{file}.py").read_text() for file in (name, "measure"))
        assert [option for option in re.findall(r"--[\w-]+", options) if f'"{option}"' not in source] == [], name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_sections(page: Path) -> None:
    for link, section in re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), link
        assert not section or section in sections(target), f"{link}#{section}"


def sections(page: Path) -> set[str]:
    """What a link to a page can name: its titles, and the objects that it documents."""
    text = page.read_text()
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    names = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return names | set(re.findall(r"^::: (.*)", text, re.MULTILINE))


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages <= set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))


def test_every_command_has_a_section_with_its_options() -> None:
    page = (ROOT / "docs" / "command.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == [command.name for command in app.registered_commands]
    assert re.findall(r"^<!-- options of (\w+) -->$", page, re.MULTILINE) == re.findall(
        r"^## (\w+)$", page, re.MULTILINE
    )


def test_the_script_draws_the_figures_that_are_committed(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "figures"
    drawn = runpy.run_path(str(folder / "draw.py"))["draw_all"](tmp_path)
    assert sorted(path.name for path in drawn) == sorted(path.name for path in folder.glob("*.svg"))
    assert all(path.stat().st_size for path in drawn)
