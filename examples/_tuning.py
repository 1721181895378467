"""Chooses rates and weights of the demo on validation digits, six tries for each row.

The seeds are not those of the demo. What was tried, how well it did and what was chosen
goes into ``two_digits.json``, which the demo reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from examples import _contest
from examples._methods import (
    EQUAL,
    FIXED,
    RATES,
    SCHEDULES,
    Contest,
    chances,
    job,
    methods,
    setting,
)

SEEDS = (100, 101, 102, 103, 104, 105)
REFERENCE_SEEDS = (200, 201)
# Networks of one task are references, not rows: they have half of the rates.
SINGLE_RATES = RATES[::2]


def tune(name: str, contest: Contest) -> dict[str, Any]:
    """Tunes the rows of a table, under both schedules.

    Args:
        name: Of the contest.
        contest: What to train.

    Returns:
        ``{schedule: {"single": {"chance", "rates", "validation", "test"}, "methods":
        {name: {"criterion", "chosen", "tried"}}}}``; KPIs in percent.
    """
    data = jax.device_put(contest.problem.make_data())
    single = _single(name, contest, data)
    rows = methods(contest.problem)
    by_rate = [{"rate": rate} for rate in RATES]
    tries: Any = {
        schedule: {row: by_rate for row in rows if row not in FIXED}
        for schedule in SCHEDULES
    }
    found = _tried(name, contest, data, tries, single)
    # Three sets of weights, at the two rates that were best for equal ones.
    first = next(iter(FIXED))
    for schedule in SCHEDULES:
        best = sorted(found[schedule][EQUAL], key=lambda each: -each["average"])[:2]
        by_weights = [
            {"rate": each["rate"], "weights": weights}
            for each in best
            for weights in contest.fixed
        ]
        tries[schedule] = {first: by_weights}
    for schedule, fixed in _tried(name, contest, data, tries, single).items():
        found[schedule] |= dict.fromkeys(FIXED, fixed[first])
    return {
        schedule: {
            "single": single[schedule],
            "methods": {row: _chosen(row, found[schedule][row]) for row in rows},
        }
        for schedule in SCHEDULES
    }


def _chosen(row: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    criterion = FIXED.get(row, "average")
    best = int(np.argmax([each[criterion] for each in tried]))
    return {"criterion": criterion, "chosen": best, "tried": tried}


def _tried(name: str, contest: Contest, data: Any, tries: Any, single: Any) -> Any:
    """Adds to each try the average and the worst KPI on validation, in percent."""
    problem = contest.problem
    jobs = {
        (schedule, row): job(
            problem,
            data,
            row,
            [
                setting(problem, schedule, single=single[schedule], **each)
                for each in own
            ],
            SEEDS,
            ("validation",),
        )
        for schedule, rows in tries.items()
        for row, own in rows.items()
    }
    logs = _contest.train(jobs, f"tuning the {name}")
    found: Any = {schedule: {} for schedule in tries}
    for (schedule, row), log in logs.items():
        kpis = 100 * log.last("validation")
        averages, worst = kpis.mean(axis=(1, 2)), kpis.min(axis=2).mean(axis=1)
        scores = zip(averages.tolist(), worst.tolist(), strict=True)
        found[schedule][row] = [
            each | {"average": round(average, 2), "worst": round(least, 2)}
            for each, (average, least) in zip(tries[schedule][row], scores, strict=True)
        ]
    return found


def _single(name: str, contest: Contest, data: Any) -> dict[str, Any]:
    """A network of its own for each task, at the best rate of its own."""
    problem = contest.problem
    num_tasks = len(problem.names)

    def kpis_of(
        rates: Mapping[str, Sequence[Sequence[float]]],
        seeds: Sequence[int],
        splits: Sequence[str],
    ) -> dict[str, dict[str, np.ndarray]]:  # schedule -> split -> [T, rates]
        jobs = {}
        for schedule, own in rates.items():
            # A task of weight zero is switched off.
            pairs = zip(np.eye(num_tasks).tolist(), own, strict=True)
            settings = [
                setting(problem, schedule, rate=rate, weights=alone)
                for alone, several in pairs
                for rate in several
            ]
            jobs[schedule] = job(problem, data, EQUAL, settings, seeds, splits)
        logs = _contest.train(jobs, f"single tasks of the {name}")
        return {
            schedule: {split: own_kpis(log.last(split)) for split in splits}
            for schedule, log in logs.items()
        }

    def own_kpis(kpis: np.ndarray) -> np.ndarray:
        means = 100 * kpis.mean(axis=1, dtype=float).reshape(num_tasks, -1, num_tasks)
        return np.stack([means[task, :, task] for task in range(num_tasks)])

    grid = {schedule: [SINGLE_RATES] * num_tasks for schedule in SCHEDULES}
    found = kpis_of(grid, SEEDS[:2], ("validation",))
    best = {
        schedule: [SINGLE_RATES[place] for place in kpis["validation"].argmax(axis=1)]
        for schedule, kpis in found.items()
    }
    one_rate = {schedule: [[rate] for rate in own] for schedule, own in best.items()}
    again = kpis_of(one_rate, REFERENCE_SEEDS, ("validation", "test"))
    chance = chances(problem, data["train"])
    return {
        schedule: {"chance": chance, "rates": best[schedule]}
        | {split: np.round(own[:, 0], 2).tolist() for split, own in kpis.items()}
        for schedule, kpis in again.items()
    }
