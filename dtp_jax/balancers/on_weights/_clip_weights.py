"""Weights within bounds."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number, known_number
from dtp_jax._core.layout import layout_of, per_task


def clip_weights(low: Any = None, high: Any = None) -> Balancer:
    """Brings the weights of the active tasks into an interval.

    Chain it after another balancer. A weight of zero means that the task is not active,
    and stays zero. A negative weight, which a few rules give, is one of an active task;
    ``clip_weights(low=0.0)`` makes it 1e-30, the least that an active task can have.
    After `normalize_weights` the sum is no longer exact, and normalizing once more may
    leave the interval.

    Args:
        low: The lower bound, a scalar or a pytree like the tasks; None for none.
        high: The upper bound, positive, likewise.

    Returns:
        A balancer without state.

    Raises:
        ValueError: If there is no bound, or the interval is empty; from `update`, if a
            bound does not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = clip_weights(low=0.5, high=2.0)
        >>> weights = jnp.array([0.1, 1.0, 7.0, 0.0])
        >>> balancer.update(weights, balancer.init(weights))[0].tolist()
        [0.5, 1.0, 2.0, 0.0]
    """
    if low is None and high is None:
        raise ValueError("clip_weights needs a bound: low=, high=, or both.")
    for number in jax.tree.leaves(low):
        check_number("low", number, high=math.inf, open_high=True, infinite=True)
    least = max(0, known_number(low) or 0)
    for number in jax.tree.leaves(high):
        check_number("high", number, low=least, open_low=least == 0, infinite=True)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        weights = layout.vector("preferences", updates)
        active = jnp.asarray(weights != 0, weights.dtype)
        bottom = -jnp.inf if low is None else low
        top = jnp.inf if high is None else high
        lower = per_task("low", bottom, layout, infinite=True)
        upper = per_task("high", top, layout, infinite=True)
        return layout.tree(nonzero(jnp.clip(weights, lower, upper), active)), state

    return transformation(lambda params: optax.EmptyState(), update)
