from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.case_split import CaseSplit, draw_split
from emmi_jax.data.cases import Case, WholeCases
from emmi_jax.data.readers import case_names
from emmi_jax.points import PointSet
from tests.data.case_folders import read_case_folder, write_case_folder

SAMPLING = Sampling(
    num_anchors=6,
    num_queries=5,
    num_test_anchors=8,
    num_geometry_points=12,
    num_supernodes=3,
    num_test_supernodes=4,
)
NAMES = [f"run_{number}" for number in range(10)]
SPLIT = draw_split(NAMES)


def load_case(name: str) -> Case:
    """Points whose x tells the case: run 3 has surface points at x in [3, 3.5] and one more point a case."""
    number = int(name.removeprefix("run_"))
    rng = np.random.default_rng(number)
    points = {}
    for branch, num_points in (("surface", 40 + number), ("volume", 60 + number)):
        position = rng.uniform([number, 0, 0], [number + 0.5, 0.5, 0.5], size=(num_points, 3))
        points[branch] = PointSet(position, {"pressure": position[:, :1] * 2, "vorticity": position * 1e3})
    return Case(points, None)


def make(sampling: Sampling = SAMPLING, split: CaseSplit = SPLIT, load=load_case) -> CaseCollection:
    return CaseCollection(split, WholeCases(load, str), sampling)


def numbers(position: np.ndarray) -> set[int]:
    return set(np.floor(position[..., 0]).astype(int).flat)


def of(names: list[str]) -> set[int]:
    return {int(name.removeprefix("run_")) for name in names}


def test_test_cases_are_never_trained_on():
    dataset = make()
    seen: set[int] = set()
    for number in range(60):
        batch = dataset.train_sample(0, number)
        for branch in ("surface", "volume"):
            seen |= numbers(batch.anchors[branch].position) | numbers(batch.queries[branch].position)
        seen |= numbers(batch.geometry.position)
    assert seen == of(dataset.split.train)


def test_a_drawn_case_is_one_case_with_its_own_fields_and_geometry():
    batch = make().train_sample(0, 0)
    parts = [p.position for part in (batch.anchors, batch.queries) for p in part.values()]
    assert len(numbers(np.concatenate([*parts, batch.geometry.position]))) == 1
    for points in (*batch.anchors.values(), *batch.queries.values()):
        np.testing.assert_array_equal(points.fields["pressure"], points.position[..., :1] * 2)
    assert batch.geometry.position.shape == (12, 3)
    assert batch.geometry.supernode_idx.shape == (3,)


def test_a_sample_depends_on_seed_and_number_alone():
    first, second = make(), make()
    second.train_sample(0, 0)
    jax.tree.map(np.testing.assert_array_equal, first.train_sample(1, 2), second.train_sample(1, 2))


def test_every_epoch_has_each_training_case_once_in_an_order_of_its_own():
    dataset = make()
    num = len(dataset.split.train)
    seen = [int(dataset.train_sample(0, n).anchors["volume"].position[0, 0]) for n in range(3 * num)]
    epochs = [tuple(seen[start : start + num]) for start in range(0, 3 * num, num)]
    assert {frozenset(epoch) for epoch in epochs} == {frozenset(of(dataset.split.train))}
    assert len(set(epochs)) == 3


def test_validation_samples_are_the_same_each_time():
    dataset = make(split=CaseSplit(NAMES[:2], NAMES[2:4], NAMES[4:6]))
    first, second = list(dataset.validation_samples()), list(dataset.validation_samples())
    assert [numbers(sample.queries["volume"].position) for sample in first] == [{4}, {5}]
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_statistics_are_those_of_all_training_points():
    dataset = make()
    cases = [load_case(name).points for name in dataset.split.train]
    whole = np.concatenate([case["volume"].fields["pressure"] for case in cases])
    normalizer = dataset.measure().normalizer(position_range=1000.0)
    np.testing.assert_allclose(normalizer.fields["volume"]["pressure"].mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.fields["volume"]["pressure"].std, whole.std(axis=0), rtol=1e-12)
    position = np.concatenate([points.position for case in cases for points in case.values()])
    assert normalizer.position_low == tuple(position.min(axis=0))
    assert normalizer.position_high == tuple(position.max(axis=0))


