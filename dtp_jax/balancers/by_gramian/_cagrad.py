"""Conflict-averse gradient descent."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax._core.checks import check_choice, check_scalar
from dtp_jax.solvers._cagrad_problem import cagrad_problem


def cagrad_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    c: jax.typing.ArrayLike = 0.5,
    rescale: Any = 0,
) -> jax.Array:
    """The rule of `cagrad`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        c: See `cagrad`.
        rescale: See `cagrad`.

    Returns:
        ``[T]``, zero for a task without a preference.

    Raises:
        ValueError: If the shapes do not fit, or a hyperparameter is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[16.0, 0.0], [0.0, 9.0]])
        >>> weights = cagrad_weights(gramian, c=0.4)  # norm(g0) is 2.5
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 0.8333]
    """
    _check(c, rescale)
    gramian, preferences = linalg.subproblem(gramian, preferences)
    change = cagrad_problem(gramian, preferences, c=c).change
    num_active = jnp.maximum(jnp.sum(preferences > 0, dtype=gramian.dtype), 1)
    c = jax.lax.stop_gradient(jnp.asarray(c, gramian.dtype))
    divisor = jnp.where(rescale == 1, 1 + c**2, jnp.where(rescale == 2, 1 + c, 1))
    return (preferences / num_active + change) / divisor


def cagrad(*, c: jax.typing.ArrayLike = 0.5, rescale: Any = 0) -> Balancer:
    """Follows the mean gradient, turned towards the task that gains the least.

    Maximizes the smallest gain ``min_t <g_t, d> / p_t`` over the vectors ``d`` within
    ``c norm(g0)`` of the mean ``g0 = sum_t p_t g_t / T`` of the T active tasks::

        d = g0 + c norm(g0) g_w / norm(g_w),     g_w = sum_t w_t g_t / p_t

    with the w on the simplex that minimize ``<g_w, g0> + c norm(g0) norm(g_w)``. For
    ``c < 1`` the step still descends on the mean of the losses. ``c = 0`` is the mean,
    and a large c tends to the direction of `mgda`.

    Preferences weight the mean and say in which proportion the tasks are to gain.
    Scaling each gradient by its preference would make the smallest gain that of the
    task of the smallest preference, and raise its weight.

    Where ``g_w`` is zero, because some gradients are opposite or otherwise balance,
    that formula says nothing, and a ``d`` that solves the maximization is taken. Near
    such points the weights, but not ``d``, are larger by up to a thousand times. Zero
    gradients cannot gain: they count in the mean only. Where the mean is zero, so is
    ``d``.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        c: The distance from the mean, at least 0; below 1 in the paper.
        rescale: What ``d`` is divided by: 0 for nothing, 1 for ``1 + c^2``, 2 for ``1 +
            c``.

    Returns:
        A balancer, mean-like for preferences of one. Instead of zero, which would mean
        "not active", an active task gets 1e-30.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = cagrad(c=0.4), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[4.0, 0.0], [0.0, 3.0]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 0.8333]

    References:
        Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS
        2021, algorithm 1. The authors' code minimizes by SLSQP with absolute constants
        in its roots, and rescales by 1 by default, as LibMTL does; TorchJD, which does
        not rescale, returns zero where ``norm(g_w)`` is below 1e-4 of the norm of all
        gradients, and for all gradients below an absolute size. Here the problem is
        solved to rounding at any scale. Heads: ``balance(..., heads="preferences")``,
        unscaled gradients.
    """
    _check(c, rescale)
    rule = functools.partial(cagrad_weights, c=c, rescale=rescale)
    return gramian_weighting("cagrad", rule)


def _check(c: Any, rescale: Any) -> None:
    check_scalar("c", c, low=0, high=math.inf, open_high=True)
    check_choice("rescale", rescale, (0, 1, 2))
