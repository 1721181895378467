"""Information theory: entropies and divergences that are right at zero.

Wherever two distributions occur, `p` comes first and is the truth, `q` is the model.
`optax.losses` has it the other way round: ``kl_divergence(log_predictions, targets)``
and ``softmax_cross_entropy(logits, labels)`` take the model first, and have NaN values
or derivatives at some zeros. `scipy.stats.entropy(p, q)` and
`jax.scipy.special.rel_entr(p, q)` have the order of this module.

Each measure of discrete distributions has two forms. The first takes probabilities.
They are used as they are and never normalized: if they do not sum to one, the formula
in the docstring is still what is computed. The second, ``..._from_logits``, takes
logits, of which the probabilities are the softmax; it should be preferred where there
are logits, since it keeps its accuracy for small probabilities.

Probabilities must not be negative, which is not checked. Conventions at zero:

* ``0 log 0 = 0`` and ``0 log(0 / q) = 0``, also for ``q = 0``.
* An entry with ``p > 0`` and ``q = 0`` makes cross-entropy and KL divergence inf.
* Where a term is inf or has an infinite slope (the entropy at ``p = 0``), this slope is
  taken as zero, so that derivatives are always finite.

The keyword arguments of all of them: `axis`, an axis or several, or None for all, over
which the distribution extends; `where`, a mask that broadcasts to it, whose False
entries contribute nothing, whatever they contain, and are left out of a softmax;
`base`, the base of the logarithm, None for e. The unit is then nats; base 2 gives bits.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import entr, rel_entr
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number

from . import gumbel

_Axis = int | tuple[int, ...] | None


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
    _check_base(base)
    p = jnp.asarray(p, jnp.result_type(p, float))
    impossible = p == 0
    nats = jnp.where(impossible, jnp.inf, -jnp.log(jnp.where(impossible, 1, p)))
    return _in_base(nats, base)


def entropy(
    p: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    (p,) = _probabilities(where, p)
    # entr(1) = 0 stands in for entr(0) = 0, so that zeros have the slope zero.
    return _total(entr(jnp.where(p == 0, 1, p)), axis, base)


def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    p, q = _probabilities(where, p, q)
    impossible = q == 0
    terms = -p * jnp.log(jnp.where(impossible, 1, q))
    return _total(jnp.where(impossible & (p > 0), jnp.inf, terms), axis, base)


def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    p, q = _probabilities(where, p, q)
    return _total(rel_entr(p, q), axis, base)


def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    p, q = _probabilities(where, p, q)
    # Half of the smallest number may underflow to zero, which the divergence from `m`
    # would punish with inf.
    m = jnp.maximum((p + q) / 2, jnp.finfo(p.dtype).tiny)
    return _total((rel_entr(p, m) + rel_entr(q, m)) / 2, axis, base)


def entropy_from_logits(
    logits: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    (log_p,) = _log_probabilities(axis, where, logits)
    terms = -jnp.exp(log_p) * jnp.where(log_p == -jnp.inf, 0, log_p)
    return _total(terms, axis, base)


def cross_entropy_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    log_p, log_q = _log_probabilities(axis, where, p_logits, q_logits)
    impossible = log_q == -jnp.inf
    terms = -jnp.exp(log_p) * jnp.where(impossible, 0, log_q)
    terms = jnp.where(impossible & (log_p != -jnp.inf), jnp.inf, terms)
    return _total(terms, axis, base)


def kl_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    log_p, log_q = _log_probabilities(axis, where, p_logits, q_logits)
    in_p, in_q = log_p != -jnp.inf, log_q != -jnp.inf
    gap = jnp.where(in_p & in_q, log_p, 0) - jnp.where(in_p & in_q, log_q, 0)
    terms = jnp.where(in_p & ~in_q, jnp.inf, jnp.exp(log_p) * gap)
    return _total(terms, axis, base)


def js_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: _Axis = -1,
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
    _check_base(base)
    log_p, log_q = _log_probabilities(axis, where, p_logits, q_logits)
    both = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    gap = jnp.where(both, log_q, 0) - jnp.where(both, log_p, 0)
    # What only one of the two can produce tells them apart: it contributes log 2.
    p_over_m = math.log(2) - jnp.where(both, jax.nn.softplus(gap), 0)
    q_over_m = math.log(2) - jnp.where(both, jax.nn.softplus(-gap), 0)
    terms = (jnp.exp(log_p) * p_over_m + jnp.exp(log_q) * q_over_m) / 2
    return _total(terms, axis, base)


def gaussian_entropy(log_variance: ArrayLike) -> jax.Array:
    """Differential entropy of a Gaussian: ``[log(2 pi e) + log_variance] / 2``.

    Args:
        log_variance: Log of the variance, of any shape.

    Returns:
        The entropy in nats of each Gaussian, of the shape of `log_variance`; negative
        if the variance is small. Sum over the dimensions of independent ones.

    Example:
        >>> print(f"{gaussian_entropy(0.0):.6f}")  # log(2 pi e) / 2
        1.418939

    References:
        Cover and Thomas, "Elements of Information Theory", 2006, chapter 8.
    """
    log_variance = jnp.asarray(log_variance, jnp.result_type(log_variance, float))
    return (math.log(2 * math.pi) + 1 + log_variance) / 2


def gaussian_kl_divergence(
    mean_p: ArrayLike,
    log_variance_p: ArrayLike,
    mean_q: ArrayLike,
    log_variance_q: ArrayLike,
) -> jax.Array:
    """Kullback-Leibler divergence ``KL(p || q)`` of two Gaussians.

    Here `p` is the truth and `q` the model. It computes, with ``d`` the difference
    ``log_variance_p - log_variance_q``,

        ``KL = [expm1(d) - d + (mean_p - mean_q)^2 / variance_q] / 2``,

    the first two terms by series near ``d = 0``, so that nearly equal Gaussians have an
    accurate divergence, and equal ones have none.

    Args:
        mean_p: Mean of the truth.
        log_variance_p: Log of the variance of the truth.
        mean_q: Mean of the model.
        log_variance_q: Log of the variance of the model.

    Returns:
        The divergence in nats of each pair, of the broadcast shape, at least zero. Sum
        over the dimensions of independent ones.

    Example:
        >>> print(gaussian_kl_divergence(1.0, 0.0, 3.0, 0.0))  # (1 - 3)^2 / 2
        2.0

    References:
        Kullback and Leibler, "On Information and Sufficiency", 1951.
    """
    arguments = (mean_p, log_variance_p, mean_q, log_variance_q)
    dtype = jnp.result_type(*arguments, float)
    mean_p, log_variance_p, mean_q, log_variance_q = [
        jnp.asarray(argument, dtype) for argument in arguments
    ]
    # The precision is bounded where its root would overflow, lest it meet a difference
    # of zero. The square is taken last since the precision overflows before its root.
    limit = math.log(jnp.finfo(dtype).max) - 1
    log_root = -log_variance_q / 2
    log_root = jnp.where(log_root > limit, limit, log_root)
    distance = jnp.square((mean_p - mean_q) * jnp.exp(log_root))
    excess = gumbel._expm1_minus_identity(log_variance_p - log_variance_q)
    return (excess + distance) / 2


# The divergence of Gumbel distributions, in the order of this module: truth, model.
gumbel_kl_divergence = gumbel.kl_divergence


def _check_base(base: ArrayLike | None) -> None:
    check_number("base", base, low=0, open_low=True)
    if isinstance(base, (int, float)) and base == 1:
        raise ValueError("base must not be 1, whose logarithm is zero.")


def _in_base(nats: jax.Array, base: ArrayLike | None) -> jax.Array:
    return nats if base is None else nats / jnp.log(jnp.asarray(base, nats.dtype))


def _total(terms: jax.Array, axis: _Axis, base: ArrayLike | None) -> jax.Array:
    return _in_base(jnp.sum(terms, axis), base)


def _probabilities(where: ArrayLike | None, *arguments: ArrayLike) -> list[jax.Array]:
    """Promotes probabilities to a common dtype and puts zeros where they are masked.

    Masking the input, not the terms, keeps what is masked out of the derivative.
    """
    dtype = jnp.result_type(*arguments, float)
    arrays = [jnp.asarray(argument, dtype) for argument in arguments]
    return arrays if where is None else [jnp.where(where, p, 0) for p in arrays]


def _log_probabilities(
    axis: _Axis, where: ArrayLike | None, *arguments: ArrayLike
) -> list[jax.Array]:
    """Returns log-softmaxes, with the constant -inf for zero probabilities."""
    dtype = jnp.result_type(*arguments, float)
    arrays = [jnp.asarray(argument, dtype) for argument in arguments]
    results = []
    for logits in jnp.broadcast_arrays(*arrays):
        kept = logits != -jnp.inf
        kept = kept if where is None else kept & jnp.asarray(where, bool)
        # The softmax of nothing but -inf would be NaN.
        some = jnp.any(kept, axis, keepdims=True)
        log_p = jax.nn.log_softmax(
            jnp.where(kept, logits, jnp.where(some, -jnp.inf, 0)), axis
        )
        results.append(jnp.where(kept, log_p, -jnp.inf))
    return results
