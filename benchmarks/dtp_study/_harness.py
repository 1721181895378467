"""Runs of the study: the demo's problems, with any argument of the link."""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dtp_jax import balance, balancers, dynamic_task_prioritization
from examples import _contest, _methods, two_digits
from examples._contest import Job, Log, Setting, with_error
from examples._problems import Problem
from examples._tables import markdown

MakeOptimizer = Callable[[Setting], optax.GradientTransformation]

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(
        dynamic_task_prioritization
    ).parameters.items()
}


class Size(NamedTuple):
    """How much to run."""

    num_seeds: int = 5
    num_steps: int = 4000  # of the three tasks; everything else in proportion
    measurements: int = 20

    @property
    def seeds(self) -> range:
        """Those to report."""
        return range(self.num_seeds)


class Row(NamedTuple):
    """One line of a table."""

    problem: Problem
    make_optimizer: MakeOptimizer
    setting: Setting


def train(
    rows: Mapping[Any, Row],
    size: Size,
    title: str,
    seeds: Sequence[int] | None = None,
) -> dict[Any, Log]:
    """Trains all rows.

    Args:
        rows: By any names.
        size: How much.
        title: For the progress bar.
        seeds: Others than those to report.

    Returns:
        Logs by the names of the rows, on validation and on test images.
    """
    jobs = {
        name: Job(
            row.problem,
            data_of(row.problem),
            row.make_optimizer,
            [row.setting],
            size.seeds if seeds is None else seeds,
            ("validation", "test"),
            size.measurements,
        )
        for name, row in rows.items()
    }
    return _contest.train(jobs, title)


@functools.cache
def data_of(problem: Problem) -> Any:
    """The images of a problem, on the device, made once.

    Args:
        problem: Whose.

    Returns:
        Batches by split.
    """
    return jax.device_put(problem.make_data())


@functools.cache
def tuned() -> Any:
    """What ``python -m examples.two_digits --tune`` found."""
    return json.loads(two_digits.TUNED.read_text(encoding="utf-8"))


def rate_of(name: str, schedule: str, method: str) -> float:
    """The learning rate that the demo chose on validation digits.

    Args:
        name: Of the problem in the demo.
        schedule: "constant" or "cosine".
        method: A row of the demo.

    Returns:
        The rate.
    """
    choice = tuned()[name][schedule]["methods"][method]
    return choice["tried"][choice["chosen"]]["rate"]


def setting(rate: float, *, cosine: bool = False, **options: Any) -> dict[str, Any]:
    """Numbers that do not need a program of their own; the link's defaults otherwise.

    Args:
        rate: The learning rate.
        cosine: Whether it falls.
        **options: `b2`, and those arguments of the link that are numbers.

    Returns:
        What `prioritized` and `weighted` take.
    """
    names = ("gamma", "alpha", "warmup_steps", "ramp_steps", "floor")
    defaults = {name: DEFAULTS[name] for name in names}
    return {"rate": rate, "cosine": cosine, "b2": 0.999} | defaults | options


@functools.cache
def prioritized(
    problem: Problem,
    *,
    adam: Callable[[Any, Any], Any] = optax.adam,
    normalize: Any = DEFAULTS["normalize"],
    stages: Any = None,
    kpi_range: Any = None,
) -> MakeOptimizer:
    """Adam after the link.

    Args:
        problem: To be trained.
        adam: From a schedule and b2 to an optimizer.
        normalize: As for the link.
        stages: As for the link, as pairs.
        kpi_range: As for the link, as pairs.

    Returns:
        An optimizer for a setting.
    """

    def make_optimizer(setting: Setting) -> Any:
        whole = {
            name: setting[name].astype(int) for name in ("warmup_steps", "ramp_steps")
        }
        link = dynamic_task_prioritization(
            problem.tasks,
            gamma=setting["gamma"],
            alpha=setting["alpha"],
            floor=0.0 if normalize is None else setting["floor"],
            normalize=normalize,
            stages=None if stages is None else dict(stages),
            kpi_range=None if kpi_range is None else dict(kpi_range),
            **whole,
        )
        return optax.chain(link, _adam(adam, setting, problem))

    return make_optimizer


@functools.cache
def weighted(
    problem: Problem,
    *,
    balancer: Callable[[Setting], Any] = lambda _: balancers.constant(1.0),
    adam: Callable[[Any, Any], Any] = optax.adam,
) -> MakeOptimizer:
    """Adam after any balancer, equal weights by default.

    Args:
        problem: To be trained.
        balancer: For a setting.
        adam: From a schedule and b2 to an optimizer.

    Returns:
        An optimizer for a setting.
    """

    def make_optimizer(setting: Setting) -> Any:
        link = balance(balancer(setting), problem.tasks)
        return optax.chain(link, _adam(adam, setting, problem))

    return make_optimizer


def _adam(adam: Callable[..., Any], setting: Setting, problem: Problem) -> Any:
    schedule = _contest.learning_rate(setting, problem.num_steps)
    return adam(schedule, b2=setting["b2"])


def three_tasks(size: Size) -> Problem:
    """The three tasks of the demo.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    return _methods.contests(size.num_steps)["three tasks"].problem


def row_of_twelve(size: Size) -> Problem:
    """The row of the demo.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    return _methods.contests(size.num_steps)["row of twelve"].problem


def average(log: Log) -> str:
    """The average KPI of a log with one setting, in percent.

    Args:
        log: With one setting.

    Returns:
        Mean and standard error.
    """
    return with_error(100 * log.last()[0].mean(axis=1))


def worst(log: Log) -> str:
    """The KPI of the worst task, in percent.

    Args:
        log: With one setting.

    Returns:
        Mean and standard error.
    """
    return with_error(100 * log.last()[0].min(axis=1))


def table(head: Sequence[str], rows: Mapping[Any, Sequence[Log]]) -> str:
    """Average and worst task of logs that stand side by side.

    Args:
        head: Of the first column, and of each pair of columns.
        rows: Logs by what stands in the first column.

    Returns:
        The table in Markdown.
    """
    first, *groups = head
    columns = [
        f"{group}{what}" for group in groups for what in ("average", "worst task")
    ]
    lines = [[first, *columns]]
    for name, logs in rows.items():
        cells = [text for log in logs for text in (average(log), worst(log))]
        lines.append([str(name), *cells])
    return markdown(lines)


def best_rates(
    methods: Mapping[Any, Callable[[float], Row]],
    rates: Sequence[float],
    size: Size,
    title: str,
) -> dict[Any, float]:
    """Chooses a learning rate for each method, on validation digits, by the average.

    Args:
        methods: Rows for a rate.
        rates: To try.
        size: How much.
        title: For the progress bar.

    Returns:
        Rates by method.
    """
    rows = {
        (name, rate): make(rate) for name, make in methods.items() for rate in rates
    }
    logs = train(rows, size, title, (100,))
    scores = {key: log.last("validation").mean() for key, log in logs.items()}
    return {
        name: rates[int(np.nanargmax([scores[name, rate] for rate in rates]))]
        for name in methods
    }
