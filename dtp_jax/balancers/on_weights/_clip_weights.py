"""Weights within bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number
from dtp_jax._core.layout import layout_of


def clip_weights(
    low: jax.typing.ArrayLike | None = None, high: jax.typing.ArrayLike | None = None
) -> Balancer:
    """Brings the weights of the active tasks into an interval.

    Chain it after another balancer. A weight of zero means that the task is not active,
    and stays zero. A negative weight, which a few rules give, is one of an active task;
    ``clip_weights(low=0.0)`` makes it 1e-30, the least that an active task can have.
    After `normalize_weights` the sum is no longer exact, and normalizing once more may
    leave the interval.

    Args:
        low: The lower bound; None for none.
        high: The upper bound, positive; None for none.

    Returns:
        A balancer without state.

    Raises:
        ValueError: If there is no bound, or the interval is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = clip_weights(low=0.5, high=2.0)
        >>> weights = jnp.array([0.1, 1.0, 7.0, 0.0])
        >>> balancer.update(weights, balancer.init(weights))[0].tolist()
        [0.5, 1.0, 2.0, 0.0]
    """
    if low is None and high is None:
        raise ValueError("clip_weights needs a bound: low=, high=, or both.")
    check_number("low", low)
    bottom = low if isinstance(low, (int, float)) and low > 0 else 0
    check_number("high", high, low=bottom, open_low=bottom == 0)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        weights = layout.vector("preferences", updates)
        active = jnp.asarray(weights != 0, weights.dtype)
        return layout.tree(nonzero(jnp.clip(weights, low, high), active)), state

    return transformation(lambda params: optax.EmptyState(), update)
