"""A physics-informed network: an equation and two boundaries."""

from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax.compare import Problem
from examples import physics_informed
from examples.physics_informed import NUM_POINTS, TASKS, Points

from ._size import Size, adam

DECADES = 3  # a relative error of so many powers of ten below one has the KPI 1


def helmholtz(size: Size) -> Problem:
    """The equation of the example, whose KPIs count decades of the relative error.

    The error of a task is the root of its loss, relative to that of ``u = 0`` for the
    equation, and to the size of the solution for the sides: 1 is a KPI of 0.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    many = _points(jax.random.key(0), 50)
    sources = physics_informed.source(many.residual)
    scales = {
        "residual": float(jnp.mean(sources**2)),
        "x_sides": 0.25,
        "y_sides": 0.25,
    }

    def losses(params: Any, points: Points) -> tuple[Any, Any]:
        found = physics_informed.losses_fn(params, points)
        return found, {task: _kpi(found[task] / scales[task]) for task in TASKS}

    steps = size.steps(3000)
    return Problem(
        tasks=list(TASKS),
        init=physics_informed.init_params,
        losses=losses,
        train=lambda key, step: _points(key, 1),
        validation=_points(jax.random.key(1), 20),
        test=_points(jax.random.key(2), 20),
        optimizer=adam(steps),
        num_steps=steps,
    )


def _kpi(relative: jax.Array) -> jax.Array:
    # Half of the logarithm of a square is that of its root.
    smallest = 10.0 ** (-2 * DECADES)
    decades = -jnp.log10(jnp.clip(relative, smallest, 1)) / 2
    return jnp.clip(decades / DECADES, 0, 1)


def _points(key: jax.Array, factor: int) -> Points:
    drawn = {}
    for place, task in enumerate(TASKS):
        shape = (factor * NUM_POINTS[task], 2)
        drawn[task] = jax.random.uniform(
            jax.random.fold_in(key, place), shape, minval=-1.0, maxval=1.0
        )
    for axis, task in enumerate(TASKS[1:]):
        count = len(drawn[task])
        sides = jnp.where(jnp.arange(count) % 2, 1.0, -1.0)
        drawn[task] = drawn[task].at[:, axis].set(sides)
    return Points(**drawn)
