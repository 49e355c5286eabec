"""Lines of the commands about the distance of a whole case, shape and conditions, from the training cases."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from emmi_jax.data.familiarity import Familiarity
from emmi_jax.deploy.encoded_set import EncodedSet
from emmi_jax.files.atomic import JsonDict
from emmi_jax.inference.case_encoding import describe
from emmi_jax.jobs.progress import say, warn

ALARM = 0.05
"""Cases that are as far as so few of the calibration cases are warned of."""


def report_familiarity(familiarity: Familiarity, encoded: EncodedSet, console: Console, *, what: str = "") -> JsonDict:
    """Prints in one line how far a case is from the training cases, and returns it as JSON has it.

    Args:
        familiarity: What is usual.
        encoded: The case.
        console: Where the line is printed.
        what: What the case is, if there are several.
    """
    parts = dict(zip(("traits", "encoding"), map(float, familiarity.distances(describe(encoded))), strict=True))
    distance, number = float(np.max([*parts.values()])), len(familiarity.known)
    p_value = familiarity.p_value(distance)
    text = f"{what}{': ' * bool(what)}distance from the training cases {distance:.3g}, p = {p_value:.2g}"
    if p_value <= 1 / (number + 1):
        warn(f"{text}: farther than all {number} calibration cases, so the prediction may be a guess", console)
    elif p_value <= ALARM:
        warn(f"{text}: farther than nearly all of {number} calibration cases", console)
    else:
        say(console, f"{text} ({number} calibration cases)")
    return {"distance": distance, **parts, "p_value": p_value, "calibration_cases": number}
