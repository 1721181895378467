"""Where it does not help: a difficulty that moves, and plain SGD."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import metrics
from examples import _digits, _problems
from examples._contest import Log, with_error
from examples._problems import Problem, cross_entropy
from examples._tables import markdown

from ._harness import (
    Row,
    Size,
    average,
    best_rates,
    prioritized,
    rate_of,
    setting,
    three_tasks,
    train,
    weighted,
    worst,
)
from .memory import OLD

FAINT = 0.3
RATES = (3e-4, 1e-3, 3e-3, 6e-3)


class _Moving(NamedTuple):
    above: Any  # [N, 10, 14]
    below: Any  # [N, 10, 14]
    noise: Any  # [N, 10, 14]
    left: Any  # [N]
    right: Any  # [N]
    images: Any = None  # [N, 10, 14], made anew in each step


def _make_moving(digits: _digits.Digits, size: int) -> _Moving:
    rng = np.random.default_rng(0)
    above, below, left, right = _digits.make_layers(digits, size, rng)
    noise = rng.normal(scale=_digits.NOISE, size=above.shape).astype(np.float32)
    return _Moving(above, below, noise, left, right)


@functools.cache
def _moving(num_steps: int) -> Problem:
    """Two tasks; every quarter of the steps the other digit is the faint one."""

    def prepare(batch, step):
        side = (4 * step // num_steps) % 2
        left = jnp.where(side == 0, 1.0, FAINT)
        right = jnp.where(side == 0, FAINT, 1.0)
        images = jnp.maximum(left * batch.above, right * batch.below)
        return batch._replace(images=images + batch.noise)

    def measure(out, batch):
        losses = {
            name: cross_entropy(out[name], getattr(batch, name)).mean()
            for name in names
        }
        kpis = {
            name: metrics.accuracy(out[name], getattr(batch, name)) for name in names
        }
        return losses, kpis

    def make_data():
        digits = _digits.split_digits()
        sizes = zip(
            ("train", "validation", "test"), _problems.SIZES["pairs"], strict=True
        )
        return {split: _make_moving(digits[split], size) for split, size in sizes}

    names = ("left", "right")
    net = functools.partial(_problems.PairNet, width=128)
    init_params, losses_and_kpis = _problems.functional(net, measure)
    return Problem(
        names,
        names,
        init_params,
        losses_and_kpis,
        make_data,
        num_steps,
        prepare=prepare,
    )


def _drift(size: Size) -> str:
    problem = _moving(size.num_steps)
    equal, ours = (
        rate_of("three tasks", "constant", name) for name in ("equal weights", "DTP")
    )
    rows = {
        "equal weights": Row(problem, weighted(problem), setting(equal)),
        "DTP": Row(problem, prioritized(problem), setting(ours)),
        "DTP, gamma 0": Row(problem, prioritized(problem), setting(ours, gamma=0.0)),
        "DTP, alpha 0.2": Row(problem, prioritized(problem), setting(ours, alpha=0.2)),
    }
    lines = [["method", "average", "the faint digit", "the clear digit"]]
    for name, log in train(rows, size, "moving difficulty").items():
        lines.append([name, *_over_time(log)])
    text = (
        "A difficulty that moves: the left or the right digit is faint, and they "
        "change places every quarter of the steps; constant rate, means over all the "
        "time:"
    )
    return f"{text}\n\n{markdown(lines)}"


def _over_time(log: Log) -> list[str]:
    kpis = 100 * log.kpis["test"][0]  # [S, E, T]
    count = kpis.shape[1]
    faint = 1 - (4 * np.arange(count) // count) % 2
    of_faint = kpis[:, np.arange(count), faint].mean(axis=1)
    of_clear = kpis[:, np.arange(count), 1 - faint].mean(axis=1)
    return [
        with_error((of_faint + of_clear) / 2),
        *map(with_error, (of_faint, of_clear)),
    ]


def _sgd(schedule: Any, b2: Any) -> Any:
    del b2
    return optax.sgd(schedule, momentum=0.9)


def _without_adam(size: Size) -> str:
    problem = three_tasks(size)
    makers: dict[str, Any] = {
        "equal weights": (weighted(problem, adam=_sgd), {}),
        "plain, gamma 2, alpha 0.75": (
            prioritized(problem, adam=_sgd, normalize=None),
            OLD,
        ),
        "DTP": (prioritized(problem, adam=_sgd), {}),
    }

    def row(name, rate):
        make, options = makers[name]
        return Row(problem, make, setting(rate, cosine=True, **options))

    grid = {name: functools.partial(row, name) for name in makers}
    rates = best_rates(grid, RATES, size, "SGD, rates")
    logs = train({name: grid[name](rates[name]) for name in grid}, size, "SGD")
    lines = [["method", "rate", "average", "worst task"]]
    for name, log in logs.items():
        lines.append([name, f"{rates[name]:g}", average(log), worst(log)])
    text = (
        "SGD with momentum 0.9 on the three tasks, cosine decay, the best of "
        f"{len(RATES)} rates on validation digits:"
    )
    return f"{text}\n\n{markdown(lines)}"


def report(size: Size) -> str:
    """Two settings that priorities do not serve.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    return f"{_drift(size)}\n\n{_without_adam(size)}"
