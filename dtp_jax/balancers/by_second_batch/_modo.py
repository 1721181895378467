"""Multi-objective gradients with double sampling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_scalar

from ._multipliers import multiplier_weighting


class ModoState(NamedTuple):
    """State of `modo`."""

    simplex: jax.Array  # [T], the multipliers; those of the active tasks sum to 1


def modo_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    simplex: jax.Array | None = None,
    gamma: jax.typing.ArrayLike = 0.1,
    rho: jax.typing.ArrayLike = 0.1,
) -> tuple[jax.Array, jax.Array]:
    """The rule of `modo`, one step of it.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients of two batches.
        preferences: ``[T]``, at least 0. None for ones.
        simplex: ``[T]``, the multipliers before the step. None for uniform ones.
        gamma: The rate of the step.
        rho: The pull towards uniform multipliers.

    Returns:
        The weights ``[T]``, the preferences times the multipliers, and the multipliers
        ``[T]`` after the step. Those of tasks that are not active stay as they are.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> weights, _ = modo_weights(gramian, gamma=0.1, rho=0.0)
        >>> [round(weight, 4) for weight in weights.tolist()]  # 1/2 - 0.1 (1 - 1/2) / 2
        [0.475, 0.525]
    """
    gramian, preferences = linalg.subproblem(gramian, preferences)
    active = preferences > 0
    if simplex is None:
        simplex = jnp.full_like(preferences, 1 / preferences.size)
    simplex = jax.lax.stop_gradient(jnp.asarray(simplex, preferences.dtype))
    # Tasks may have come or gone since the last step.
    current = linalg.project_to_simplex(simplex, active)
    slope = jnp.matmul(gramian, current, precision="highest") + rho * current
    # What overflowed must not stay in the state.
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    moved = linalg.project_to_simplex(current - gamma * slope, active)
    return preferences * moved, jnp.where(active, moved, simplex)


def modo(
    *, gamma: jax.typing.ArrayLike = 0.1, rho: jax.typing.ArrayLike = 0.1
) -> Balancer:
    """Follows the shortest vector of the hull of noisy gradients, without bias.

    Multipliers on the simplex move down the slope of half the squared length of
    ``sum_t lambda_t g_t``, in which the gradients ``J_1`` and ``J_2`` of two
    independent batches take the place of its two factors::

        lambda <- project(lambda - gamma (J_1 J_2' + rho I) lambda)

    The noise of one batch would add its variance to the diagonal, and so favour the
    tasks with the least noise. On the same two batches again and again, with rho = 0
    and a small gamma, they settle at the weights of `mgda`. The multipliers start
    uniform. A rate that is not small against ``1 / norm(g)^2`` makes them jump between
    corners of the simplex: gamma is not scaled by the gradients, as in the paper.

    Preferences multiply the multipliers, which do not see them: those follow the
    gradients slowly, and could not make up in a step for preferences that changed. A
    task that is not active, or whose gradient of a batch is not finite, takes no part,
    and its multiplier stays.

    `update` needs the task gradients, which `balance` supplies, and those of another
    batch at the same parameters, the extra argument `second_task_gradients`. With those
    of a third, `third_task_gradients`, the second and third move the multipliers and
    the first makes the step, which is then independent of the weights. Each batch costs
    a forward pass and a backward pass per task, and the memory of its gradients.

    Args:
        gamma: The rate of the multipliers, at least 0.
        rho: The pull towards uniform multipliers, at least 0.

    Returns:
        A balancer whose weights are the preferences times multipliers of sum 1.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            task gradients of a second batch, or they do not match the first.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = modo(rho=0.0), jnp.ones(2)
        >>> first = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> second = TaskGradients.from_stacked(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> weights, _ = balancer.update(
        ...     ones,
        ...     balancer.init(ones),
        ...     task_gradients=first,
        ...     second_task_gradients=second,
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.475, 0.525]

    References:
        Chen et al., "Three-Way Trade-Off in Multi-Objective Learning: Optimization,
        Generalization and Conflict-Avoidance", NeurIPS 2023. With two batches the
        authors step along the sum of both gradients, here along the first; with three
        along the third, as here along the first. Heads:
        ``balance(..., heads="preferences")``.
    """
    check_scalar("gamma", gamma, low=0)
    check_scalar("rho", rho, low=0)

    def rule(
        gramian: jax.Array, preferences: jax.Array, simplex: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return modo_weights(gramian, preferences, simplex=simplex, gamma=gamma, rho=rho)

    return multiplier_weighting("modo", ModoState, rule)
