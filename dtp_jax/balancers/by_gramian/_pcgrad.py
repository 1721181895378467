"""Gradient surgery: projecting conflicting gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting, transformation
from dtp_jax._core.orders import visiting_orders
from dtp_jax._core.reads import stream_of

# Folded into the key, so that several links of a chain may share one.
_STREAM = 0x7063


def pcgrad_weights(
    gramian: jax.Array, preferences: jax.Array | None = None, *, key: jax.Array
) -> jax.Array:
    """The rule of `pcgrad`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        key: A PRNG key, for the orders of the projections.

    Returns:
        ``[T]``, no smaller than the preferences; zero for a task without a preference.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, -2.0], [-2.0, 2.0]])
        >>> pcgrad_weights(gramian, key=jax.random.key(0)).tolist()  # 1 + 2/4, 1 + 2/2
        [1.5, 2.0]
    """
    gramian, preferences = linalg.subproblem(gramian, preferences)
    cosines, norms = linalg.correlation(gramian)
    added = _added_by_surgery(cosines, preferences * norms, key)
    return preferences + jnp.where(norms > 0, added / linalg.positive(norms), 0)


def pcgrad() -> Balancer:
    """Sums the task gradients after each was projected off those it conflicts with.

    Each task's gradient ``h = g_i`` meets the gradients ``g_j`` of the other tasks in a
    random order. Where ``<h, g_j> < 0`` it loses what points against ``g_j``::

        h <- h - <h, g_j> / norm(g_j)^2 g_j

    and the step is the sum of all ``h``. In terms of the weights of the gradients this
    needs only their Gramian: all tasks are projected in lock step, at a cost of ``T^2``
    for each of the ``T - 1`` tasks that one meets. For two tasks nothing is random and
    ``w_j = 1 + max(-<g_1, g_2>, 0) / norm(g_j)^2``. No weight is smaller than one. With
    three tasks or more the step may still conflict with a task.

    Preferences scale the gradients. A zero gradient conflicts with none.

    `update` needs the task gradients, which `balance` supplies, and a PRNG key as the
    extra argument `key`, a new one in each step. The same key decides the same on every
    device, and links of a chain may share one.

    Returns:
        A balancer whose weights are the preferences where no tasks conflict, so that
        the step is the sum of the gradients, as in the paper.

    Raises:
        ValueError: From `update`, if there are no task gradients or no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones, key = pcgrad(), jnp.ones(2), jax.random.key(0)
        >>> rows = jnp.array([[2.0, 0.0], [-1.0, 1.0]])
        >>> gradients = TaskGradients.from_stacked(rows)
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients, key=key
        ... )
        >>> (weights @ rows).tolist()  # (1, 1), which is (2, 0) projected, and (0, 1)
        [1.0, 2.0]

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm
        1. LibMTL and a port in wide use also let a gradient meet itself, which the
        paper excludes; it matters where projections turned a gradient against its own
        direction. Heads: ``balance(..., heads="preferences")``.
    """

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        stream = stream_of(key, _STREAM, "pcgrad")
        rule = functools.partial(pcgrad_weights, key=stream)
        balancer = gramian_weighting("pcgrad", rule)
        return balancer.update(updates, state, params, **extra_args)

    return transformation(lambda params: optax.EmptyState(), update)


@jax.jit
def _added_by_surgery(
    cosines: jax.Array, lengths: jax.Array, key: jax.Array
) -> jax.Array:
    """How much of each unit gradient the projections add, ``[T]``."""
    num_tasks = lengths.size
    if num_tasks == 2:
        return jnp.maximum(-cosines[0, 1], 0) * lengths[::-1]

    def visit(products: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Row i of the products is that of the changed gradient i with all unit
        # gradients. A task that is not active, or zero, has products of zero.
        along = jnp.take_along_axis(products, others[:, None], axis=1)[:, 0]
        opposed = jnp.maximum(-along, 0)
        return products + opposed[:, None] * cosines[others], opposed

    orders = visiting_orders(key, num_tasks)
    _, opposed = jax.lax.scan(visit, cosines, orders)
    # Setting entries that are all different and summing them afterwards gives the same
    # bits on every device; adding up in place may not.
    tasks = jnp.arange(num_tasks)
    added = jnp.zeros_like(cosines).at[tasks, orders].set(opposed, unique_indices=True)
    return jnp.sum(lengths[:, None] * added, axis=0)
