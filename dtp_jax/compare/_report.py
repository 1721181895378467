"""The tables of a comparison, and what they come to."""

import textwrap
from collections.abc import Iterable

import numpy as np

from ._plan import ALWAYS, EQUAL, SINGLE
from ._result import Results
from ._settings import Setting
from ._student import Interval
from ._tables import markdown, number, percent

RULES = {
    "average": "the average KPI of the tasks",
    "worst": "the KPI of the worst task",
    "rank": "the mean rank over the tasks",
    "improvement": "the improvement over single tasks",
}


def table(results: Results) -> str:
    """The methods side by side, those ahead by the rule first.

    Args:
        results: To be shown.

    Returns:
        Markdown.
    """
    values = results.values()
    verdicts = {what: results.verdicts(values[what]) for what in ("average", "worst")}
    head = ["method", "average", "worst task", "delta-m", "mean rank", "beats equal"]
    head += ["average, difference", "worst, difference", "time", "memory"]
    rows = [[*head, _target(results)]]
    for row in results.in_order():
        interval = {what: results.interval(each[row]) for what, each in values.items()}
        cells = [
            row,
            percent(interval["average"]),
            percent(interval["worst"]),
            percent(interval["improvement"], "+"),
            number(interval["rank"]),
        ]
        if row == EQUAL:
            cells += ["-", "-", "-"]
        else:
            cells.append(_share(results.beats_equal(row)))
            for what in ("average", "worst"):
                difference = values[what][row] - values[what][EQUAL]
                text = percent(results.interval(difference), "+")
                cells.append(f"{text} {verdicts[what][row]}")
        cost = results.costs[row]
        cells += [f"{cost['time']:.2f}", f"{cost['memory']:.2f}"]
        rows.append([*cells, _time(results.time_to_target(row))])
    alone = results.alone
    single = [
        SINGLE,
        percent(results.interval(alone.mean(axis=1))),
        percent(results.interval(alone.min(axis=1))),
        *["-"] * 5,
        f"{len(results.names):.2f}",
        "-",
        _time(results.time_to_target(SINGLE)),
    ]
    return markdown([*rows, single])


def task_table(results: Results) -> str:
    """The KPI of every task, and the setting that was chosen.

    Args:
        results: To be shown.

    Returns:
        Markdown.
    """
    rows = [["method", *results.names, "chosen"]]
    for row in results.in_order():
        each = results.rows[row]
        interval = results.interval(each.last)
        rows.append([row, *_of_tasks(interval), _setting(each.setting)])
    interval = results.interval(results.alone)
    rows.append([SINGLE, *_of_tasks(interval), "-"])
    return markdown(rows)


def time_table(results: Results) -> str:
    """The methods with as many tries as fit into the time of equal weights.

    Args:
        results: To be shown.

    Returns:
        Markdown.
    """
    values = results.values(in_time=True)
    verdicts = results.verdicts(values["average"])
    rows = [["method", "tries", "average", "worst task", "average, difference"]]
    for row in results.in_order(in_time=True):
        difference = values["average"][row] - values["average"][EQUAL]
        compared = percent(results.interval(difference), "+")
        rows.append(
            [
                row,
                str(results.rows[row].tries_in_time),
                percent(results.interval(values["average"][row])),
                percent(results.interval(values["worst"][row])),
                "-" if row == EQUAL else f"{compared} {verdicts[row]}",
            ]
        )
    return markdown(rows)


def summary(results: Results) -> str:
    """What the tables come to.

    Args:
        results: To be summed up.

    Returns:
        Sentences, a line each.
    """
    order = results.in_order()
    ahead, near = results.best()
    verdicts = results.verdicts(results.by_rule())
    what = RULES[results.rule]
    lines = [f"By {what}, {ahead} is ahead."]
    if near:
        named = [row for row in order if row in near]
        lines.append(
            f"Within noise of it, seed by seed, whatever their means: {_listed(named)}."
        )
    lines.append(_about_single_tasks(results))
    for word in ("better", "worse"):
        named = [row for row in order if verdicts.get(row) == word]
        lines.append(
            f"{word.capitalize()} than equal weights by more than noise: "
            f"{_listed(named)}."
        )
    still = [row for row in order if row not in ALWAYS and _stood_still(results, row)]
    if still:
        lines.append(
            f"The weights of {_listed(still)} stayed equal within 1 %: the run is too "
            "short for its settings, such as warmup_steps and ramp_steps, or nothing "
            "that it reads tells the tasks apart."
        )
    diverged = {row: each.num_diverged for row, each in results.rows.items()}
    lines += [
        f"{row}: {count} of {results.num_seeds} seeds ended with a KPI that is no "
        "number, which counts as 0."
        for row, count in diverged.items()
        if count
    ]
    return "\n".join(f"* {line}" for line in [*lines, *results.notes])


