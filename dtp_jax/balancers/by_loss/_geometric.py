"""The geometric mean of the losses."""

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, loss_weighting
from dtp_jax._core.layout import TaskLayout

# The smallest loss, relative to the largest.
_MIN_RATIO = 1e-12


def geometric() -> Balancer:
    """Trains on the geometric mean of the losses (GLS).

    The objective is ``F = prod_t L_t^(1/n)`` over the n active tasks, so that
    ``w_t = F / (n L_t)``: each task counts by its relative progress, whatever the unit
    of its loss. The weights of equal losses are ``1 / n``. Preferences make the mean a
    weighted one, ``F = prod_t L_t^(q_t)`` and ``w_t = q_t F / L_t`` with
    ``q = p / sum(p)``, so only their ratios matter.

    Computed in logarithms of ratios: no product overflows, and multiplying all losses
    by a factor changes nothing. Losses must be positive. One below 1e-12 of the
    largest, zero or negative, counts as that; if none is positive, all count as equal.
    A loss near zero stops the others: the mean is zero wherever one loss is.

    Returns:
        A loss-driven balancer without state.

    Raises:
        ValueError: From `update`, if there are no losses.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = geometric(), jnp.ones(2)
        >>> losses = jnp.array([1.0, 4.0])
        >>> weights, _ = balancer.update(ones, balancer.init(losses), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]  # 2 / (2 L)
        [1.0, 0.25]

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh, "MultiNet++: Multi-Stream Feature
        Aggregation and Geometric Loss Strategy for Multi-Task Learning", CVPR Workshops
        2019. Their focused loss strategy gives m chosen tasks the exponent
        ``1/n + 1/m``: preferences in this proportion to ``1/n`` balance alike. Heads:
        ``balance(..., heads="weights")``.
    """

    def rule(
        losses: jax.Array, preferences: jax.Array, layout: TaskLayout
    ) -> jax.Array:
        del layout
        largest = jnp.max(losses, initial=0)
        positive = largest > 0
        ratios = losses / jnp.where(positive, largest, 1)
        ratios = jnp.where(positive, jnp.maximum(ratios, _MIN_RATIO), 1)
        logs = jnp.log(ratios)
        total = jnp.sum(preferences)
        shares = preferences / linalg.positive(total)
        return shares * jnp.exp(jnp.sum(shares * logs) - logs)

    return loss_weighting("geometric", rule)
