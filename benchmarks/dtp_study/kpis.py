"""On what scale a KPI is measured."""

import functools

import numpy as np

from dtp_jax import metrics
from examples import _digits, _problems
from examples._contest import Log, with_error
from examples._problems import Problem
from examples._tables import markdown

from ._harness import (
    Row,
    Size,
    average,
    prioritized,
    rate_of,
    setting,
    three_tasks,
    train,
    tuned,
    weighted,
    worst,
)

SCALES = (0.05, 0.15, 0.3, 1.0)


@functools.cache
def _measured_at(problem: Problem, scale: float) -> Problem:
    """The three tasks, with another scale of the overlap's KPI for the link."""
    net = functools.partial(_problems.PairNet, width=128)
    measure = functools.partial(_problems.pair_losses_and_kpis, kpi_scale=scale)
    _, losses_and_kpis = _problems.functional(net, measure)

    def judge(params, batch):
        return problem.losses_and_kpis(params, batch)[1]

    return problem._replace(losses_and_kpis=losses_and_kpis, judge=judge)


def report(size: Size) -> str:
    """Scales that are too strict and too generous, with and without ranges.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problem = three_tasks(size)
    single = tuned()["three tasks"]["constant"]["single"]
    target = problem.make_data()["train"].overlap
    rate = rate_of("three tasks", "constant", "DTP")
    rows = {}
    for scale in SCALES:
        measured = _measured_at(problem, scale)
        chance = dict(zip(problem.names, single["chance"], strict=True))
        chance["overlap"] = float(metrics.chance_bounded_error(target, scale))
        from_chance = tuple((name, (low, 1.0)) for name, low in chance.items())
        rows["as it is", scale] = Row(measured, prioritized(measured), setting(rate))
        make = prioritized(measured, kpi_range=from_chance)
        rows["(chance, 1)", scale] = Row(measured, make, setting(rate))
    scale = _digits.OVERLAP_SCALE
    ends = zip(single["chance"], np.divide(single["validation"], 100), strict=True)
    ranges = tuple(zip(problem.names, ends, strict=True))
    make = prioritized(problem, kpi_range=ranges)
    for gamma in (1.0, 2.0):
        numbers = setting(rate, gamma=gamma)
        rows[f"(chance, single), gamma {gamma:g}", scale] = Row(problem, make, numbers)
    rate = rate_of("three tasks", "constant", "equal weights")
    rows["equal weights", scale] = Row(problem, weighted(problem), setting(rate))

    def ratio(log: Log) -> str:
        ratios = 1e4 * log.last()[0] / np.array(single["test"])
        return with_error(ratios.min(axis=1))

    lines = [["range", "scale", "average", "worst task", "worst / single", "weights"]]
    for (name, scale), log in train(rows, size, "KPIs").items():
        weights = log.weights[0, :, -1].mean(axis=0)
        shown = ", ".join(f"{weight:.2f}" for weight in weights)
        lines.append([name, f"{scale:g}", average(log), worst(log), ratio(log), shown])
    text = (
        "Three tasks, constant rate, judged at the scale "
        f"{_digits.OVERLAP_SCALE:g}; weights of {', '.join(problem.names)} at the end:"
    )
    return f"{text}\n\n{markdown(lines)}"
