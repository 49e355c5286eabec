"""The split of many cases into those to train on, those to test on, and the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from emmi_jax.data.sampling import RandomStream
from emmi_jax.files.atomic import read_json

SPLIT_FILE = "split.json"
TEST_FRACTION = 0.2
SPLITS = ("train", "validation", "test")
_FOLDER = files("emmi_jax.data") / "splits"
PUBLISHED_SPLITS = sorted(file.name.removesuffix(".json") for file in _FOLDER.iterdir())


@dataclass(frozen=True)
class CaseSplit:
    """Names of cases by split.

    Args:
        train: Trained on.
        test: Only tested on, after training.
        validation: Kept from both, for choices of your own.
        num_left_out: Cases in no split.
        unusable: Cases that were left out of the split although it names them, and why.
    """

    train: Sequence[str]
    test: Sequence[str]
    validation: Sequence[str] = ()
    num_left_out: int = 0
    unusable: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Describes how many cases are in which split."""
        parts = [f"{len(self.train)} cases to train on", f"{len(self.test)} to test on"]
        if self.validation:
            parts.append(f"{len(self.validation)} for validation")
        if self.num_left_out:
            parts.append(f"{self.num_left_out} in no split")
        if self.unusable:
            parts.append(f"{len(self.unusable)} unusable")
        return ", ".join(parts)

    def without(self, unusable: Mapping[str, str]) -> CaseSplit:
        """Returns the split without these cases, which are unusable for these reasons.

        Raises:
            ValueError: No case is left to train or to test on.
        """
        train, test, validation = (
            [name for name in part if name not in unusable] for part in (self.train, self.test, self.validation)
        )
        if not train or not test:
            name, reason = next(iter(unusable.items()))
            raise ValueError(f"no case of {'test' if train else 'train'!r} is usable; {name}: {reason}")
        return CaseSplit(train, test, validation, self.num_left_out, {**self.unusable, **unusable})

    @property
    def split_of(self) -> dict[str, str]:
        """The split of each case, by its name."""
        return {name: part for part in SPLITS for name in getattr(self, part)}


def draw_split(names: Sequence[str]) -> CaseSplit:
    """Draws a fifth of the cases to test on; the draw depends only on the number of cases.

    Raises:
        ValueError: There are fewer than two cases.
    """
    if len(names) < 2:
        raise ValueError(
            f"expected at least two cases, one to train on and one to test on, got {some_names(names) or 'none'}"
        )
    order = np.random.default_rng([RandomStream.SETUP]).permutation(len(names))
    num_test = max(1, round(TEST_FRACTION * len(names)))
    return CaseSplit([names[i] for i in sorted(order[num_test:])], [names[i] for i in sorted(order[:num_test])])


def read_split(source: str | Path, names: Sequence[str], *, skip_absent: bool = False) -> CaseSplit:
    """Reads the split of cases.

    Args:
        source: Name of a published split, or path of JSON such as
            `{"train": ["run_1", "run_3"], "validation": ["run_4"], "test": ["run_2"]}`, with the names of cases;
            `validation` may be absent.
        names: All cases; those that the file does not name are left out.
        skip_absent: Whether to leave out names that no case has.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON of this form, `train` or `test` is empty, a name occurs twice, or a case does not
            exist; the message quotes the names.
    """
    return parse_split(split_content(source), names, source, skip_absent=skip_absent)


def split_content(source: str | Path) -> Any:
    """Returns the content of a split file, or of a published split of this name; see `read_split`."""
    if source in PUBLISHED_SPLITS:
        return json.loads((_FOLDER / f"{source}.json").read_text())
    return read_json(Path(source))


def parse_split(
    parts: Any, names: Sequence[str], path: Path | str | Mapping[str, Path], *, skip_absent: bool = False
) -> CaseSplit:
    """Returns the split of cases that the content of a split file, or of one per part, describes; see `read_split`."""
    files, path = (path, next(iter(path.values()))) if isinstance(path, Mapping) else ({}, path)
    if not isinstance(parts, dict) or not {"train", "test"} <= set(parts) <= set(SPLITS):
        given = sorted(parts) if isinstance(parts, dict) else type(parts).__name__
        raise ValueError(f"{path}: expected lists 'train', 'test' and perhaps 'validation', got {given}")
    for part, listed in parts.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise ValueError(f"{path}: {part!r} must be a list of names of cases, got {listed!r:.80}")
        if not listed and part != "validation":
            raise ValueError(f"{path}: {part!r} is empty, expected at least one case")
    everything = [name for listed in parts.values() for name in listed]
    if twice := [name for name, count in Counter(everything).items() if count > 1]:
        raise ValueError(f"{path}: a case is in one split only, but these are named twice: {some_names(twice)}")
    known = set(names)
    absent = [name for name in everything if name not in known]
    for part, listed in parts.items() if not skip_absent else ():
        if here := [name for name in listed if name not in known]:
            file, number = files.get(part, path), len(listed) if files else len(everything)
            here = here if files else absent
            raise ValueError(
                f"{file}: {len(here)} of {number} cases do not exist: {some_names(here)}; --skip-unusable leaves them "
                "out"
            )
    # In the order of the cases, so that the order in the file does not matter.
    listed_in = {part: set(listed) for part, listed in parts.items()}
    ordered = {part: [name for name in names if name in listed] for part, listed in listed_in.items()}
    num_others = len(names) - len(everything) + len(absent)
    split = CaseSplit(ordered["train"], ordered["test"], ordered.get("validation", []), num_others)
    return split.without(dict.fromkeys(absent, "does not exist")) if absent else split


def some_names(names: Sequence[str]) -> str:
    """Quotes the first names of many."""
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
