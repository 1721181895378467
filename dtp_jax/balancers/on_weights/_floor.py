"""Weights of a least size."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number
from dtp_jax._core.layout import layout_of, per_task


def floor(min_weight: Any) -> Balancer:
    """Gives each active task at least a certain weight.

    Computes ``max(w, min_weight)``, so that no task is forgotten: with `floor` chained
    after `focal`, solved tasks go on training a little. A weight of zero means that the
    task is not active, and stays zero; a negative one is raised like any other. Weights
    that are large enough do not change, so the sum may grow.

    Args:
        min_weight: At least 0, a scalar or a pytree like the tasks; for 0 the least
            weight is 1e-30.

    Returns:
        A balancer without state.

    Raises:
        ValueError: If `min_weight` is negative; from `update`, if it does not match the
            tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, weights = floor(0.25), jnp.array([3.0, 1e-30, 0.0])
        >>> balancer.update(weights, balancer.init(weights))[0].tolist()
        [3.0, 0.25, 0.0]
    """
    for number in jax.tree.leaves(min_weight):
        check_number("min_weight", number, low=0)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        weights = layout.vector("preferences", updates)
        active = jnp.asarray(weights != 0, weights.dtype)
        least = per_task("min_weight", min_weight, layout)
        return layout.tree(nonzero(jnp.maximum(weights, least), active)), state

    return transformation(lambda params: optax.EmptyState(), update)
