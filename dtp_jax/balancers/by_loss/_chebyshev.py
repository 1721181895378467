"""The smooth Chebyshev scalarization."""

from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, loss_weighting
from dtp_jax._core.checks import check_number, check_scalar
from dtp_jax._core.layout import TaskLayout, per_task
from dtp_jax._core.numerics import softmax_over

# What a loss relative to its nadir is at least, as in the authors' code, and at most.
_MIN_RATIO, _MAX_RATIO = 1e-20, 1e20


def chebyshev(
    *,
    mu: jax.typing.ArrayLike = 1.0,
    reference: Any = 0.0,
    nadir: Any = None,
) -> Balancer:
    """Trains on a smooth maximum of the losses (STCH).

    The objective is ``mu logsumexp(y / mu)`` with ``y = p * (L - reference)``, hence
    ``w = p * softmax(y / mu)``: the worst task counts most, for a small mu it counts
    alone. Preferences are the paper's lambda: at the optimum tasks of larger preference
    have smaller losses. The paper's lie on the simplex; for these, chain
    ``normalize_weights("sum_to_1")`` before this balancer.

    Given `nadir`, y is ``log(p * (L - reference) / (nadir - reference))`` and the
    objective n times as large, for n active tasks, so that ``w = n softmax(y / mu) / (L
    - reference)``. With preferences of one and a reference of 0 this is what the
    authors train with after a warm-up on the sum of ``log L``. Here, average the losses
    over some first epoch, and rebuild the balancer with them as nadir: it has no state
    that would be lost.

    Losses may be negative and of any size; they should lie above `reference`, or a
    larger preference lowers the weight. With a nadir, what is divided by it counts as
    1e-20 to 1e20, so a loss of zero has a finite weight, and a nadir that is not above
    its reference counts as 1 above.

    Args:
        mu: The smoothness, in the unit of the losses, or of their logarithm if there is
            a nadir; positive. The paper tries 0.01 to 1.
        reference: The ideal point, a value that each loss does not fall below; a
            scalar or a pytree like the tasks.
        nadir: The size of each loss; None, or positive as above.

    Returns:
        A loss-driven balancer without state.

    Raises:
        ValueError: If `mu` or `nadir` is not positive; from `update`, if there are no
            losses or a hyperparameter does not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = chebyshev(mu=0.5), jnp.ones(2)
        >>> losses = jnp.array([1.0, 1.0 + 0.5 * jnp.log(3)])
        >>> weights, _ = balancer.update(ones, balancer.init(losses), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.25, 0.75]

    References:
        Lin, Zhang, Yang, Liu, Wang, Zhang, "Smooth Tchebycheff Scalarization for
        Multi-Objective Optimization", ICML 2024, and their code for multi-task
        learning, which has no preferences: putting p inside of the logarithm is ours,
        and keeps its meaning. Heads: ``balance(..., heads="weights")``.
    """
    check_scalar("mu", mu, low=0, open_low=True)
    for number in jax.tree.leaves(nadir):
        check_number("nadir", number, low=0, open_low=True)

    def rule(
        losses: jax.Array, preferences: jax.Array, layout: TaskLayout
    ) -> jax.Array:
        active = preferences > 0
        ideal = per_task("reference", reference, layout)
        if nadir is None:
            scaled, slopes = preferences * (losses - ideal), preferences
        else:
            span = per_task("nadir", nadir, layout) - ideal
            span = linalg.positive(span)
            ratio = jnp.clip((losses - ideal) / span, _MIN_RATIO, _MAX_RATIO)
            scaled = jnp.log(ratio) + jnp.log(jnp.where(active, preferences, 1))
            # A compiler may make one product of two divisors, which must not vanish.
            count = jnp.sum(active)
            least = jnp.maximum(count, 1) * jnp.finfo(losses.dtype).tiny
            slopes = count / jnp.maximum(span * ratio, least)
        # The difference of two exponents must not overflow.
        largest = jnp.finfo(losses.dtype).max / 4
        scaled = jnp.clip(scaled / mu, -largest, largest)
        return slopes * softmax_over(active, scaled)

    return loss_weighting("chebyshev", rule)