def _about_single_tasks(results: Results) -> str:
    """Whether one network for all tasks costs something."""
    averages = results.values()["average"]
    best = max(averages, key=lambda row: float(averages[row].mean()))
    alone = results.alone.mean(axis=1)
    difference = results.interval(alone - averages[best])
    where = "within noise of it"
    if difference.low > 0:
        where = "ahead of it by more than noise"
    elif difference.high < 0:
        where = "behind it by more than noise"
    return (
        f"The best average of one network for all tasks is that of {best}; "
        f"{len(results.names)} networks of single tasks are {where}: "
        f"{percent(difference, '+')} points."
    )


def _stood_still(results: Results, row: str) -> bool:
    weights = np.asarray(results.rows[row].weights, float)
    sums = weights.sum(axis=-1, keepdims=True)
    if not np.isfinite(weights).all() or (sums <= 0).any():
        return False
    return bool((np.abs(weights * len(results.names) / sums - 1) < 0.01).all())


def report(results: Results) -> str:
    """Tables, summary, and how to read them.

    Args:
        results: To be shown.

    Returns:
        Markdown.
    """
    count, tries = results.num_seeds, len(results.rates)
    notes = f"""
        KPIs on test data in percent, higher is better, after {results.num_steps} steps:
        means over {count} seeds and half of their {results.confidence:.0%} intervals
        (Student's t, for independent seeds and means that are about normal). Seeds vary
        initial parameters and batches, not the data. Every method had {tries} tries of
        rate or setting, judged by {RULES[results.rule]} on validation data with
        {results.tuning_seeds} other seeds. "delta-m" is the mean relative improvement
        over networks of single tasks, "mean rank" that among the methods, "beats equal"
        the share of the seeds in which a method is ahead of equal weights by the rule,
        with Wilson's interval. Differences are to equal weights of the same seed;
        "noise" is what paired t-tests do not tell from zero, with Holm's correction for
        all the methods of the table. "time" and "memory" of a step are relative to
        plain training, measured with one network at a time; "{_target(results)}" is in
        units of a whole plain training, until the average first has so much of that of
        equal weights at the end.
    """
    in_time = """
        With as many tries as fit into the time that equal weights take for theirs,
        those of middle rates first:
    """
    parts = [
        table(results),
        summary(results),
        "Task by task, with the learning rate and what else was chosen:",
        task_table(results),
        _filled(in_time),
        time_table(results),
        _filled(notes),
    ]
    return "\n\n".join(parts)


def _of_tasks(interval: Interval) -> list[str]:
    columns = zip(*interval, strict=True)
    return [percent(Interval(*column)) for column in columns]


def _setting(setting: Setting) -> str:
    parts = [f"rate {setting['rate']:g}"]
    for name, value in setting["numbers"].items():
        if not isinstance(value, list):
            parts.append(f"{name} {value:g}")
        elif len(set(value)) > 1:
            shown = ", ".join(f"{each:.2g}" for each in value[:4])
            parts.append(f"{name} {shown}{', ...' if len(value) > 4 else ''}")
    return "; ".join(parts)


def _share(interval: Interval) -> str:
    mean, low, high = (100 * float(each) for each in interval)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def _time(time: float) -> str:
    return f"{time:.2f}" if np.isfinite(time) else "never"


def _target(results: Results) -> str:
    return f"time to {results.target:.0%}"


def _listed(names: Iterable[str]) -> str:
    return "; ".join(names) or "none"


def _filled(text: str) -> str:
    return textwrap.fill(textwrap.dedent(text).strip(), 88)
