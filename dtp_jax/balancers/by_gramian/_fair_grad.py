"""FairGrad: task weights as a fair allocation."""

import functools

import jax

from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax._core.checks import check_scalar
from dtp_jax.solvers import fair_equation


def fair_grad_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    alpha: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """The rule of `fair_grad`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        alpha: See `fair_grad`.

    Returns:
        ``[T]``, at least 0.

    Raises:
        ValueError: If the shapes do not fit, or `alpha` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[8.0, 0.0], [0.0, 0.125]])
        >>> weights = fair_grad_weights(gramian, alpha=2.0)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.25, 4.0]
        >>> weights = fair_grad_weights(gramian, jnp.array([8.0, 1.0]), alpha=2.0)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 4.0]
    """
    return fair_equation(gramian, preferences, alpha=alpha).weights


def fair_grad(*, alpha: jax.typing.ArrayLike = 1.0) -> Balancer:
    """Shares the progress of a step fairly among the tasks.

    Computes the weights ``a > 0`` with ``a_t = p_t <g_t, d>^(-alpha)``, where ``d =
    sum_t a_t g_t``. This is the direction of the largest ``sum_t p_t <g_t, d>^(1 -
    alpha) / (1 - alpha)``, a measure of fairness: 1 stands for proportional fairness,
    which is Nash-MTL; as `alpha` grows, the task that gains least counts most, and the
    direction tends to that of `mgda`; 0 is the other end, where ``a = p``: the plain
    sum of the gradients, in the direction of their mean. Every task improves to first
    order, except at 0: as `alpha` tends to 0, the direction tends to the sum only where
    no gradient conflicts with it, and else to that of `dual_projection`. For orthogonal
    gradients the weights are ``(p_t norm(g_t)^(-2 alpha))^(1 / (1 + alpha))``.

    A zero gradient takes no part. Where no direction improves all other tasks, as at a
    Pareto-stationary point, there is no solution. The weights then have the sum 1 and
    are those of the shortest vector in the convex hull of the gradients, divided by
    their norms: ``d`` is zero to rounding.

    `update` needs the task gradients, which `balance` supplies. Unless `alpha` is 1,
    the length of ``d`` depends on that of the gradients: gradients ``c g`` have weights
    ``c^(-2 alpha / (1 + alpha)) a``.

    Args:
        alpha: The kind of fairness, at least 0. With large values, weights of tasks
            that gain much may underflow, and norms of the gradients that spread over
            many decades cost the solver more iterations.

    Returns:
        A balancer. Instead of zero, which would mean "not active", an active task gets
        1e-30.

    Raises:
        ValueError: If `alpha` is negative; from `update`, if there are no task
            gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = fair_grad(), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 0.5]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 2.0]

    References:
        Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, whose
        algorithm 1 solves ``G w = w^(-1 / alpha)``. Newton's method solves it to
        rounding; the authors' code stops a bounded least-squares search from uniform
        weights wherever that gets. No weights are ever reused: to refresh them on every
        k-th step only is ``curricula.every_k``. Heads: ``balance(...,
        heads="weights")``, the default, is the paper's.
    """
    check_scalar("alpha", alpha, low=0)
    rule = functools.partial(fair_grad_weights, alpha=alpha)
    return gramian_weighting("fair_grad", rule)
