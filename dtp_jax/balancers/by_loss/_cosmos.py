"""A weighted sum with a cosine penalty."""

from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, loss_weighting
from dtp_jax._core.checks import check_number, check_scalar
from dtp_jax._core.layout import TaskLayout, per_task

# Vectors of losses that are shorter count as of this length.
_MIN_LENGTH = 1e-30


def cosmos(*, penalty: jax.typing.ArrayLike = 1.0, direction: Any = 1.0) -> Balancer:
    """Trains on a weighted sum of losses and their angle to a direction.

    With ``y = p * L`` and the vector r given as `direction`, the objective is
    ``<r, y> - penalty * cos(r, y)``. Hence ``w = p * (r - penalty * c)``, where
    ``c = (r / norm(r) - cos(r, y) * y / norm(y)) / norm(y)`` is the derivative of the
    cosine. The penalty pulls the losses towards proportions of ``direction / p``, so
    that different directions end in different trade-offs.

    The paper draws a direction from a Dirichlet distribution in each step and gives it
    to the network as an input, so that one network holds all trade-offs. For this,
    ``optax.inject_hyperparams(cosmos)(direction=array)`` keeps the direction in the
    state, where each step can replace it, for tasks in one array. For named tasks build
    the balancer in the step: its state is empty.

    The cosine does not depend on the size of the losses, so its derivative, and with it
    the weights, grow as the losses shrink: choose the penalty for their unit. A weight
    may be negative. A vector y shorter than 1e-30 counts as of this length; one that is
    parallel to r up to rounding, 100 times the precision, as parallel; and at ``y = 0``
    the derivative of the penalty is taken as zero.

    Args:
        penalty: Lambda, at least 0. The paper uses 0.01 to 8, by data set.
        direction: The paper's preference vector, at least 0; a scalar or a pytree like
            the tasks.

    Returns:
        A loss-driven balancer without state.

    Raises:
        ValueError: If `penalty` or `direction` is negative; from `update`, if there are
            no losses or the direction does not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = cosmos(penalty=1.0), jnp.ones(2)
        >>> losses = jnp.array([1.0, 0.0])  # c = (0, 1) / sqrt(2)
        >>> weights, _ = balancer.update(ones, balancer.init(losses), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [1.0, 0.2929]

    References:
        Ruchte, Grabocka, "Scalable Pareto Front Approximation for Deep Multi-Objective
        Learning", ICDM 2021, and their code. Scaling the losses by the preferences is
        ours; with ones it is the paper's. Heads: ``balance(..., heads="weights")``.
    """
    check_scalar("penalty", penalty, low=0)
    for number in jax.tree.leaves(direction):
        check_number("direction", number, low=0)

    def rule(
        losses: jax.Array, preferences: jax.Array, layout: TaskLayout
    ) -> jax.Array:
        vector = jnp.where(preferences > 0, per_task("direction", direction, layout), 0)
        point = preferences * losses
        ray, unit = linalg.unit(vector), linalg.unit(point)
        length = jnp.maximum(jnp.sum(point * unit), _MIN_LENGTH)
        across = ray - jnp.sum(ray * unit) * unit
        off = jnp.sqrt(jnp.sum(across**2)) > 100 * jnp.finfo(losses.dtype).eps
        rises = off & jnp.any(unit != 0)
        slope = jnp.where(rises, across / length, 0)
        return preferences * (vector - penalty * slope)

    return loss_weighting("cosmos", rule)
