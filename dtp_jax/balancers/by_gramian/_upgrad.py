"""Unconflicting projection of gradients."""

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax._core.linalg import subproblem
from dtp_jax.solvers import project_onto_dual_cone


def upgrad_weights(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> jax.Array:
    """The rule of `upgrad`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.

    Returns:
        ``[T]``, at least the preferences; zero for a task without one.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 2.0]])
        >>> [round(weight, 4) for weight in upgrad_weights(gramian).tolist()]
        [2.0, 1.5]
    """
    gramian, preferences = subproblem(gramian, preferences)
    targets = jnp.diag(preferences)
    return jnp.sum(project_onto_dual_cone(gramian, targets, preferences).weights, 0)


def upgrad() -> Balancer:
    """Sums the gradients, each projected to conflict with none of the others.

    Each gradient ``p_i g_i`` moves to the nearest vector that has no negative inner
    product with any task gradient; the step is their sum. So no loss rises to first
    order, a long gradient pulls more than a short one, and gradients that do not
    conflict are simply summed::

        v_i = argmin v' G v    subject to    v >= p_i e_i,    w = sum_i v_i

    exactly, for gradients of any lengths. Preferences scale the gradients: with ``p =
    1 / T`` the step is mean-like, with ones it is T times as long.

    Rounding leaves ``<g_t, d> >= -4e-6 norm(g_t) sum_s w_s norm(g_s)`` in float32. With
    more tasks than the gradients have rank, often no step agrees with all tasks. The
    exact step is then zero, and what is left of it is rounding.

    `update` needs the task gradients, which `balance` supplies.

    Returns:
        A balancer whose weights are at least the preferences.

    Raises:
        ValueError: From `update`, if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = upgrad(), jnp.ones(2)
        >>> rows = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
        >>> gradients = TaskGradients.from_stacked(rows)
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]
        [2.0, 1.5]

    References:
        Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024,
        section 3.1. Their library, TorchJD, starts from ``p = 1 / T``, normalizes the
        Gramian by its trace and adds 1e-4 to its diagonal, which conflicts with tasks
        of short gradients; here nothing is added. Heads: the paper has none;
        ``balance(..., heads="preferences")`` leaves their gradients unscaled, as
        TorchJD does.
    """
    return gramian_weighting("upgrad", upgrad_weights)
