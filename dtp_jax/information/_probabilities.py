"""Measures of probabilities."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import entr, rel_entr
from jax.typing import ArrayLike

from dtp_jax._core.numerics import working_type

from ._inputs import Axis, in_base, of_probabilities


def self_information(p: ArrayLike, *, base: ArrayLike | None = None) -> jax.Array:
    """Information in seeing an event of probability `p`: ``-log p``.

    A certain event has none, and that of independent events adds up. It is inf at zero,
    with a slope that is taken as zero.

    Args:
        p: Probabilities of any shape, in [0, 1].
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The information of each event, of the shape of `p`, at least zero.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> print(self_information(jnp.array([0.5, 0.25]), base=2))
        [1. 2.]

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.
    """
    dtype = jnp.result_type(p, float)
    p = jnp.asarray(p, working_type(p))
    impossible = p == 0
    nats = jnp.where(impossible, jnp.inf, -jnp.log(jnp.where(impossible, 1, p)))
    return in_base(nats, base).astype(dtype)


def entropy(
    p: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Expected self-information: ``H(p) = -sum p log p``.

    Reuses `jax.scipy.special.entr`, whose value is right at zero; its slope there, inf,
    is taken as zero.

    Args:
        p: Probabilities, in [0, 1].
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The entropy, of the shape of `p` without `axis`; in [0, log K] for K entries
        that sum to one.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p = jnp.array([0.5, 0.25, 0.25, 0.0])
        >>> print(entropy(p, base=2))  # 1 / 2 + 2 / 4 + 2 / 4
        1.5

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.
    """
    return of_probabilities(_entropy, p, axis=axis, where=where, base=base)


def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Expected self-information under a model: ``-sum p log q``.

    It is ``H(p) + KL(p || q)``. Where there are logits of the model,
    `optax.losses.safe_softmax_cross_entropy` takes ``(q_logits, p)``, in this order.

    Args:
        p: Probabilities of the truth, in [0, 1].
        q: Probabilities of the model, in [0, 1]; broadcasts against `p`.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The cross-entropy, of the broadcast shape without `axis`; inf if an entry has
        ``p > 0`` and ``q = 0``.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.25, 0.5])
        >>> print(cross_entropy(p, q, base=2))  # Both events of p tell 2 bits.
        2.0

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.
    """
    return of_probabilities(_cross_entropy, p, q, axis=axis, where=where, base=base)


def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence: ``KL(p || q) = sum p log(p / q)``.

    Reuses `jax.scipy.special.rel_entr`, which is right at zeros.
    `optax.losses.kl_divergence` takes ``(log q, p)``, in this order, and
    `jax.scipy.special.kl_div` is another measure if the sums differ.

    Args:
        p: Probabilities of the truth, in [0, 1].
        q: Probabilities of the model, in [0, 1]; broadcasts against `p`.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The divergence, of the broadcast shape without `axis`; at least zero up to
        rounding if both sum to one, and inf if an entry has ``p > 0`` and ``q = 0``.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
        >>> print(kl_divergence(p, q, base=2), kl_divergence(q, p))
        1.0 inf

    References:
        Kullback and Leibler, "On Information and Sufficiency", 1951.
    """
    return of_probabilities(rel_entr, p, q, axis=axis, where=where, base=base)


def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> jax.Array:
    """Jensen-Shannon divergence: ``[KL(p || m) + KL(q || m)] / 2``.

    Here ``m = (p + q) / 2``. The divergence is symmetric in `p` and `q`, and finite.
    Its square root is a metric, which is what `scipy.spatial.distance.jensenshannon`
    returns. Reuses `jax.scipy.special.rel_entr`.

    Args:
        p: Probabilities of the truth, in [0, 1].
        q: Probabilities of the model, in [0, 1]; broadcasts against `p`.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries to keep; None for all.
        base: Base of the logarithm, positive and not one; None for e.

    Returns:
        The divergence, of the broadcast shape without `axis`; in [0, log 2] up to
        rounding if both sum to one.

    Raises:
        ValueError: If `base` is a Python number that is not positive, or one.

    Example:
        >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        >>> print(js_divergence(p, q, base=2))
        1.0

    References:
        Lin, "Divergence Measures Based on the Shannon Entropy", 1991.
    """
    return of_probabilities(_js_divergence, p, q, axis=axis, where=where, base=base)


def _entropy(p: jax.Array) -> jax.Array:
    # entr(1) = 0 stands in for entr(0) = 0, so that zeros have the slope zero.
    return entr(jnp.where(p == 0, 1, p))


def _cross_entropy(p: jax.Array, q: jax.Array) -> jax.Array:
    impossible = q == 0
    terms = -p * jnp.log(jnp.where(impossible, 1, q))
    return jnp.where(impossible & (p > 0), jnp.inf, terms)


def _js_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    both = (p != 0) & (q != 0)
    p_both, q_both = jnp.where(both, p, 1), jnp.where(both, q, 1)
    # Half of the smallest number may underflow to zero, which the divergence from `m`
    # would punish with inf.
    m = jnp.maximum((p_both + q_both) / 2, jnp.finfo(p.dtype).tiny)
    together = (rel_entr(p_both, m) + rel_entr(q_both, m)) / 2
    # What only one of the two can produce contributes its half of log 2. The slope in
    # the other, which is zero, is infinite, and `m` would make half of it finite.
    alone = jnp.where(p == 0, jnp.where(q == 0, 0, q), p) * (math.log(2) / 2)
    return jnp.where(both, together, alone)
