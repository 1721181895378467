"""Penalty-based boundary intersection."""

from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, loss_weighting
from dtp_jax._core.checks import check_number, check_scalar
from dtp_jax._core.layout import TaskLayout, per_task


def boundary_intersection(
    *,
    penalty: jax.typing.ArrayLike = 5.0,
    direction: Any = 1.0,
    reference: Any = 0.0,
) -> Balancer:
    """Descends along a ray in the space of the losses (PBI).

    With ``y = p * (L - reference)`` and the unit vector r along `direction`, the
    objective is ``d1 + penalty * d2``: ``d1 = <y, r>`` is the way along the ray, ``d2 =
    norm(y - d1 r)`` the distance to it. Hence ``w = p * (r + penalty * u)``, where u is
    the unit vector from the ray to y, or zero on the ray itself. This leads to losses
    proportional to ``direction / p``: a larger preference means a smaller loss, and a
    larger entry of `direction` a larger one.

    Beware: a task whose loss is smaller than on the ray has a negative weight unless
    the penalty is small (less than 1 for two tasks), so its loss rises until it is on
    the ray. A balancer chained after this one takes a negative weight for "not active";
    chain ``clip_weights(low=0.0)`` to hold such tasks instead.

    The weights depend on ratios of losses only and stay finite for all of them. Points
    as close to the ray as rounding, 100 times the precision, count as on it.

    Args:
        penalty: Theta, at least 0. The paper uses 5.
        direction: The paper's lambda, at least 0; a scalar or a pytree like the tasks.
            Only ratios matter.
        reference: The ideal point, a value that each loss does not fall below; as
            above.

    Returns:
        A loss-driven balancer without state, whose weights may be negative. For
        preferences of one their norm is ``sqrt(1 + penalty^2)``, or 1 on the ray.

    Raises:
        ValueError: If `penalty` or `direction` is negative; from `update`, if there are
            no losses or a hyperparameter does not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = boundary_intersection(penalty=0.5), jnp.ones(2)
        >>> losses = jnp.array([3.0, 1.0])  # r + u / 2 = (1.5, 0.5) / sqrt(2)
        >>> weights, _ = balancer.update(ones, balancer.init(losses), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [1.0607, 0.3536]

    References:
        Zhang, Li, "MOEA/D: A Multiobjective Evolutionary Algorithm Based on
        Decomposition", IEEE Transactions on Evolutionary Computation 11, 2007, section
        II.C, written there for maximization. Scaling the losses by the preferences is
        ours; with ones it is the paper's. Heads: ``balance(..., heads="weights")``.
    """
    check_scalar("penalty", penalty, low=0)
    for number in jax.tree.leaves(direction):
        check_number("direction", number, low=0)

    def rule(
        losses: jax.Array, preferences: jax.Array, layout: TaskLayout
    ) -> jax.Array:
        active = preferences > 0
        ray = linalg.unit(
            jnp.where(active, per_task("direction", direction, layout), 0)
        )
        point = preferences * (losses - per_task("reference", reference, layout))
        # Only directions matter, and products of unit vectors cannot overflow.
        point = linalg.unit(jnp.where(active, point, 0))
        across = point - jnp.sum(point * ray) * ray
        off = jnp.sqrt(jnp.sum(across**2)) > 100 * jnp.finfo(losses.dtype).eps
        away = jnp.where(off, linalg.unit(across), 0)
        return preferences * (ray + penalty * away)

    return loss_weighting("boundary_intersection", rule)
