"""The methods that the demo compares, and on what."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from dtp_jax import balance, balancers, dynamic_task_prioritization, metrics
from examples import _contest, _digits, _problems
from examples._contest import Job, Setting
from examples._problems import Problem

RATES = (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3)
MEASUREMENTS = 40

EQUAL, DTP = "equal weights", "DTP"
# Rows of fixed weights, and what they were chosen by.
FIXED = {"fixed weights": "average", "fixed, for the worst": "worst"}

Link = Callable[[Setting], optax.GradientTransformation]


# How the learning rate goes, and whether it falls.
SCHEDULES = {"constant": False, "cosine": True}


class Contest(NamedTuple):
    """A problem, what fixed weights to try, how much the worst task is to reach."""

    problem: Problem
    fixed: list[list[float]]  # [T] each
    share: float  # of a network of its own


@functools.cache
def contests(num_steps: int = 4000) -> dict[str, Contest]:
    """The three tasks and the row.

    Args:
        num_steps: For the three tasks; the row has half as many.

    Returns:
        By name.
    """
    pairs = _problems.pairs(num_steps=num_steps)
    row = _problems.row(num_steps=num_steps // 2)
    # In the order of the tasks: left, overlap, right.
    by_hand = [[1.0, 1.0, 2.0], [1.0, 2.0, 2.0], [1.0, 4.0, 2.0]]
    # Twelve weights cannot be tried one by one. The order of difficulty, which nobody
    # knows beforehand, is given away here: the fainter a digit, the more weight.
    powers = [_digits.row_inks() ** -power for power in (0.25, 0.5, 1.0)]
    known = [np.round(weights / weights.mean(), 3).tolist() for weights in powers]
    return {
        "three tasks": Contest(pairs, by_hand, 0.85),
        "row of twelve": Contest(row, known, 0.5),
    }


@functools.cache
def methods(problem: Problem) -> dict[str, Link]:
    """The rows of a table: what stands first in the optimizer's chain.

    Args:
        problem: Whose tasks they are.

    Returns:
        For each row, a link for a setting.
    """

    def weighted(setting: Setting) -> Any:
        weights = setting["weights"]
        if not isinstance(problem.tasks, int):
            pairs = zip(problem.names, weights, strict=True)
            weights = dict(pairs)
        return balance(balancers.constant(weights), problem.tasks)

    def prioritized(setting: Setting) -> Any:
        del setting
        return dynamic_task_prioritization(problem.tasks)

    def with_gamma_1(setting: Setting) -> Any:
        del setting
        return dynamic_task_prioritization(problem.tasks, gamma=1.0)

    def with_ranges(setting: Setting) -> Any:
        tasks = problem.tasks
        names = range(tasks) if isinstance(tasks, int) else tasks
        ranges = {name: tuple(setting["ranges"][i]) for i, name in enumerate(names)}
        return dynamic_task_prioritization(tasks, kpi_range=ranges)

    return {
        EQUAL: weighted,
        **dict.fromkeys(FIXED, weighted),
        DTP: prioritized,
        "DTP, gamma 1": with_gamma_1,
        "DTP, KPI ranges": with_ranges,
    }


def chances(problem: Problem, train: Any) -> list[float]:
    """What guessing scores.

    Args:
        problem: Whose tasks they are.
        train: The images to train on.

    Returns:
        A KPI for each task.
    """
    if isinstance(problem.tasks, int):
        found = [metrics.chance_accuracy(labels) for labels in train.labels.T]
    else:
        found = [
            metrics.chance_accuracy(train.left),
            metrics.chance_bounded_error(train.overlap, _digits.OVERLAP_SCALE),
            metrics.chance_accuracy(train.right),
        ]
    return [round(float(chance), 4) for chance in found]


def setting(
    problem: Problem,
    schedule: str,
    *,
    rate: float,
    weights: Any = None,
    single: Any = None,
) -> dict[str, Any]:
    """What may be tuned, the schedule, and what the ranges of KPIs are made of.

    Args:
        problem: To be trained.
        schedule: One of `SCHEDULES`.
        rate: The learning rate at the start.
        weights: Fixed weights ``[T]``; None for ones.
        single: ``{"chance": [T], "validation": [T]}``, what guessing and networks of
            one task score there, the latter in percent; None if nobody asks.

    Returns:
        A setting of `job`.
    """
    num_tasks = len(problem.names)
    ranges = np.tile([0.0, 1.0], (num_tasks, 1))
    if single is not None:
        ends = (single["chance"], np.divide(single["validation"], 100))
        ranges = np.stack(ends, axis=1)
    weights = [1.0] * num_tasks if weights is None else weights
    cosine = SCHEDULES[schedule]
    return {"rate": rate, "cosine": cosine, "weights": weights, "ranges": ranges}


@functools.cache
def adam_after(link: Link, num_steps: int) -> Callable[[Setting], Any]:
    """Adam at the rate of a setting after the link of a setting.

    Args:
        link: One of `methods`.
        num_steps: Over which the rate falls.

    Returns:
        An optimizer for a setting.
    """

    def make_optimizer(setting: Setting) -> Any:
        rate = _contest.learning_rate(setting, num_steps)
        return optax.chain(link(setting), optax.adam(rate))

    return make_optimizer


def job(
    problem: Problem,
    data: Any,
    method: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    splits: Sequence[str] = ("test",),
) -> Job:
    """One of `methods` with Adam.

    Args:
        problem: To be trained.
        data: Its batches.
        method: By name.
        settings: See `setting`.
        seeds: Of initial parameters and batches.
        splits: On what to measure.

    Returns:
        What `_contest.train` takes.
    """
    make_optimizer = adam_after(methods(problem)[method], problem.num_steps)
    return Job(problem, data, make_optimizer, settings, seeds, splits, MEASUREMENTS)
