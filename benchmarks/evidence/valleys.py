"""Two valleys whose gradients conflict, with a known front."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.compare import Problem
from examples import _toys

from ._size import Size, adam


def two_valleys(size: Size) -> Problem:
    """CAGrad's toy: a point that starts anywhere above two valleys.

    A KPI of 1 is the best value that its task has on the front, and 0 the worst. The
    middle of the front has 0.75 for both tasks, which is the best average; its ends
    have 1 and 0.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    points = jnp.asarray(_toys.two_valleys_front(2), jnp.float32)
    ends = np.asarray(jax.vmap(_toys.two_valleys)(points))
    best, worst = ends.min(axis=0), ends.max(axis=0)

    def losses(point: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        del batch
        found = _toys.two_valleys(point)
        return found, jnp.clip((worst - found) / (worst - best), 0, 1)

    def init(key: jax.Array) -> jax.Array:
        low, high = jnp.array([-9.0, 0.0]), jnp.array([9.0, 9.0])
        return jax.random.uniform(key, (2,), minval=low, maxval=high)

    steps = size.steps(3000)
    nothing = np.zeros(())
    return Problem(
        tasks=2,
        init=init,
        losses=losses,
        train=lambda key, step: jnp.zeros(()),
        validation=nothing,
        test=nothing,
        optimizer=adam(steps),
        num_steps=steps,
    )