def test_validation_cases_are_neither_trained_nor_tested_on():
    dataset = make(split=CaseSplit(NAMES[:2], NAMES[2:4], NAMES[4:6]))
    seen = {n for number in range(40) for n in numbers(dataset.train_sample(0, number).anchors["volume"].position)}
    tested = {n for sample in dataset.test_samples() for n in numbers(sample.queries["volume"].position)}
    assert (seen, tested) == ({0, 1}, {2, 3})


def test_test_cases_have_one_shape_and_queries_that_are_no_anchors():
    dataset = make()
    found = list(dataset.test_samples())
    assert [numbers(sample.queries["volume"].position) for sample in found] == [
        {n} for n in sorted(of(dataset.split.test))
    ]
    shapes = [jax.tree.map(np.shape, sample) for sample in found]
    assert shapes[0] == shapes[1]
    for sample in found:
        assert sample.geometry.position.shape == (12, 3)
        for branch, queries in sample.queries.items():
            anchors = sample.anchors[branch].position
            assert len(anchors) == 8
            assert not {tuple(x) for x in anchors} & {tuple(x) for x in queries.position}


def test_cases_are_read_again_only_when_memory_is_full(monkeypatch):
    monkeypatch.setattr("emmi_jax.data.cases.NUM_CASES_IN_MEMORY", 10)
    read = []

    def load(name: str) -> Case:
        read.append(name)
        return load_case(name)

    dataset = make(load=load)
    dataset.measure()
    for number in range(40):
        dataset.train_sample(0, number)
    list(dataset.test_samples())
    assert sorted(read) == NAMES


def test_a_case_with_other_fields_is_named():
    def load(name: str) -> Case:
        case = load_case(name)
        if name == "run_7":
            case.points["volume"].fields["speed"] = np.ones((67, 1))
        return case

    with pytest.raises(ValueError, match=r"run_7: has the fields .*'speed': 1.*, the case run_\d has"):
        make(load=load).measure()


def test_a_case_that_is_too_small_is_named():
    sampling = Sampling(num_anchors=20, num_queries=23, num_test_anchors=8)
    with pytest.raises(ValueError, match=r"run_\d: surface: 4\d points are too few: a step draws 43"):
        make(sampling).measure()


def test_a_resampled_collection_draws_like_one_that_was_made_so():
    sampling = Sampling(num_anchors=9, num_queries=3, num_test_anchors=8)
    jax.tree.map(
        np.testing.assert_array_equal, make().resampled(sampling).train_sample(1, 2), make(sampling).train_sample(1, 2)
    )


def test_folders_of_cases_are_found_in_the_order_of_their_numbers(tmp_path: Path):
    (tmp_path / "cars").mkdir()
    for number in (10, 9, 1):
        write_case_folder(tmp_path / "cars" / f"run_{number}")
    (tmp_path / "cars" / "notes").mkdir()
    (tmp_path / "README").touch()
    assert case_names(tmp_path / "cars") == ["run_1", "run_9", "run_10"]
    assert case_names(tmp_path) == ["cars/run_1", "cars/run_9", "cars/run_10"]
    assert case_names(tmp_path / "README") == []


def test_one_file_of_fields_serves_all_cases(tmp_path: Path):
    for number in range(2):
        write_case_folder(tmp_path / f"run_{number}")
        (tmp_path / f"run_{number}" / "fields.json").replace(tmp_path / "fields.json")
    dataset = make(split=draw_split(case_names(tmp_path)), load=lambda name: read_case_folder(tmp_path / name))
    assert dataset.fields == {
        "surface": {"pressure_coefficient": 1},
        "volume": {"velocity": 3, "pressure_coefficient": 1},
    }
