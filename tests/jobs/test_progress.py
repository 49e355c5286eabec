import io
import re

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.config import Sampling
from emmi_jax.data.normalization import Normalizer
from emmi_jax.jobs.progress import ProgressBar, metrics_table, warn_few_anchors, warn_outside


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("total", "start", "num"), [(1000, 0, 1), (1000, 0, 33), (3, 0, 1), (1000, 500, 10), (5, 0, 5)]
)
def test_a_pipe_gets_about_twenty_lines_the_last_of_which_is_complete(total, start, num, console):
    with ProgressBar(console, total, unit="steps", start=start) as progress:
        done = start
        while done < total:
            step = min(num, total - done)
            progress.advance(step, "loss 0.5")
            done += step
    lines = printed(console).splitlines()
    assert 1 <= len(lines) <= 21
    assert re.match(rf"{total:,}/{total:,} steps  loss 0\.5  ", lines[-1])


def test_metrics_have_a_row_per_field_and_a_column_per_metric(console):
    console.print(metrics_table("title", {"volume/u": {"relative_l2": 0.12345, "mae": 12.0, "max": 3e-7}}))
    lines = [line.split() for line in printed(console).splitlines()]
    assert lines[1:] == [["field", "rel.", "L2", "MAE", "max"], ["volume/u", "0.1235", "12.00", "3.000e-07"]]


def test_points_outside_the_box_are_counted(console):
    normalizer = Normalizer.from_box([0] * 3, [1] * 3, position_range=1.0, fields={})
    warn_outside(normalizer, "a.npz", np.full((5, 3), 0.5), console)
    assert printed(console) == ""
    warn_outside(normalizer, "a.npz", np.array([[0.5] * 3, [2.0] * 3]), console)
    assert printed(console) == "warning: a.npz: 1 of 2 points are outside the box of the training data\n"


def test_a_branch_with_few_points_to_draw_anchors_from_is_named(console):
    sampling = Sampling(num_anchors=4, num_queries=0, num_test_anchors=8)
    warn_few_anchors(sampling, {"surface": np.zeros((3, 3)), "volume": np.zeros((4, 3))}, console)
    assert printed(console) == "warning: surface: 3 anchors, the model was trained with 4\n"
