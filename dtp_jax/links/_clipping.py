"""Clipping of the gradient of each task, before they are combined."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, link
from dtp_jax._core.checks import check_scalar
from dtp_jax.gradients import TaskGradients, check_stacked, row_norms


def clip_each_task(max_norm: jax.typing.ArrayLike) -> Balancer:
    """Clips the gradient of each task on its own, and keeps them apart.

    The gradient ``g_t`` of a task over all its parameters, shared or not, becomes
    ``g_t * min(1, max_norm / norm(g_t))``. `optax.clip_by_global_norm` after the
    balancing link bounds the sum; this bounds what one task can contribute to it, and
    what a method sees of it. Put it before the link that combines the tasks::

        optax.chain(clip_each_task(1.0), balance(mgda(), tasks), optax.adam(1e-3))

    It needs the gradients themselves. Those of `task_gradients` are computed here, by a
    backward pass each, and held: T times the memory of the parameters, also for methods
    that would need one pass only. A Gramian that follows is taken from them at no
    further pass, over parameters even if the gradients came from
    `feature_task_gradients`.

    Args:
        max_norm: The largest norm, greater than 0.

    Returns:
        A gradient transformation from a `TaskGradients`, or a pytree with leaves ``[T,
        *param]``, to the same with clipped gradients. A zero gradient stays zero. One
        that is not finite stays as it is, for the link to leave it out, and has no
        influence on the others.

    Raises:
        ValueError: If `max_norm` is not positive; from `update`, if the gradients are
            not stacked along a first axis of tasks, or if it stands inside `balance`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dtp_jax import balance
        >>> tx = optax.chain(clip_each_task(1.0), balance(optax.identity(), 2))
        >>> rows, params = jnp.array([[30.0, 40.0], [0.0, 0.1]]), jnp.zeros(2)
        >>> updates, _ = tx.update(rows, tx.init(params), params)
        >>> [round(update, 4) for update in updates.tolist()]
        [0.6, 0.9]
    """
    check_scalar("max_norm", max_norm, low=0, open_low=True, infinite=True)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        # Only `balance` and combiners pass this on, to what works on the weights.
        if "task_gradients" in extra_args:
            raise ValueError(
                "clip_each_task works on the gradients of the tasks, not on their "
                "weights: put it into the optimizer's chain, before the link, "
                "optax.chain(clip_each_task(1.0), balance(balancer, tasks), ...)."
            )
        if isinstance(updates, TaskGradients):
            updates.untouched()
            return updates.stacked(_clip(updates.stack(), max_norm)), state
        # Without parameters to compare with, this says if first axes differ.
        num_tasks = TaskGradients.from_stacked(updates).num_tasks
        if params is not None:
            check_stacked(updates, params, num_tasks)
        return _clip(updates, max_norm), state

    return link(lambda params: optax.EmptyState(), update)


def _clip(stacked: Any, max_norm: jax.typing.ArrayLike) -> Any:
    norms = row_norms(jax.tree.leaves(stacked))
    # The norm of a row that is not finite is NaN, hence not above.
    above = norms > max_norm
    factors = jnp.where(above, max_norm / jnp.where(above, norms, 1), 1)

    def scaled(rows: jax.Array) -> jax.Array:
        column = factors.reshape(-1, *[1] * (rows.ndim - 1))
        return (rows * column).astype(rows.dtype)

    return jax.tree.map(scaled, stacked)
