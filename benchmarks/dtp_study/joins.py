"""Tasks that join: which first, and how the shock is avoided."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import balancers, curricula
from examples._contest import Log
from examples._problems import Problem
from examples._tables import markdown

from ._harness import (
    DEFAULTS,
    Row,
    Size,
    average,
    data_of,
    prioritized,
    rate_of,
    row_of_twelve,
    setting,
    table,
    three_tasks,
    train,
    weighted,
    worst,
)

RAMPS = (0, 100, 400, 1000)
# Of 4000 steps, like the ramps.
FIRST, SECOND = 0.1, 0.2


def _schedule(size: Size, order: tuple[str, ...]) -> tuple[Any, ...]:
    joined = (0, round(FIRST * size.num_steps), round(SECOND * size.num_steps))
    return tuple((step, order[: i + 1]) for i, step in enumerate(joined))


def _resetting(joins: tuple[int, ...]):
    """Adam that forgets what it remembers when a task joins."""

    def adam(schedule, b2):
        inner = optax.scale_by_adam(b2=b2)

        def init(params):
            return jnp.zeros((), jnp.int32), inner.init(params)

        def update(updates, state, params=None):
            count, memory = state
            joining = jnp.isin(count, jnp.array(joins))
            # All of Adam's state is zero at the start.
            memory = jax.tree.map(lambda x: jnp.where(joining, 0, x), memory)
            updates, memory = inner.update(updates, memory, params)
            return updates, (count + 1, memory)

        start = optax.GradientTransformation(init, update)
        return optax.chain(start, optax.scale_by_learning_rate(schedule))

    return adam


def _clipping(schedule, b2):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=b2))


def _dead_units(problem: Problem, params: Any) -> str:
    """Units of the first layer that are zero on every test image, in percent."""
    images = data_of(problem)["test"].images

    def share(params):
        layer = params["trunk"]["layers"][0]
        x = images.reshape(len(images), -1) @ layer["kernel"] + layer["bias"]
        return jnp.mean(jnp.all(x <= 0, axis=0))

    shares = jax.vmap(share)(jax.tree.map(lambda x: x[0], params))
    return f"{100 * float(shares.mean()):.0f}"


def report(size: Size) -> str:
    """Stages in two orders with four ramps and other cures, and ramps elsewhere.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problem = three_tasks(size)
    easy = _schedule(size, ("left", "right", "overlap"))
    hard = _schedule(size, ("overlap", "right", "left"))
    joins = tuple(step for step, _ in easy[1:])
    rate = rate_of("three tasks", "constant", "DTP")

    def in_stages(stages, adam):
        ones = balancers.constant(1.0)

        def equal(setting):
            ramp = setting["ramp_steps"].astype(int)
            return curricula.stages(dict(stages), ones, ramp_steps=ramp)

        return {
            "equal weights": weighted(problem, balancer=equal, adam=adam),
            "DTP": prioritized(problem, stages=stages, adam=adam),
        }

    cures: dict[str, Any] = {
        f"ramp_steps {ramp}": (optax.adam, {"ramp_steps": ramp}) for ramp in RAMPS
    }
    cures["b2 0.95, no ramp"] = (optax.adam, {"ramp_steps": 0, "b2": 0.95})
    cures["Adam's memory reset, no ramp"] = (_resetting(joins), {"ramp_steps": 0})
    cures["clipped to norm 1, no ramp"] = (_clipping, {"ramp_steps": 0})
    rows: dict[Any, Row] = {
        ("none", "-", method): Row(problem, make, setting(rate))
        for method, make in {
            "equal weights": weighted(problem),
            "DTP": prioritized(problem),
        }.items()
    }
    makers: dict[Any, Any] = {}
    for order, stages in {"easy first": easy, "hard first": hard}.items():
        for cure, (adam, options) in cures.items():
            if order == "hard first" and cure not in ("ramp_steps 0", "ramp_steps 400"):
                continue
            if (order, adam) not in makers:
                makers[order, adam] = in_stages(stages, adam)
            for method, make in makers[order, adam].items():
                numbers = setting(rate, **_in_proportion(options, size))
                rows[order, cure, method] = Row(problem, make, numbers)
    logs = train(rows, size, "stages")
    lines = [
        [
            *("stages", "how", "weights", "average", "worst task"),
            *("dead units", "largest step / rate"),
        ]
    ]
    for (order, cure, method), log in logs.items():
        measured = [average(log), worst(log), _dead_units(problem, log.params)]
        lines.append([order, cure, method, *measured, _largest(log, rate)])
    text = (
        "Three tasks, constant rate, tasks joining at a tenth and a fifth of the "
        "steps; units of the first layer that are zero on all test images, in percent, "
        "and the largest step from the first join on, root mean square, median of the "
        "seeds:"
    )
    return f"{text}\n\n{markdown(lines)}\n\n{_elsewhere(size)}"


def _in_proportion(options: dict[str, Any], size: Size) -> dict[str, Any]:
    ramp = round(options["ramp_steps"] * size.num_steps / 4000)
    return options | {"ramp_steps": ramp}


def _largest(log: Log, rate: float) -> str:
    sizes = log.largest_steps[0]
    later = sizes[:, round(FIRST * sizes.shape[1]) :]
    return f"{np.median(later.max(axis=1)) / rate:.2f}"


def _elsewhere(size: Size) -> str:
    """Without stages the ramp is that out of the warm-up."""
    problems = {
        "three tasks": (three_tasks(size), "constant"),
        "row of twelve": (row_of_twelve(size), "cosine"),
    }
    rows = {}
    for title, (problem, schedule) in problems.items():
        rate = rate_of(title, schedule, "DTP")
        for ramp in RAMPS:
            options = _in_proportion({"ramp_steps": ramp}, size)
            numbers = setting(rate, cosine=schedule == "cosine", **options)
            rows[ramp, title] = Row(problem, prioritized(problem), numbers)
    logs = train(rows, size, "ramps without stages")
    head = ["ramp_steps", *(f"{title}: " for title in problems)]
    lines = {ramp: [logs[ramp, title] for title in problems] for ramp in RAMPS}
    text = (
        "No stages, DTP: the ramp leads out of the warm-up of "
        f"{DEFAULTS['warmup_steps']} steps. Three tasks at a constant rate, the row "
        "with cosine decay:"
    )
    return f"{text}\n\n{table(head, lines)}"
