from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax.data.case_collection import CaseCollection, case_folders
from emmi_jax.data.case_folder import Case, read_case_folder
from emmi_jax.data.case_split import CaseSplit, draw_split
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.samples import Sample, SampleSizes
from emmi_jax.points import Fields, PointSet
from tests.data.case_folders import write_case_folder

SIZES = SampleSizes(
    batch_size=2,
    num_anchors=6,
    num_queries=5,
    num_test_anchors=8,
    num_geometry_points=12,
    num_supernodes=3,
    num_test_supernodes=4,
)
FOLDERS = [Path(f"run_{number}") for number in range(10)]
SPLIT = draw_split(FOLDERS)


def load_case(folder: Path) -> Case:
    """Points whose x tells the case: run 3 has surface points at x in [3, 3.5] and one more point a case."""
    number = int(folder.name.removeprefix("run_"))
    rng = np.random.default_rng(number)
    points = {}
    for branch, num_points in (("surface", 40 + number), ("volume", 60 + number)):
        position = rng.uniform([number, 0, 0], [number + 0.5, 0.5, 0.5], size=(num_points, 3))
        points[branch] = PointSet(position, {"pressure": position[:, :1] * 2, "vorticity": position * 1e3})
    return Case(points, None)


def make(sizes: SampleSizes = SIZES, split: CaseSplit = SPLIT, load=load_case, **options: Any) -> CaseCollection:
    return CaseCollection(split, load, sizes, position_range=1000.0, **options)


def numbers(position: np.ndarray) -> set[int]:
    return set(np.floor(position[..., 0]).astype(int).flat)


def of(folders: list[Path]) -> set[int]:
    return {int(folder.name.removeprefix("run_")) for folder in folders}


def test_test_cases_are_never_trained_on():
    dataset = make()
    seen: set[int] = set()
    for step in range(30):
        batch = dataset.train_batch(0, step)
        for branch in ("surface", "volume"):
            seen |= numbers(batch.anchors[branch].position) | numbers(batch.queries[branch].position)
        seen |= numbers(batch.geometry_position)
    assert seen == of(dataset.split.train)


def test_a_drawn_case_is_one_case_with_its_own_fields_and_geometry():
    batch = make().train_batch(0, 0)
    for row in range(2):
        parts = [p.position[row] for part in (batch.anchors, batch.queries) for p in part.values()]
        assert len(numbers(np.concatenate([*parts, batch.geometry_position[row]]))) == 1
    for points in (*batch.anchors.values(), *batch.queries.values()):
        np.testing.assert_array_equal(points.fields["pressure"], points.position[..., :1] * 2)
    assert batch.geometry_position.shape == (2, 12, 3)
    assert batch.supernode_idx.shape == (2, 3)


def test_a_batch_depends_on_seed_and_step_alone():
    first, second = make(), make()
    second.train_batch(0, 0)
    jax.tree.map(np.testing.assert_array_equal, first.train_batch(1, 2), second.train_batch(1, 2))


def test_scales_are_those_of_all_training_points():
    dataset = make()
    cases = [load_case(folder).points for folder in dataset.split.train]
    whole = np.concatenate([case["volume"].fields["vorticity"] for case in cases])
    expected, found = FieldScale.fit(whole, log_scale=True), dataset.normalizer.fields["volume"]["vorticity"]
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)
    assert found.log_scale
    position = np.concatenate([points.position for case in cases for points in case.values()])
    assert dataset.normalizer.position_low == tuple(position.min(axis=0))
    assert dataset.normalizer.position_high == tuple(position.max(axis=0))


def test_given_scales_are_not_measured():
    scales = {"pressure": FieldScale(mean=(1,), std=(2,)), "vorticity": FieldScale(mean=(3,) * 3, std=(4,) * 3)}
    given = Normalizer(position_low=(0, 0, 0), position_scale=3, fields={"surface": scales, "volume": scales, "x": {}})
    read = []

    def load(folder: Path) -> Case:
        read.append(folder)
        return load_case(folder)

    dataset = make(statistics=given, load=load)
    assert dataset.normalizer == replace(given, fields={"surface": scales, "volume": scales})
    case = next(dataset.evaluation_cases())
    np.testing.assert_array_equal(case.baselines["mean_predictor"]["volume"]["vorticity"], 3)
    assert set(read) == {dataset.split.train[0], *dataset.split.test}


