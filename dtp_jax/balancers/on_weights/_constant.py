"""Fixed weights."""

from typing import Any

import jax
import optax

from dtp_jax._core.balancer import Balancer, transformation
from dtp_jax._core.checks import check_number
from dtp_jax._core.layout import layout_of, per_task


def constant(weights: Any) -> Balancer:
    """Multiplies each preference by a fixed number.

    Computes ``w = p * weights``. With the default preferences of one this is training
    on a fixed weighted sum of the losses, the baseline of every comparison. It reads no
    losses. A task of weight exactly zero is switched off: it has no influence on a
    balancer that is chained after this one.

    The weights may be traced: `optax.inject_hyperparams` takes a schedule of a pytree
    like the tasks, ``lambda step: {"a": 1 / (1 + step), "b": jnp.ones(())}``, where a
    Python number would compile the second step anew. An array it keeps in the state,
    where it can be changed between steps. For named tasks give each weight a name of
    its own there: ``inject_hyperparams(lambda a, b: constant({"a": a, "b": b}))``.

    Args:
        weights: At least 0; a scalar or a pytree like the tasks.

    Returns:
        A balancer without state.

    Raises:
        ValueError: If a weight is negative (to maximize a loss, negate the loss); from
            `update`, if the weights do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = constant({"a": 2.0, "b": 0.5})
        >>> losses = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
        >>> preferences = {"a": 1.0, "b": 3.0}
        >>> weights, _ = balancer.update(preferences, balancer.init(losses), losses)
        >>> weights["a"].item(), weights["b"].item()
        (2.0, 1.5)
    """
    for number in jax.tree.leaves(weights):
        check_number("weights", number, low=0)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        return layout.tree(preferences * per_task("weights", weights, layout)), state

    return transformation(lambda params: optax.EmptyState(), update)
