"""What a comparison writes."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._plan import EQUAL, SINGLE
from ._report import report
from ._result import Results


def write(results: Results, folder: Path) -> list[Path]:
    """Writes tables, numbers and, with matplotlib, figures.

    Args:
        results: To be written.
        folder: Made if it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(f"{report(results)}\n", encoding="utf-8")
    tables = {"summary": _summary, "kpis": _kpis, "tries": _tries}
    files = [folder / "report.md"]
    for name, make in tables.items():
        path = folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(make(results))
        files.append(path)
    try:
        drawn = figures(results)
    except ModuleNotFoundError:
        return files
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png")
        files.append(folder / f"{name}.png")
    return files


def figures(results: Results) -> dict[str, Any]:
    """Points with intervals, average against worst task, weights over time.

    Args:
        results: To be drawn.

    Returns:
        Figures of matplotlib by name.
    """
    from dtp_jax import plot

    values = results.values()
    columns = ("average", "worst")
    intervals = {
        row: {what: results.interval(values[what][row]) for what in columns}
        for row in results.rows
    }
    shown = {
        row: {
            {"average": "average KPI", "worst": "worst task"}[what]: tuple(
                100 * float(end) for end in interval
            )
            for what, interval in each.items()
        }
        for row, each in intervals.items()
    }
    points = {
        row: (
            100 * float(values["average"][row].mean()),
            100 * float(values["worst"][row].mean()),
            results.costs[row]["time"],
        )
        for row in results.rows
    }
    weights = {
        row: each.weights.mean(axis=0)
        for row, each in results.rows.items()
        if row != EQUAL and np.isfinite(each.weights).all()
    }
    found = {
        "intervals": plot.intervals(shown, label="test KPIs in percent"),
        "tradeoff": plot.tradeoff(
            points, labels=("average KPI in percent", "worst task in percent", "time")
        ),
    }
    if weights:
        every = results.num_steps // next(iter(weights.values())).shape[0]
        found["weights"] = plot.weights(weights, results.names, every=every)
    return found


def _summary(results: Results) -> Iterable[Sequence[Any]]:
    values = results.values()
    head = ["method"]
    for what in values:
        head += [what, f"{what} low", f"{what} high"]
    for what in ("average", "worst"):
        head += [f"{what} difference", f"{what} low", f"{what} high", f"{what} verdict"]
    yield [*head, "beats equal", "time", "memory", "time to target", "round seconds"]
    verdicts = {what: results.verdicts(values[what]) for what in ("average", "worst")}
    for row, each in results.rows.items():
        cells: list[Any] = [row]
        for of in values.values():
            cells += [float(end) for end in results.interval(of[row])]
        for what in ("average", "worst"):
            difference = values[what][row] - values[what][EQUAL]
            cells += [float(end) for end in results.interval(difference)]
            cells.append(verdicts[what].get(row, ""))
        cost = results.costs[row]
        cells += [float(results.beats_equal(row).mean), cost["time"], cost["memory"]]
        yield [*cells, results.time_to_target(row), each.round_seconds]


def _kpis(results: Results) -> Iterable[Sequence[Any]]:
    yield ["method", "seed", "step", "task", "kpi"]
    curves = {row: each.kpis for row, each in results.rows.items()}
    for row, curve in (curves | {SINGLE: results.single}).items():
        every = results.num_steps // curve.shape[1]
        for seed, measured, task in np.ndindex(curve.shape):
            kpi = float(curve[seed, measured, task])
            yield [row, seed, (measured + 1) * every, results.names[task], kpi]


def _tries(results: Results) -> Iterable[Sequence[Any]]:
    yield ["method", "rate", "numbers", "score", "chosen"]
    for row, each in results.rows.items():
        for place, setting in enumerate(each.settings):
            numbers = "; ".join(f"{k} {v}" for k, v in setting["numbers"].items())
            score = float(each.scores[place])
            yield [row, setting["rate"], numbers, score, place == each.chosen]