def test_validation_cases_are_neither_trained_nor_tested_on():
    dataset = make(split=CaseSplit(FOLDERS[:2], FOLDERS[2:4], FOLDERS[4:6]))
    seen = {n for step in range(20) for n in numbers(dataset.train_batch(0, step).anchors["volume"].position)}
    tested = {n for case in dataset.evaluation_cases() for n in numbers(case.sample.queries["volume"].position)}
    assert (seen, tested) == ({0, 1}, {2, 3})


def test_test_cases_have_one_shape_and_queries_that_are_no_anchors():
    dataset = make()
    found = list(dataset.evaluation_cases())
    assert [numbers(case.sample.queries["volume"].position) for case in found] == [
        {n} for n in sorted(of(dataset.split.test))
    ]
    shapes = [jax.tree.map(np.shape, case.sample) for case in found]
    assert shapes[0] == shapes[1]
    for case in found:
        assert case.sample.geometry_position.shape == (12, 3)
        for branch, queries in case.sample.queries.items():
            anchors = case.sample.anchors[branch].position
            assert len(anchors) == 8
            assert not {tuple(x) for x in anchors} & {tuple(x) for x in queries.position}
        mean = case.baselines["mean_predictor"]["surface"]["pressure"]
        np.testing.assert_allclose(mean, np.full_like(mean, dataset.normalizer.fields["surface"]["pressure"].mean[0]))


def test_pictures_are_those_of_a_test_case(tmp_path: Path):
    dataset = make()
    asked = []

    def predict(sample: Sample) -> Fields:
        asked.append(numbers(next(iter(sample.queries.values())).position))
        return {branch: points.fields for branch, points in sample.queries.items()}

    paths = dataset.draw(predict, tmp_path)
    assert {p.name for p in paths} == {f"{b}_{f}.png" for b in dataset.fields for f in dataset.fields[b]}
    assert all(number == {min(of(dataset.split.test))} for number in asked)


def test_cases_are_read_again_only_when_memory_is_full(monkeypatch):
    monkeypatch.setattr("emmi_jax.data.case_collection.NUM_CASES_IN_MEMORY", 10)
    read = []

    def load(folder: Path) -> Case:
        read.append(folder)
        return load_case(folder)

    dataset = make(load=load)
    assert dataset.normalizer.position_scale > 0
    for step in range(20):
        dataset.train_batch(0, step)
    list(dataset.evaluation_cases())
    assert sorted(read) == FOLDERS


def test_a_case_with_other_fields_is_named():
    def load(folder: Path) -> Case:
        case = load_case(folder)
        if folder.name == "run_7":
            case.points["volume"].fields["speed"] = np.ones((67, 1))
        return case

    with pytest.raises(ValueError, match=r"run_7: has the fields .*'speed': 1.*, the case run_\d has"):
        assert make(load=load).normalizer


def test_a_case_that_is_too_small_is_named():
    sizes = SampleSizes(batch_size=1, num_anchors=20, num_queries=23, num_test_anchors=8)
    with pytest.raises(ValueError, match=r"run_\d: surface: 4\d points are too few: a step draws 43"):
        assert make(sizes).normalizer


def test_folders_of_cases_are_found_in_the_order_of_their_numbers(tmp_path: Path):
    for number in (10, 9, 1):
        write_case_folder(tmp_path / f"run_{number}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README").touch()
    assert [folder.name for folder in case_folders(tmp_path)] == ["run_1", "run_9", "run_10"]
    assert case_folders(tmp_path / "README") == []


def test_one_file_of_fields_serves_all_cases(tmp_path: Path):
    for number in range(2):
        write_case_folder(tmp_path / f"run_{number}")
        (tmp_path / f"run_{number}" / "fields.json").replace(tmp_path / "fields.json")
    dataset = make(split=draw_split(case_folders(tmp_path)), load=lambda folder: read_case_folder(folder, np.load))
    assert dataset.fields == {
        "surface": {"pressure_coefficient": 1},
        "volume": {"velocity": 3, "pressure_coefficient": 1},
    }
