"""Coverage of conformal intervals on the built-in ellipsoids: ``python -m benchmarks.uncertainty RUN``.

Cases are unlimited there. The run, of one model or of several members, was trained on the 400 built-in ellipsoids. Sets
of other ellipsoids calibrate it, one after another, and each calibration is tested on the same unseen ones: how many
are covered, beside the bounds that the guarantee gives for that number; how many are called unfamiliar; and how many
with axes outside the range of the training cases are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr

from benchmarks import measure
from emmi_jax.data.conformal import conformal_quantile, coverage_law, covering_score
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.familiarity import Description, fit_familiarity
from emmi_jax.data.potential_flow import SEMI_AXIS_RANGE, Ellipsoid, random_ellipsoids
from emmi_jax.data.samples import Sample, normalize_sample, stack_samples
from emmi_jax.deploy.intervals import field_deviation
from emmi_jax.deploy.spread import Spread
from emmi_jax.inference.case_encoding import case_traits, pooled
from emmi_jax.inference.intervals import field_scores, number_score
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.plots.uncertainty import draw_coverage, draw_errors_over_deviations
from emmi_jax.runs.load import load_run

LEVELS = (0.5, 0.8, 0.9, 0.95)
NUMBER = "mean surface pressure"
CERTAIN = 1e-4
"""Probability that a count lies outside its bounds although the guarantee holds."""
ALARM = 0.05
NO_CONDITION = np.zeros(0, np.float32)
_BATCH = 20


class Found(NamedTuple):
    """Scores [cases] by quantity, errors and deviations of the number [2, cases], and the cases in numbers."""

    scores: dict[str, NDArray[np.float64]]
    numbers: NDArray[np.float64]
    described: list[Description]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run on the built-in data")
    parser.add_argument("--sets", type=int, default=20, help="calibration sets (%(default)s)")
    parser.add_argument("--cases", type=int, default=40, help="cases of each (%(default)s)")
    parser.add_argument("--unseen", type=int, default=1000, help="cases to test on (%(default)s)")
    parser.add_argument("--shifted", type=int, default=200, help="cases outside the range (%(default)s)")
    parser.add_argument("--points", type=int, help="anchors, queries and supernodes of a case; default: the run's")
    parser.add_argument("--share", type=float, default=0.9, help="share of the points to cover (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/uncertainty.json"), help="(%(default)s)")
    options = parser.parse_args()
    surrogate = load_run(options.run)
    if options.points is not None:
        fewer = {"num_test_anchors": options.points, "num_test_supernodes": options.points}
        surrogate = replace(surrogate, sampling=replace(surrogate.sampling, **fewer))
    dataset = EllipsoidDataset(surrogate.sampling)
    bodies = {
        "train": dataset.train_bodies,
        "calibration": random_ellipsoids(options.sets * options.cases, seed=101),
        "unseen": random_ellipsoids(options.unseen, seed=102),
        "larger": outside(options.shifted, (0, 1, 2)),
        "one longer axis": outside(options.shifted, (0,)),
        "one shorter axis": outside(options.shifted, (0,), is_shorter=True),
    }
    found = {name: evaluate(surrogate, dataset, chosen, options.share) for name, chosen in bodies.items()}
    sets = np.arange(options.sets * options.cases).reshape(options.sets, options.cases)
    rows = [row for quantity in found["unseen"].scores for row in coverage(found, sets, quantity)]
    measure.report("coverage on unseen ellipsoids", rows, options.json)
    covered = {quantity: shares(found, sets, quantity) for quantity in found["unseen"].scores}
    laws = [coverage_law(options.cases, level).counts(options.unseen, 0.9) for level in LEVELS]
    bounds = [(low / options.unseen, high / options.unseen) for low, high in laws]
    draw_coverage(options.json.with_suffix(".png"), LEVELS, covered, bounds)
    alarms = familiarity(found, sets)
    measure.report("called unfamiliar at 5 %", alarms, options.json.with_stem(f"{options.json.stem}_familiarity"))
    if len(surrogate.members) > 1:
        errors, deviations = found["unseen"].numbers
        plain = [
            {"level": level, "covered_%": 100 * np.mean(errors <= norm.ppf((1 + level) / 2) * deviations)}
            for level in LEVELS
        ]
        print(f"rank correlation of deviation and error: {spearmanr(errors, deviations).statistic:.2f}")
        name = options.json.with_stem(f"{options.json.stem}_uncalibrated")
        draw_errors_over_deviations(name.with_suffix(".png"), NUMBER, errors, deviations)
        measure.report(f"{NUMBER}, mean and normal quantiles of the members", plain, name)


def outside(number: int, axes: Sequence[int], *, is_shorter: bool = False) -> list[Ellipsoid]:
    """Returns ellipsoids with some semi-axes beyond the range of the training cases, by a factor of 1.1 to 1.5."""
    rng, bodies = np.random.default_rng(103), []
    for body in random_ellipsoids(number, seed=104):
        semi_axes, factor = np.array(body.semi_axes), rng.uniform(1.1, 1.5, len(axes))
        semi_axes[list(axes)] = SEMI_AXIS_RANGE[0] / factor if is_shorter else SEMI_AXIS_RANGE[1] * factor
        bodies.append(replace(body, semi_axes=semi_axes))
    return bodies


def evaluate(surrogate: Surrogate, dataset: EllipsoidDataset, bodies: Sequence[Ellipsoid], share: float) -> Found:
    """Returns scores and descriptions of bodies, one draw of points each."""
    scores: dict[str, list[float]] = {}
    numbers, described = [], []
    for sample, each, description in predictions(surrogate, dataset, bodies):
        for branch, points in sample.queries.items():
            for name, known in points.fields.items():
                spread = Spread.of(each[branch, name])
                pointwise = field_scores(spread, field_deviation(surrogate.normalizer, branch, name, spread), known)
                scores.setdefault(f"{branch}/{name}", []).append(covering_score(pointwise, share))
        key = "surface", "pressure_coefficient"
        spread, known = Spread.of(each[key].mean(axis=(2, 3))), float(sample.queries[key[0]].fields[key[1]].mean())
        scores.setdefault(NUMBER, []).append(number_score(spread, known))
        numbers.append((abs(spread.mean - known), 1.0 if spread.deviation is None else spread.deviation))
        described.append(description)
    return Found({name: np.array(found) for name, found in scores.items()}, np.array(numbers).T, described)


def predictions(
    surrogate: Surrogate, dataset: EllipsoidDataset, bodies: Sequence[Ellipsoid]
) -> Iterator[tuple[Sample, dict[tuple[str, str], NDArray[Any]], Description]]:
    """Yields samples, their fields [members, 1, n, F] at the queries, and what they are in numbers."""
    model, normalizer, sampling = surrogate.model, surrogate.normalizer, surrogate.sampling

    @jax.jit
    def apply(params: Any, batch: Sample) -> Any:
        predicted, updated = model.apply({"params": params}, **batch.model_inputs(), mutable=["cache"])
        with_axis = jax.tree.map(lambda leaf: leaf[:, None], updated["cache"])
        traits = jax.vmap(lambda points: case_traits(points, NO_CONDITION))(batch.geometry.position)
        return predicted, Description(traits, jax.vmap(pooled)(with_axis))

    rng = np.random.default_rng([105, len(bodies)])
    num_points = sampling.num_test_anchors
    for start in range(0, len(bodies), _BATCH):
        samples = [
            dataset._draw(rng, body, num_points, num_points, sampling.num_test_supernodes)
            for body in bodies[start : start + _BATCH]
        ]
        batch = stack_samples([normalize_sample(normalizer, sample) for sample in samples])
        found = [jax.device_get(apply(member.params, batch)) for member in surrogate.members]
        for row, sample in enumerate(samples):
            each = {
                (branch, name): np.stack(
                    [
                        normalizer.denormalize_field(branch, name, predicted[f"query_{branch}_{name}"][row])
                        for predicted, _ in found
                    ]
                )[:, None]
                for branch, points in sample.queries.items()
                for name in points.fields
            }
            yield sample, each, Description(*(np.asarray(values[row], np.float64) for values in found[0][1]))


def shares(found: dict[str, Found], sets: NDArray[np.int64], quantity: str) -> NDArray[np.float64]:
    """Returns the share of the unseen cases [sets, levels] that the intervals of a quantity cover."""
    known, new = found["calibration"].scores[quantity], found["unseen"].scores[quantity]
    return np.array([[np.mean(new <= conformal_quantile(known[of], level)) for level in LEVELS] for of in sets])


def coverage(found: dict[str, Found], sets: NDArray[np.int64], quantity: str) -> Iterator[dict[str, Any]]:
    """Yields the coverage of a quantity at each level over all calibration sets."""
    num_new = len(found["unseen"].scores[quantity])
    for level, covered in zip(LEVELS, np.rint(num_new * shares(found, sets, quantity)).T, strict=True):
        law = coverage_law(sets.shape[1], level)
        low, high = law.counts(num_new, 1 - CERTAIN)
        yield {
            "quantity": quantity,
            "level_%": 100 * level,
            "expected_%": 100 * law.mean,
            "mean_%": 100 * covered.mean() / num_new,
            "least_%": 100 * covered.min() / num_new,
            "most_%": 100 * covered.max() / num_new,
            "bounds_%": f"{100 * low / num_new:.1f} … {100 * high / num_new:.1f}",
            "sets_outside": int(np.count_nonzero((covered < low) | (covered > high))),
        }


def familiarity(found: dict[str, Found], sets: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Returns how many cases of each kind are called unfamiliar, over all calibration sets."""
    usual = fit_familiarity(found["train"].described, found["calibration"].described)
    rows = []
    for name in ("unseen", "larger", "one longer axis", "one shorter axis"):
        distances = [usual.distance(case) for case in found[name].described]
        shares = [
            np.mean([replace(usual, known=usual.known[chosen]).p_value(distance) <= ALARM for distance in distances])
            for chosen in sets
        ]
        rows.append(
            {
                "cases": name,
                "number": len(distances),
                "mean_%": 100 * np.mean(shares),
                "least_%": 100 * min(shares),
                "most_%": 100 * max(shares),
            }
        )
    return rows


if __name__ == "__main__":
    main()
