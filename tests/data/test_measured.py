import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.data import cases as cases_module
from emmi_jax.data import measured as measured_module
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.folder_cases import FolderCases
from emmi_jax.data.load import load_dataset, make_normalizer
from emmi_jax.data.measured import CACHE_FILE
from emmi_jax.data.report import Report
from tests.data.case_folders import volume_dataset, write_case_folder
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings

SPLIT = {"train": ["run_0", "run_2"], "test": ["run_1"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "cars"
    path.mkdir()
    for number in range(3):
        write_case_folder(path / f"run_{number}")
        volume_dataset(8 + number).save(path / f"run_{number}" / "volume_1.vtu")
    (path / "split.json").write_text(json.dumps(SPLIT))
    return path


def normalizer(data: Path):
    settings = tiny_settings(data)
    return make_normalizer(settings, load_dataset(settings))


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Counts how often a case was measured."""
    calls, measure = [], cases_module.measure
    monkeypatch.setattr(cases_module, "measure", lambda chunks: (calls.append(1), measure(chunks))[1])
    return calls


def test_a_case_is_measured_once_until_its_files_change(data, measured):
    first = normalizer(data)
    assert (normalizer(data), len(measured)) == (first, 3)
    (data / "split.json").write_text(json.dumps({"train": ["run_0", "run_1"], "test": ["run_2"]}))
    assert normalizer(data) != first
    assert len(measured) == 3
    os.utime(data / "run_0" / "volume_1.vtu", (1, 1))
    last = normalizer(data)
    assert len(measured) == 4
    text = (data / CACHE_FILE).read_text()
    (data / CACHE_FILE).write_text(text.replace("7", "6"))  # damaged
    assert normalizer(data) == last
    assert len(measured) == 7
    assert json.loads((data / CACHE_FILE).read_text()) == json.loads(text)


def test_processes_measure_the_same(data, monkeypatch, measured):
    expected = normalizer(data)
    (data / CACHE_FILE).unlink()
    monkeypatch.setattr(measured_module, "_SMALL_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert normalizer(data) == expected
    assert len(measured) == 3  # those of this process


def test_what_was_measured_before_an_interruption_is_kept(data, monkeypatch, measured):
    read, reading = FolderCases.measure, []

    def interrupted(self, name):
        reading.append(name)
        if len(reading) == 2:
            raise KeyboardInterrupt
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(FolderCases, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            normalizer(data)
    normalizer(data)
    assert len(measured) == 3


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_case_that_is_only_tested_on_is_checked_before_training(part, data):
    (data / "split.json").write_text(json.dumps({"train": ["run_0"], "test": ["run_2"]} | {part: ["run_1"]}))
    volume = volume_dataset(9)
    volume.cell_data["U"][3, 1] = np.nan
    volume.save(data / "run_1/volume_1.vtu")
    with pytest.raises(ValueError, match=r"run_1/volume_1\.vtu: 1 of \d+ values of 'U' are NaN or infinite"):
        normalizer(data)


@pytest.mark.parametrize(("part", "is_resumed"), [("train", False), ("validation", True), ("test", False)])
def test_cases_are_read_before_training_under_given_statistics(part, is_resumed, data, tmp_path):
    split = {"train": ["run_0"], "test": ["run_2"]}
    (data / "split.json").write_text(json.dumps(split | {part: [*split.get(part, []), "run_1"]}))
    statistics = tmp_path / "statistics.json"
    statistics.write_text(json.dumps(normalizer(data).to_dict()))
    settings = tiny_settings(data, steps=1, statistics=str(statistics), **NO_GEOMETRY)
    if is_resumed:
        run(settings, tmp_path / "run")
    (data / CACHE_FILE).unlink()
    volume = volume_dataset(9)
    volume.cell_data["U"][3, 1] = np.nan
    volume.save(data / "run_1/volume_1.vtu")
    with pytest.raises(ValueError, match=r"run_1/volume_1\.vtu: 1 of \d+ values of 'U' are NaN or infinite"):
        run(settings, tmp_path / "run", resume=is_resumed)
    assert (tmp_path / "run").exists() == is_resumed


def test_large_training_cases_are_not_read_under_given_statistics_unless_they_were_before(data, monkeypatch, measured):
    dataset, warned = load_dataset(tiny_settings(data)), list[str]()
    monkeypatch.setattr(measured_module, "_SMALL_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    report = Report()
    monkeypatch.setattr(report, "warn", warned.extend, raising=False)
    dataset.check_cases(report)
    assert len(measured) == 1  # run_1, to test on
    assert any("2 training cases are large" in line for line in warned)
    normalizer(data)
    warned.clear()
    dataset.check_cases(report)
    assert (len(measured), warned) == (3, [])


def test_a_held_out_case_of_too_few_points_is_named_though_it_was_measured_before(data):
    normalizer(data)
    settings = tiny_settings(data, num_anchors=400)
    with pytest.raises(ValueError, match=r"run_\d: volume: \d+ points are too few: a step draws 404"):
        make_normalizer(settings, load_dataset(settings))


@pytest.mark.parametrize("protect", [lambda path: path.chmod(0o555), lambda path: (path / CACHE_FILE).mkdir()])
def test_the_cache_of_the_user_serves_a_folder_that_cannot_be_written_to(
    protect, data, tmp_path, monkeypatch, measured
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    protect(data)
    first = normalizer(data)
    assert (normalizer(data), len(measured)) == (first, 3)
    assert [file.name[:11] for file in (tmp_path / "cache" / "emmi_jax").iterdir()] == ["statistics-"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"version": 1}', '{"version": 1, "cases": {"run_0": {"key": 1}}}', '{"version": 0}']
)
def test_a_cache_that_cannot_be_read_counts_as_none(content, data, measured):
    first = normalizer(data)
    (data / CACHE_FILE).write_text(content)
    assert (normalizer(data), len(measured)) == (first, 6)


def test_a_case_with_other_fields_is_named(data, measured):
    normalizer(data)
    case = shutil.copytree(data / "run_2", data / "run_3")
    fields = json.loads((case / "fields.json").read_text())
    fields["volume"] = {"velocity": "U"}
    (case / "fields.json").write_text(json.dumps(fields))
    (data / "split.json").write_text(json.dumps({"train": ["run_0", "run_3"], "test": ["run_1"]}))
    for _ in range(2):
        with pytest.raises(ValueError, match="run_3: has the fields"):
            normalizer(data)


def test_a_run_is_resumed_without_measuring_and_changed_data_are_noticed(data, tmp_path, monkeypatch):
    settings = tiny_settings(data, steps=1, **NO_GEOMETRY)
    run(settings, tmp_path / "run")
    (data / CACHE_FILE).unlink()
    monkeypatch.setattr(CaseCollection, "measure", None)
    os.utime(data / "run_0" / "volume_1.vtu", (1, 1))
    run(settings, tmp_path / "run", resume=True)
    volume_dataset(9).save(data / "run_0" / "volume_1.vtu")
    with pytest.raises(ValueError, match="not the data that the run was started with, or they have changed since"):
        run(settings, tmp_path / "run", resume=True)
