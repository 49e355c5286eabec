"""Calibrations that are interrupted, written at once, or by another version."""

import json
import os

import numpy as np
import pytest

from emmi_jax.data.familiarity import Description, Familiarity, fit_familiarity
from emmi_jax.files.atomic import UnwritableFileError, atomic_path, sealed
from emmi_jax.runs import calibration
from emmi_jax.runs.calibration import FILE, Calibration, read_calibration, read_familiarity, write_calibration


def calibrated(run, share):
    found = Calibration(
        parameters="a",
        data="cases",
        split="test",
        cases=("b",),
        repeats=1,
        share=share,
        known_forces=None,
        familiarity=None,
        scores={"volume/velocity": (1.0, float("inf"))},
    )
    rng = np.random.default_rng(round(100 * share))
    cases = [Description(rng.normal(size=2), rng.normal(size=4)) for _ in range(35)]
    familiarity = fit_familiarity(cases[:30], cases[30:])
    return write_calibration(run, found, familiarity)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "parameters_of", lambda surrogate: "a")
    calibrated(tmp_path, 0.5)
    return tmp_path


def content(run):
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_an_interrupted_calibration_leaves_the_one_before(run, monkeypatch):
    before = read_familiarity(run, None)
    replace = os.replace

    def interrupt(source, target):
        if target.name == FILE:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrated(run, 0.9)
    monkeypatch.undo()
    monkeypatch.setattr(calibration, "parameters_of", lambda surrogate: "a")
    assert read_calibration(run, None).share == 0.5
    np.testing.assert_equal(read_familiarity(run, None).to_arrays(), before.to_arrays())


def test_another_calibration_replaces_all_of_it(run):
    names = set(content(run))
    calibrated(run, 0.9)
    assert len(names) == len(content(run)) == 2
    assert read_calibration(run, None).share == 0.9
    assert read_familiarity(run, None) is not None


def test_a_second_writer_changes_nothing(run):
    before = content(run)
    with pytest.raises(UnwritableFileError, match="another process writes it"), atomic_path(run / FILE):
        calibrated(run, 0.9)
    assert content(run) == before


@pytest.mark.parametrize("change", [{"later": 1}, {"scores": [1.0]}, {"cases": None}])
def test_a_calibration_of_another_version_says_so(change, run):
    values = json.loads((run / FILE).read_text()) | change
    del values["checksum"]
    (run / FILE).write_text(json.dumps(sealed(values)))
    with pytest.raises(ValueError, match="of another version of emmi_jax: calibrate the run again"):
        read_calibration(run, None)


def test_distances_of_another_version_say_so(run, monkeypatch):
    monkeypatch.setattr(Familiarity, "to_arrays", lambda found: {"center": found.center})
    calibrated(run, 0.5)
    with pytest.raises(ValueError, match="of another version of emmi_jax: calibrate the run again"):
        read_familiarity(run, None)
