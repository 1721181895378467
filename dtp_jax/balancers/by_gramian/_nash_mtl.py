"""Nash-MTL: task weights as a bargaining game."""

import functools

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax._core.checks import check_scalar
from dtp_jax.solvers import nash_equation


def nash_mtl_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    max_norm: jax.typing.ArrayLike | None = 1.0,
) -> jax.Array:
    """The rule of `nash_mtl`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        max_norm: See `nash_mtl`.

    Returns:
        ``[T]``, at least 0.

    Raises:
        ValueError: If the shapes do not fit, or `max_norm` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 0.25]])
        >>> weights = nash_mtl_weights(gramian, max_norm=None)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 2.0]
        >>> weights = nash_mtl_weights(gramian, jnp.array([4.0, 1.0]), max_norm=None)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [1.0, 2.0]
    """
    _check_max_norm(max_norm)
    gramian, preferences = linalg.subproblem(gramian, preferences)
    weights = nash_equation(gramian, preferences).weights
    if max_norm is None:
        return weights
    cosines, norms = linalg.correlation(gramian)
    lengths = weights * norms
    norm = jnp.sqrt(jnp.maximum(linalg.squared_norm(cosines, lengths), 0))
    return weights * (max_norm / jnp.maximum(norm, max_norm))


def nash_mtl(*, max_norm: jax.typing.ArrayLike | None = 1.0) -> Balancer:
    """Lets the tasks bargain over the direction.

    Computes the weights ``a > 0`` with ``a_t <g_t, d> = p_t``, where ``d = sum_t a_t
    g_t``. This direction maximizes ``sum_t p_t log <g_t, d>`` over all of its length,
    so every task improves to first order, and the units of a loss do not matter: ``d``
    stays the same if a gradient is scaled. Preferences ``p`` are the bargaining powers.
    For orthogonal gradients the weights are ``sqrt(p_t) / norm(g_t)``.

    A zero gradient takes no part. Where no direction improves all other tasks, as at a
    Pareto-stationary point, there is no solution. The weights then have the sum 1 and
    are those of the shortest vector in the convex hull of the gradients, divided by
    their norms: ``d`` is zero to rounding.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        max_norm: Weights are scaled down where the norm of ``d`` would exceed it;
            positive. The exact ``d`` has the norm ``sqrt(sum_t p_t)``, whatever the
            gradients, so 1.0 fixes it unless preferences are small. None for the exact
            ``d``. Inside ``every_k`` it bounds ``d`` in the steps that refresh the
            weights only; between them gradients grow while the weights stay, and
            ``optax.clip_by_global_norm`` after `balance` bounds every step.

    Returns:
        A balancer. Instead of zero, which would mean "not active", an active task gets
        1e-30.

    Raises:
        ValueError: If `max_norm` is not positive; from `update`, if there are no task
            gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = nash_mtl(max_norm=None), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 0.5]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 2.0]

    References:
        Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1.
        Newton's method solves the equation to rounding. The authors' code approximates
        it by a sequence of convex problems, may stop short of the solution, and reuses
        the last weights where a problem fails; here no weights are ever reused. They
        refresh the weights on every k-th step only, which is ``curricula.every_k``.
        Their code clips the shared gradients alone; here `max_norm` scales the weights,
        and so the gradients of the heads, too. Heads: ``balance(...,
        heads="weights")``, the default, is the paper's.
    """
    _check_max_norm(max_norm)
    rule = functools.partial(nash_mtl_weights, max_norm=max_norm)
    return gramian_weighting("nash_mtl", rule)


def _check_max_norm(max_norm: jax.typing.ArrayLike | None) -> None:
    check_scalar("max_norm", max_norm, low=0, open_low=True)
