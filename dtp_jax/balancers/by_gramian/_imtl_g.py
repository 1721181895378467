"""Impartial multi-task learning: equal projections on all gradients."""

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax.gradients import rows_at_hand
from dtp_jax.solvers._equal_projections import attained_projections


def imtl_g_weights(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> jax.Array:
    """The rule of `imtl_g`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.

    Returns:
        ``[T]`` of any sign, with sum 1; zero for a task without a preference and for
        zero gradients, unless all are zero.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])
        >>> [round(weight, 4) for weight in imtl_g_weights(gramian).tolist()]
        [0.3333, 0.6667]
        >>> weights = imtl_g_weights(gramian, jnp.array([2.0, 1.0]))
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 0.5]
    """
    return _weights(gramian, preferences, None)


def imtl_g() -> Balancer:
    """Moves along all gradients by the same projection.

    Computes the weights with sum 1 for which ``d = sum_t w_t g_t`` has the same inner
    product with every unit gradient, or with preferences one proportional to ``p_t``.
    So lengths of gradients do not matter for the direction: ``w_t`` is proportional to
    ``(pinv(C) p)_t / norm(g_t)``, with the correlations C.

    A weight may be negative. As in the paper the sum is 1 in any case; if gradients
    conflict and differ much in length, the sum before normalization may be negative,
    and then all projections are: every task gets worse by this step.

    Gradients that are at hand, stacked or kept, make good for the rounding of their
    Gramian, as with `config`.

    Zero gradients take no part. If the gradients are dependent, the projections are as
    close to equal as can be. If the sum before normalization is zero, as for opposite
    gradients, whose only equal projections are zero, the weights are proportional to
    ``p_t / norm(g_t)``; if all gradients are zero, to ``p_t``.

    `update` needs the task gradients, which `balance` supplies.

    Returns:
        A balancer whose weights have the sum 1. Instead of zero, which would mean "not
        active", an active task gets 1e-30.

    Raises:
        ValueError: From `update`, if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = imtl_g(), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.3333, 0.6667]

    References:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, section 3.1,
        whose closed form needs independent gradients. TorchJD generalizes it, too, but
        inverts G instead of C, which loses short gradients, and returns zero for sums
        below an absolute 1e-12. Heads: ``balance(..., heads="preferences")``, unscaled
        gradients.
        The paper's IMTL is this rule on the gradients of the losses that its loss
        balance scales, which ``chain(imtl_l(), imtl_g())`` is not: preferences ask for
        unequal projections. It is had by scaling the losses themselves, with the
        log-scales as parameters, not shared and without weight decay::

            losses[task] = exp(log_scales[task]) * losses[task] - log_scales[task]
            balance(imtl_g(), tasks, heads="preferences")
    """
    return gramian_weighting("imtl_g", _weights, rows_at_hand)


def _weights(
    gramian: jax.Array, preferences: jax.Array | None, rows: linalg.Rows | None
) -> jax.Array:
    gramian, preferences = linalg.subproblem(gramian, preferences)
    _, norms = linalg.correlation(gramian)
    members = (preferences > 0) & (norms > 0)
    # Only ratios matter: of the preferences, and of the inverse lengths.
    preferences = preferences / linalg.positive(jnp.max(preferences))
    shortest = jnp.min(jnp.where(members, norms, jnp.inf))
    inverse = jnp.where(members, shortest / jnp.where(members, norms, 1), 0)
    found = attained_projections(gramian, preferences, rows)[0] * inverse
    total, size = jnp.sum(found), jnp.sum(jnp.abs(found))
    # A sum below rounding cannot be scaled to one.
    eps = jnp.finfo(found.dtype).eps
    vanishes = jnp.abs(total) <= 16 * found.size * eps * size
    equal = jnp.where(jnp.any(members), preferences * inverse, preferences)
    found = jnp.where(vanishes, equal, found)
    total = jnp.where(vanishes, linalg.positive(jnp.sum(equal)), total)
    return found / jnp.where(total != 0, total, 1)
