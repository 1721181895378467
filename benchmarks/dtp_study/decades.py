"""Losses whose sizes differ by decades."""

import functools
from typing import Any

import optax

from dtp_jax import balancers
from examples import _problems
from examples._problems import Problem
from examples._tables import markdown

from ._harness import (
    DEFAULTS,
    Row,
    Size,
    average,
    best_rates,
    prioritized,
    setting,
    train,
    weighted,
    worst,
)

FACTORS = {"left": 100.0, "overlap": 0.01, "right": 1.0}
RATES = (1e-3, 2e-3, 3e-3, 6e-3)
KINDS = {"left": "classification", "overlap": "regression", "right": "classification"}


@functools.cache
def _scaled(num_steps: int) -> Problem:
    problem = _problems.pairs(width=64, num_steps=num_steps)

    def losses_and_kpis(params, batch):
        losses, kpis = problem.losses_and_kpis(params, batch)
        return {name: FACTORS[name] * loss for name, loss in losses.items()}, kpis

    return problem._replace(losses_and_kpis=losses_and_kpis)


def _then_focal(first: Any) -> Any:
    def balancer(setting):
        focal = balancers.focal(gamma=setting["gamma"], alpha=DEFAULTS["alpha"])
        return optax.chain(first, focal, balancers.normalize_weights())

    return balancer


def report(size: Size) -> str:
    """Rules that even out the losses, with focal weights after them and without.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problem = _scaled(size.num_steps // 2)
    inverse = {
        steps: balancers.inverse_losses(num_steps=steps) for steps in (1, 10, 100)
    }

    def alone(balancer):
        return weighted(problem, balancer=lambda _: balancer)

    def then_focal(first):
        return weighted(problem, balancer=_then_focal(first))

    after_inverse = then_focal(inverse[10])
    methods: dict[str, Any] = {
        "equal weights": (weighted(problem), 2.0),
        "DTP": (prioritized(problem), 2.0),
        "uncertainty": (alone(balancers.uncertainty(kind=KINDS)), 2.0),
        "geometric": (alone(balancers.geometric()), 2.0),
        "imtl_l": (alone(balancers.imtl_l()), 2.0),
        "imtl_l, focal": (then_focal(balancers.imtl_l()), 2.0),
        **{
            f"inverse_losses(num_steps={steps})": (alone(balancer), 2.0)
            for steps, balancer in inverse.items()
        },
        "inverse_losses(), focal, gamma 0": (after_inverse, 0.0),
        "inverse_losses(), focal, gamma 2": (after_inverse, 2.0),
    }
    memories = (0.95, 0.999)

    def row(make, gamma, b2, rate):
        return Row(problem, make, setting(rate, cosine=True, gamma=gamma, b2=b2))

    grid = {
        (name, b2): functools.partial(row, make, gamma, b2)
        for name, (make, gamma) in methods.items()
        for b2 in memories
    }
    rates = best_rates(grid, RATES, size, "decades, rates")
    rows = {key: make(rates[key]) for key, make in grid.items()}
    logs = train(rows, size, "decades")
    head = ["rate", "average", "worst task"]
    lines = [["method", *(f"b2 {b2:g}: {what}" for b2 in memories for what in head)]]
    for name in methods:
        cells = []
        for b2 in memories:
            log = logs[name, b2]
            cells += [f"{rates[name, b2]:g}", average(log), worst(log)]
        lines.append([name, *cells])
    text = (
        "Three tasks in a network of half the width, half the steps, cosine decay; the "
        f"losses times {FACTORS}; the best of {len(RATES)} rates on validation digits:"
    )
    return f"{text}\n\n{markdown(lines)}"
