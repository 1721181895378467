"""Measures of the softmax of logits."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ._inputs import Axis, of_logits


def entropy_from_logits(
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Entropy ``-sum p log p`` of ``p = softmax(logits)``.

    Reuses `jax.nn.log_softmax`. A distribution without any entry, where every logit is
    -inf or masked, has entropy zero.

    Args:
        logits: Unnormalized log-probabilities, in [-inf, inf).
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The entropy, of the shape of `logits` without `axis`; in [0, log K] for K
        entries.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> print(entropy_from_logits(jnp.array([3.0, 3.0, -jnp.inf]), base=2))
        1.0

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.
    """
    return of_logits(_entropy, logits, axis=axis, where=where, base=base)


def cross_entropy_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy ``-sum p log q``, where `p` and `q` are softmaxes of logits.

    Reuses `jax.nn.log_softmax`. `optax.losses.softmax_cross_entropy` takes the logits
    of the model first, and probabilities, not logits, of the truth.

    Args:
        p_logits: Logits of the truth, in [-inf, inf).
        q_logits: Logits of the model, in [-inf, inf); broadcasts against `p_logits`.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The cross-entropy, of the broadcast shape without `axis`; inf if an entry has
        ``p > 0`` and ``q = 0``.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p_logits = jnp.array([0.0, 0.0, -jnp.inf])
        >>> q_logits = jnp.log(jnp.array([1.0, 1.0, 2.0]))  # q = [1/4, 1/4, 1/2]
        >>> print(f"{cross_entropy_from_logits(p_logits, q_logits, base=2):.6f}")
        2.000000

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.
    """
    return of_logits(
        _cross_entropy, p_logits, q_logits, axis=axis, where=where, base=base
    )


def kl_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Divergence ``KL(p || q)``, where `p` and `q` are softmaxes of logits.

    Reuses `jax.nn.log_softmax`. `optax.losses.kl_divergence_with_log_targets` takes the
    model first, and is NaN where a log-probability of the truth is -inf.

    Args:
        p_logits: Logits of the truth, in [-inf, inf).
        q_logits: Logits of the model, in [-inf, inf); broadcasts against `p_logits`.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The divergence, of the broadcast shape without `axis`; at least zero up to
        rounding, and inf if an entry has ``p > 0`` and ``q = 0``.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p_logits, q_logits = jnp.array([0.0, -jnp.inf]), jnp.array([7.0, 7.0])
        >>> print(kl_divergence_from_logits(p_logits, q_logits, base=2))
        1.0

    References:
        Kullback and Leibler, "On Information and Sufficiency", 1951.
    """
    return of_logits(
        _kl_divergence, p_logits, q_logits, axis=axis, where=where, base=base
    )


def js_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Jensen-Shannon divergence, where `p` and `q` are softmaxes of logits.

    Computes ``sum [p log(p / m) + q log(q / m)] / 2`` with ``m = (p + q) / 2`` and
    ``log(p / m) = log 2 - softplus(log q - log p)``. Reuses `jax.nn.log_softmax` and
    `jax.nn.softplus`.

    Args:
        p_logits: Logits of the truth, in [-inf, inf).
        q_logits: Logits of the model, in [-inf, inf); broadcasts against `p_logits`.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The divergence, of the broadcast shape without `axis`; in [0, log 2] up to
        rounding.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p_logits, q_logits = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
        >>> print(js_divergence_from_logits(p_logits, q_logits, base=2))
        1.0

    References:
        Lin, "Divergence Measures Based on the Shannon Entropy", 1991.
    """
    return of_logits(
        _js_divergence, p_logits, q_logits, axis=axis, where=where, base=base
    )


def _entropy(log_p: jax.Array) -> jax.Array:
    return -jnp.exp(log_p) * jnp.where(log_p == -jnp.inf, 0, log_p)


def _cross_entropy(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    impossible = log_q == -jnp.inf
    terms = -jnp.exp(log_p) * jnp.where(impossible, 0, log_q)
    return jnp.where(impossible & (log_p != -jnp.inf), jnp.inf, terms)


def _kl_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    in_p, in_q = log_p != -jnp.inf, log_q != -jnp.inf
    gap = jnp.where(in_p & in_q, log_p, 0) - jnp.where(in_p & in_q, log_q, 0)
    return jnp.where(in_p & ~in_q, jnp.inf, jnp.exp(log_p) * gap)


def _js_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    both = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    gap = jnp.where(both, log_q, 0) - jnp.where(both, log_p, 0)
    # What only one of the two can produce tells them apart: it contributes log 2.
    p_over_m = math.log(2) - jnp.where(both, jax.nn.softplus(gap), 0)
    q_over_m = math.log(2) - jnp.where(both, jax.nn.softplus(-gap), 0)
    return (jnp.exp(log_p) * p_over_m + jnp.exp(log_q) * q_over_m) / 2
