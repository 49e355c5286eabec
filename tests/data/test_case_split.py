import json
import re
from pathlib import Path

import pytest

from emmi_jax.data.case_split import CaseSplit, draw_split, read_split, split_content

NAMES = [f"run_{number}" for number in range(10)]


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_fifth_of_the_cases_is_drawn_to_test_on_and_none_is_lost():
    split = draw_split(NAMES)
    assert (len(split.train), len(split.test)) == (8, 2)
    assert sorted([*split.train, *split.test]) == NAMES
    assert split == draw_split(NAMES)
    assert split.summary == "8 cases to train on, 2 to test on"


def test_two_cases_are_enough():
    split = draw_split(NAMES[:2])
    assert (len(split.train), len(split.test)) == (1, 1)
    with pytest.raises(
        ValueError, match=r"^expected at least two cases, one to train on and one to test on, got 'run_0'"
    ):
        draw_split(NAMES[:1])


def test_a_file_assigns_cases_to_splits_and_the_rest_is_counted(tmp_path):
    names = {"train": ["run_9", "run_3"], "test": ["run_2"], "validation": ["run_1"]}
    split = read_split(write(tmp_path / "split.json", names), NAMES)
    assert split == CaseSplit([NAMES[3], NAMES[9]], [NAMES[2]], [NAMES[1]], num_left_out=6)
    assert split.summary == "2 cases to train on, 1 to test on, 1 for validation, 6 in no split"
    assert split.split_of == {"run_3": "train", "run_9": "train", "run_1": "validation", "run_2": "test"}


def test_validation_may_be_absent_or_empty(tmp_path):
    for more in ({}, {"validation": []}):
        split = read_split(write(tmp_path / "split.json", {"train": ["run_1"], "test": ["run_2"]} | more), NAMES)
        assert list(split.validation) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([1], "expected lists 'train', 'test' and perhaps 'validation', got list"),
        ({"train": ["run_1"]}, "expected lists 'train', 'test' and perhaps 'validation', got ['train']"),
        ({"train": ["run_1"], "test": ["run_2"], "tests": []}, "got ['test', 'tests', 'train']"),
        ({"train": [1], "test": ["run_2"]}, "'train' must be a list of names of cases, got [1]"),
        ({"train": "run_1", "test": ["run_2"]}, "'train' must be a list of names of cases, got 'run_1'"),
        ({"train": ["run_1"], "test": []}, "'test' is empty, expected at least one case"),
        ({"train": ["run_1", "run_1"], "test": ["run_2"]}, "but these are named twice: 'run_1'"),
        ({"train": ["run_1", "run_2"], "test": ["run_2"]}, "these are named twice: 'run_2'"),
        ({"train": ["run_1"], "test": ["run_x"]}, "1 of 2 cases do not exist: 'run_x'"),
        (
            {"train": ["run_1"], "test": [f"run_{number}" for number in range(10, 18)]},
            "8 of 9 cases do not exist: 'run_10', 'run_11', 'run_12', 'run_13', 'run_14' and 3 more",
        ),
    ],
)
def test_an_unusable_file_is_named_with_what_is_wrong(content, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_split(write(tmp_path / "split.json", content), NAMES)
    assert str(error.value).startswith(str(tmp_path / "split.json"))


@pytest.mark.parametrize(
    ("name", "sizes"), [("drivaerml", [400, 34, 50]), ("ahmedml", [400, 50, 50]), ("shapenet-car", [789, 0, 100])]
)
def test_published_splits_have_names_and_sizes(name, sizes):
    content = split_content(name)
    names = [case for listed in content.values() for case in listed]
    split = read_split(name, ["another", *names])
    assert [len(split.train), len(split.validation), len(split.test), split.num_left_out] == [*sizes, 1]


def test_a_published_split_of_other_cases_is_refused_by_its_name():
    with pytest.raises(ValueError, match="ahmedml: 500 of 500 cases do not exist: 'run_1', "):
        read_split("ahmedml", ["car_1", "car_2"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        read_split(tmp_path / "none.json", NAMES)
