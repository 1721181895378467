"""Projection of the sum of the gradients, as in gradient episodic memory."""

import jax

from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax._core.linalg import subproblem
from dtp_jax.solvers import project_onto_dual_cone


def dual_projection_weights(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> jax.Array:
    """The rule of `dual_projection`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.

    Returns:
        ``[T]``, at least the preferences; zero for a task without one.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[1.0, -2.0], [-2.0, 8.0]])
        >>> [round(weight, 4) for weight in dual_projection_weights(gramian).tolist()]
        [2.0, 1.0]
    """
    gramian, preferences = subproblem(gramian, preferences)
    return project_onto_dual_cone(gramian, preferences, preferences).weights


def dual_projection() -> Balancer:
    """Moves the sum of the gradients until it conflicts with none of them.

    Computes ``w = argmin w' G w`` subject to ``w >= p``: the vector nearest to ``sum_t
    p_t g_t`` that has no negative inner product with any task gradient. Gradients that
    do not conflict with their sum are simply summed. One problem in place of the T of
    `upgrad`, hence cheaper; where a long gradient conflicts with a short one, the short
    one pulls less than with `upgrad`. What rounding leaves, also where no step agrees
    with all tasks, is as for `upgrad`.

    `update` needs the task gradients, which `balance` supplies.

    Returns:
        A balancer whose weights are at least the preferences, which scale the
        gradients: with ``p = 1 / T`` the step is mean-like.

    Raises:
        ValueError: From `update`, if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = dual_projection(), jnp.ones(2)
        >>> rows = jnp.array([[1.0, 0.0], [-2.0, 2.0]])
        >>> gradients = TaskGradients.from_stacked(rows)
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]
        [2.0, 1.0]

    References:
        Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS
        2017, equation 11; there the projected vector is the gradient of the current
        task, here the sum of all, as in TorchJD's DualProj, which starts from ``p = 1 /
        T``. Heads: ``balance(..., heads="preferences")`` leaves those of single tasks
        unscaled.
    """
    return gramian_weighting("dual_projection", dual_projection_weights)
