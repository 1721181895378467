"""Weights of a fixed sum."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import SMALLEST_WEIGHT, Balancer, stateless_weighting

Total = Literal["sum_to_T", "sum_to_1"]


def normalize_weights(total: Total = "sum_to_T") -> Balancer:
    """Scales the weights of the active tasks so that they have a fixed sum.

    Computes ``w = p * n / sum(p)``, where n is the number of active tasks (those of
    positive weight) or 1. Chain it after another balancer. If no task is active, all
    weights stay zero. After `focal`, whose weights of solved tasks are all 1e-30, the
    weights of tasks that are all solved come out equal. An active task keeps at least
    1e-30.

    Args:
        total: "sum_to_T", the number of active tasks, or "sum_to_1".

    Returns:
        A balancer without state.

    Raises:
        ValueError: If `total` is neither.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = normalize_weights("sum_to_T")
        >>> weights = jnp.array([3.0, 1.0, 0.0])
        >>> balancer.update(weights, balancer.init(weights))[0].tolist()
        [1.5, 0.5, 0.0]
    """
    if total not in get_args(Total):
        raise ValueError(f"total must be 'sum_to_T' or 'sum_to_1', got {total!r}.")

    def rule(preferences: jax.Array) -> jax.Array:
        total_weight = jnp.sum(preferences)
        active = jnp.sum(preferences > 0) if total == "sum_to_T" else 1
        shares = preferences / linalg.positive(total_weight)
        return jnp.maximum(shares * active, SMALLEST_WEIGHT)

    return stateless_weighting(rule)
