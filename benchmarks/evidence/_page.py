"""The page that a run writes: one table over problems, then a table for each."""

import datetime
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dtp_jax
from dtp_jax import plot
from dtp_jax.compare import Comparison
from dtp_jax.compare._tables import markdown

from ._problems import PROBLEMS
from ._size import FULL, Size

# Beside the page.
PICTURE = "evidence/weights.png"
EQUAL, FIXED = "equal weights", "fixed weights"
# What the summary has to say something about.
FAMILIES = {
    "DTP": ("DTP", "DTP, short ramp", "DTP, gamma", "DTP, UPGrad"),
    "methods of conflicting gradients": (
        *("MGDA", "UPGrad", "UPGrad, every 10", "dual projection", "PCGrad"),
        *("GradVac", "CAGrad", "Nash-MTL", "FairGrad", "IMTL-G", "Aligned-MTL"),
        *("ConFIG", "MoDo", "SDMGrad", "GradDrop", "MoCo"),
    ),
}


def page(results: Mapping[str, Comparison], size: Size) -> str:
    """Everything, in Markdown.

    Args:
        results: By problem.
        size: Of the run.

    Returns:
        The page.
    """
    first = next(iter(results.values()))
    compared = {
        name: each for name, each in results.items() if not PROBLEMS[name].published
    }
    versions = {**first.versions, "python": platform.python_version()}
    named = ", ".join(f"{name} {value}" for name, value in versions.items())
    head = f"""
        Written by `make evidence` on {datetime.date.today():%d %B %Y}, with dtp_jax
        {dtp_jax.__version__}, {named}, on {machine()}. Every method at its defaults,
        {size.tries} tries of the learning rate on validation data with other seeds, of
        which there were {size.tuning_seeds}, and {size.seeds} seeds reported ([what is
        done and how](compare.md)). KPIs in percent; half of the 95% intervals. The
        repository keeps what was trained, and `make evidence` goes on from there.
    """
    missing = [name for name in PROBLEMS if name not in results]
    left = f"Not on this page, since they were not run: {_listed(missing)}."
    warning = "This is a short form, to see that everything runs: do not read it."
    parts = [
        "# Evidence",
        _filled(head),
        *([_filled(left)] if missing else []),
        *([] if size == FULL else [warning]),
        *_over_all(compared),
        *(
            [
                "## What the methods do",
                _filled(_of_the_picture(next(iter(compared)))),
                f"![Weights of every method]({PICTURE})",
            ]
            if compared
            else []
        ),
        *(
            part
            for name, result in results.items()
            for part in (
                f"## {name[0].upper()}{name[1:]}",
                _filled(PROBLEMS[name].about),
                *_beside_the_paper(name, result),
                result.table(),
                result.summary(),
                "Task by task:",
                result.task_table(),
                "With as many tries as fit into the time that equal weights take:",
                result.time_table(),
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def picture(results: Mapping[str, Comparison]) -> Any:
    """The weights of every method that has some, on the first problem.

    Args:
        results: By problem.

    Returns:
        A figure, or None if there is no such problem.
    """
    for name, result in results.items():
        if PROBLEMS[name].published:
            continue
        shown = {}
        for method, row in result.rows.items():
            weights = np.asarray(row.weights, float)
            if np.isfinite(weights).all():
                sums = np.abs(weights).sum(axis=-1, keepdims=True)
                shown[method] = weights / np.where(sums > 0, sums, 1)
        every = result.num_steps // next(iter(shown.values())).shape[1]
        figure = plot.weights(shown, result.names, every=every, columns=5)
        for axis in figure.axes:
            axis.set_ylim(0, 1)
        return figure
    return None


def _of_the_picture(name: str) -> str:
    return f"""
        The share of each task in the sum of the weights, on {name}, each method at the
        rate that was chosen for it: means over steps and seeds, with bands from the
        lowest seed to the highest. Combiners have no weights. Methods that look alike
        here differ in the length of the step, which the learning rate makes up for.
    """


def _over_all(results: Mapping[str, Comparison]) -> list[str]:
    if not results:
        return []
    return [
        "## Over the problems",
        overview(results),
        _filled(_how_to_read(results)),
        "## What holds, and what does not",
        findings(results),
    ]


def _beside_the_paper(name: str, result: Comparison) -> list[str]:
    published = PROBLEMS[name].published
    if published is None:
        return []
    names = result.names
    head = ["method", *names, *(f"{task}, published" for task in names)]
    rows = []
    for method, figures in published.items():
        if method != "single tasks" and method not in result.rows:
            continue
        kpis = result.single if method == "single tasks" else result.rows[method].kpis
        found = [f"{100 * value:.2f}" for value in kpis[:, -1].mean(axis=0)]
        rows.append([method, *found, *(f"{value:.2f}" for value in figures)])
    return ["The paper's figures beside ours:", markdown([head, *rows])]


def overview(results: Mapping[str, Comparison]) -> str:
    """One row for each method: means over the problems.

    Args:
        results: By problem.

    Returns:
        Markdown, the best mean rank first.
    """
    rows = {}
    for method in _methods(results):
        of = [each for each in results.values() if method in each.rows]
        values = [each.values() for each in of]
        cells = {
            what: _mean([each[what][method].mean() for each in values])
            for what in ("rank", "improvement")
        }
        gains = {
            what: _mean([(v[what][method] - v[what][EQUAL]).mean() for v in values])
            for what in ("average", "worst")
        }
        beats = np.mean([each.beats_equal(method).mean for each in of])
        time = np.median([each.costs[method]["time"] for each in of])
        rate = np.exp(np.mean([_log_rate(each, method) for each in of]))
        verdicts = [_verdict(each, "average", method) for each in of]
        worst = [_verdict(each, "worst", method) for each in of]
        rows[cells["rank"], method] = [
            method,
            str(len(of)),
            f"{cells['rank']:.1f}",
            _signed(cells["improvement"]),
            _signed(gains["average"]),
            _signed(gains["worst"]),
            f"{100 * beats:.0f}",
            _counts(verdicts),
            _counts(worst),
            f"{rate:.1f}",
            f"{time:.2f}",
        ]
    head = ["method", "problems", "mean rank", "delta-m", "average, difference"]
    head += ["worst, difference", "beats equal", "average: better, worse"]
    head += ["worst: better, worse", "rate", "time"]
    return markdown([head, *(rows[key] for key in sorted(rows))])


def findings(results: Mapping[str, Comparison]) -> str:
    """What the verdicts come to, problem by problem.

    Args:
        results: By problem.

    Returns:
        Sentences, a line each.
    """
    lines = [_largest_gains(results, "average"), _largest_gains(results, "worst")]
    suffices, beaten = [], {}
    for name, result in results.items():
        ahead = _better_than(result, FIXED)
        if ahead:
            beaten[name] = ahead
        else:
            suffices.append(name)
    lines.append(
        "Tuned fixed weights suffice for the average, no method being ahead of them by "
        f"more than noise: {_listed(suffices)}."
    )
    lines += [
        f"They do not on {name}: {_listed(methods)} {_are(methods)} ahead."
        for name, methods in beaten.items()
    ]
    for family, members in FAMILIES.items():
        for what, of in (("average", "the average"), ("worst", "the worst task")):
            for word in ("better", "worse"):
                found = {
                    name: [
                        each
                        for each in members
                        if each in result.rows and _verdict(result, what, each) == word
                    ]
                    for name, result in results.items()
                }
                shown = [
                    f"{name} ({', '.join(methods)})"
                    for name, methods in found.items()
                    if methods
                ]
                lines.append(
                    f"{family[0].upper()}{family[1:]}: {of} is {word} than with equal "
                    f"weights by more than noise on {_listed(shown)}."
                )
    everywhere = [
        method
        for method in _methods(results)
        if method != EQUAL
        and all(
            _verdict(each, "average", method) != "worse"
            for each in results.values()
            if method in each.rows
        )
    ]
    lines.append(
        "Never behind equal weights on the average by more than noise: "
        f"{_listed(everywhere)}."
    )
    return "\n".join(f"* {line}" for line in lines)


def _largest_gains(results: Mapping[str, Comparison], what: str) -> str:
    """The methods that ran on all problems and are furthest ahead of equal weights."""
    gains = {}
    for method in _methods(results):
        of = [each.values()[what] for each in results.values() if method in each.rows]
        if len(of) == len(results):
            gains[method] = float(np.mean([v[method] - v[EQUAL] for v in of]))
    best = sorted(gains, key=lambda method: -gains[method])[:5]
    named = [f"{method} ({_signed(gains[method])})" for method in best]
    task = "the average" if what == "average" else "the worst task"
    return (
        f"On the mean over the problems, {task} gains most over equal weights by "
        f"{_listed(named)} points."
    )


def machine() -> str:
    """What computes, without names of hosts or paths.

    Returns:
        The kind of device, and how many cores there are.
    """
    kind = jax.devices()[0].device_kind
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.split(":")[1] for line in lines if line.startswith("model name")]
        cpu = models[0].strip() if models else cpu
    cores = f"{os.cpu_count()} cores of {cpu}"
    return cores if kind == "cpu" else f"one {kind}, {cores}"


def _better_than(result: Comparison, against: str) -> list[str]:
    verdicts = result.verdicts(result.values()["average"], against)
    return [name for name, word in verdicts.items() if word == "better"]


def _verdict(result: Comparison, what: str, method: str) -> str:
    return result.verdicts(result.values()[what]).get(method, "-")


def _log_rate(result: Comparison, method: str) -> float:
    """How much larger the chosen rate is than that of equal weights, as a logarithm."""
    chosen, equal = (result.rows[row].setting["rate"] for row in (method, EQUAL))
    return float(np.log(chosen / equal))


def _counts(verdicts: Sequence[str]) -> str:
    return f"{verdicts.count('better')}, {verdicts.count('worse')}"


def _methods(results: Mapping[str, Comparison]) -> list[str]:
    found: dict[str, None] = {}
    for result in results.values():
        found |= dict.fromkeys(result.rows)
    return list(found)


def _how_to_read(results: Mapping[str, Comparison]) -> str:
    return f"""
        Means over the {len(results)} problems on which a method ran. "mean rank" is
        that over the tasks of a problem, among its methods; "delta-m" the relative
        improvement over networks of single tasks; differences are to equal weights, in
        points; "beats equal" is the share of the seeds in which the average is higher;
        "better, worse" counts the problems on which a method differs from equal weights
        by more than noise, with Holm's correction within each problem; "rate" is the
        learning rate that was chosen for it, relative to that of equal weights, as a
        geometric mean; "time" of a step is relative to plain training, the median.
    """


def _mean(values: Sequence[float]) -> float:
    # A problem on which single tasks learn nothing has no relative improvement.
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _signed(share: float) -> str:
    return f"{100 * share + 0.0:+.1f}" if np.isfinite(share) else "-"


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names) or "no problem"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _filled(text: str) -> str:
    return textwrap.fill(textwrap.dedent(text).strip(), 88)
