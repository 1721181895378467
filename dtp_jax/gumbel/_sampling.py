"""The Gumbel distribution, and choosing by Gumbel noise.

The distribution of the maximum of many independent values, with location ``loc`` (its
mode, not its mean) and ``scale > 0``. Everywhere below, ``z = (x - loc) / scale`` and
``t = exp(-z)``. The arguments of all functions broadcast against each other. Values and
derivatives keep their relative accuracy in both tails, also in float32, except where
the condition of the problem forbids it: an error of one part in 1e7 in ``z`` becomes
one of ``|z| t`` parts in 1e7 in ``exp(-t)``.

A scale given as a Python number must be positive. In an array or a tracer, a scale that
is not positive gives NaN. A log-density and a log-cdf contain ``exp(-z)`` itself, which
overflows in float32 at about ``z = -88``: from there on they are -inf with infinite
slope. `pdf` and `cdf` have the value and the slope zero there, and no slope is NaN.

`jax.scipy.stats.gumbel_r` has the first eight functions as well, but its `sf` loses all
digits in float32 beyond ``z = 16``, and some of its derivatives with respect to the
scale and the probability raise.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number, check_whole

_EULER_GAMMA = 0.5772156649015329

# Riemann's zeta function less one at 2, 3, ..., 21.
_ZETA_MINUS_ONE = (
    0.6449340668482264,
    0.2020569031595943,
    0.08232323371113819,
    0.03692775514336993,
    0.01734306198444914,
    0.008349277381922827,
    0.00407735619794434,
    0.0020083928260822143,
    0.0009945751278180853,
    0.0004941886041194645,
    0.0002460865533080483,
    0.00012271334757848915,
    6.124813505870483e-05,
    3.058823630702049e-05,
    1.528225940865187e-05,
    7.637197637899763e-06,
    3.81729326499984e-06,
    1.908212716553939e-06,
    9.539620338727962e-07,
    4.769329867878064e-07,
)


def pdf(x: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Density: ``exp(-z - exp(-z)) / scale``.

    Args:
        x: Where to evaluate, any real number.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The density, of the broadcast shape, at least zero.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{pdf(3.0, loc=3.0, scale=0.5):.6f}")  # 2 / e
        0.735759

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    z, scale = _standardize(x, loc, scale)
    return _divide(_exp_minus(z) * jnp.exp(-_exp_minus(z)), scale)


def logpdf(x: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Log-density: ``-z - exp(-z) - log(scale)``.

    Args:
        x: Where to evaluate, any real number.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The log-density in nats, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{logpdf(0.0):.6f}")  # -0 - exp(-0) - log(1)
        -1.000000

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    z, scale = _standardize(x, loc, scale)
    # Below -50, z is lost against exp(-z) in all precisions, but if it overflowed it
    # would turn the difference into NaN.
    linear = jnp.where(z < -50, -50, z)
    return -linear - _exp_minus(z, -jnp.inf) - jnp.log(scale)


def cdf(x: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Probability of at most `x`: ``exp(-exp(-z))``.

    Args:
        x: Where to evaluate, any real number.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The probability, of the broadcast shape, in [0, 1].

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{cdf(0.0):.6f}")  # 1 / e
        0.367879

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    z, _ = _standardize(x, loc, scale)
    return jnp.exp(-_exp_minus(z))


def logcdf(x: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Log-probability of at most `x`: ``-exp(-z)``.

    Args:
        x: Where to evaluate, any real number.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The log-probability in nats, of the broadcast shape, at most zero.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{logcdf(1.0, loc=1.0, scale=7.0):.6f}")  # -exp(-0)
        -1.000000

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    z, _ = _standardize(x, loc, scale)
    return -_exp_minus(z, -jnp.inf)


def sf(x: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Probability of more than `x`: ``1 - exp(-t)``, computed as ``-expm1(-t)``.

    Args:
        x: Where to evaluate, any real number.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The probability, of the broadcast shape, in [0, 1].

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{sf(20.0):.4e}")  # exp(-20), where 1 - cdf(20) is zero in float32
        2.0612e-09

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    z, _ = _standardize(x, loc, scale)
    t = _exp_minus(z)
    # The derivative of expm1 is computed as expm1 + 1, which has no correct digit left
    # where t is large. There the plain difference is as accurate, and so is its slope.
    return jnp.where(z > 0, -jnp.expm1(-t), 1 - jnp.exp(-t))


def logsf(x: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Log-probability of more than `x`: ``log(1 - exp(-t))``.

    Reuses `jax.nn.log1mexp`. Beyond ``z = 7`` it takes the expansion
    ``-z - t / 2 + t^2 / 24``, which stays right after `t` has underflowed.

    Args:
        x: Where to evaluate, any real number.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The log-probability in nats, of the broadcast shape, at most zero.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{logsf(200.0):.4f}")  # exp(-200) is zero in float32
        -200.0000

    References:
        Gumbel, "Statistics of Extremes", 1958. Maechler, "Accurately Computing
        log(1 - exp(-|a|))", 2012, on log1mexp.
    """
    z, _ = _standardize(x, loc, scale)
    t = _exp_minus(z)
    far = z > 7
    # The next term of the expansion, t^4 / 2880, is below 3e-16 there.
    tail = -z - t / 2 + t * t / 24
    return jnp.where(far, tail, jax.nn.log1mexp(jnp.where(far, 1, t)))


def ppf(q: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Quantile, the inverse of `cdf`: ``loc - scale log(-log(q))``.

    It is -inf at zero, inf at one and NaN outside [0, 1]; its derivative with respect
    to `q` is infinite at zero and at one, and taken as zero there. Where `q` is within
    rounding of one, pass its complement to `isf` instead.

    Args:
        q: Probabilities in [0, 1].
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The values that are not exceeded with probability `q`, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{ppf(0.5):.6f}")  # -log(log(2))
        0.366513

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    q, loc, scale = _parameters(q, loc, scale)
    inside = (q > 0) & (q < 1)
    z = -jnp.log(-jnp.log(jnp.where(inside, q, 0.5)))
    z = jnp.where(inside, z, _at_ends(q, -jnp.inf, jnp.inf))
    return loc + scale * z


def isf(q: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Upper quantile, the inverse of `sf`: ``loc - scale log(-log1p(-q))``.

    It is inf at zero, -inf at one and NaN outside [0, 1]; its derivative with respect
    to `q` is infinite at zero and at one, and taken as zero there.

    Args:
        q: Probabilities in [0, 1].
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The values that are exceeded with probability `q`, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{isf(1e-12):.4f}")  # 12 log(10), where ppf(1 - 1e-12) is inf
        27.6310

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    q, loc, scale = _parameters(q, loc, scale)
    inside = (q > 0) & (q < 1)
    z = -jnp.log(-jnp.log1p(-jnp.where(inside, q, 0.5)))
    z = jnp.where(inside, z, _at_ends(q, jnp.inf, -jnp.inf))
    return loc + scale * z


def mean(loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Mean: ``loc + gamma scale``, with Euler's constant ``gamma = 0.5772...``.

    Args:
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The mean, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{mean(1.0, 2.0):.6f}")  # 1 + 2 * 0.577216
        2.154431

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    loc, scale = _parameters(loc, scale)
    return loc + _EULER_GAMMA * scale


def mode(loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Mode, where the density is the largest: `loc`.

    Args:
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The mode, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{mode(1.0, 2.0):.6f}")
        1.000000

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    loc, scale = _parameters(loc, scale)
    return jnp.where(scale > 0, loc, scale)


def median(loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Median: ``loc - scale log(log(2))``.

    Args:
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.

    Returns:
        The median, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{median(1.0, 2.0):.6f}")  # 1 + 2 * 0.366513
        1.733026

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    loc, scale = _parameters(loc, scale)
    return loc - scale * math.log(math.log(2))


def variance(loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Variance: ``(pi scale)^2 / 6``.

    Args:
        loc: Mode of the distribution; only its shape matters.
        scale: Width of the distribution, positive.

    Returns:
        The variance, of the broadcast shape.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{variance(0.0, 6.0):.6f}")  # 6 pi^2
        59.217628

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    _, scale = _parameters(loc, scale)
    return jnp.square(scale * (math.pi / math.sqrt(6)))


def entropy(loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> jax.Array:
    """Differential entropy: ``log(scale) + 1 + gamma``.

    Args:
        loc: Mode of the distribution; only its shape matters.
        scale: Width of the distribution, positive.

    Returns:
        The entropy in nats, of the broadcast shape; negative if the scale is small.

    Raises:
        ValueError: If `scale` is a Python number that is not positive.

    Example:
        >>> print(f"{entropy():.6f}")  # 1 + 0.577216
        1.577216

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    _, scale = _parameters(loc, scale)
    return jnp.log(scale) + (1 + _EULER_GAMMA)


def kl_divergence(
    loc_p: ArrayLike, scale_p: ArrayLike, loc_q: ArrayLike, scale_q: ArrayLike
) -> jax.Array:
    """Kullback-Leibler divergence ``KL(p || q)`` of two Gumbel distributions.

    Here `p` is the truth and `q` the model. With ``r = scale_p / scale_q`` and
    ``a = (loc_q - loc_p) / scale_q + log(Gamma(1 + r))``, it computes

        ``KL = [log(Gamma(r)) + gamma (r - 1)] + [exp(a) - 1 - a]``.

    Both brackets are convex functions of `r` and `a` whose minimum, zero, is at one and
    at zero. They are computed by series near there, so that nearly equal distributions
    have an accurate divergence, and equal ones have none. In float32 it overflows to
    inf where `a` is above about 88: if `q` is much narrower than `p`, or lies that many
    of its widths to the right.

    Args:
        loc_p: Mode of the truth.
        scale_p: Width of the truth, positive.
        loc_q: Mode of the model.
        scale_q: Width of the model, positive.

    Returns:
        The divergence in nats, of the broadcast shape, at least zero.

    Raises:
        ValueError: If a scale is a Python number that is not positive.

    Example:
        >>> print(f"{kl_divergence(0.0, 1.0, 1.0, 1.0):.6f}")  # e - 2, as r = a = 1
        0.718282

    References:
        The definition, integrated: the mean of ``exp(-(x - loc_q) / scale_q)`` under
        `p` is ``exp(a)``. It agrees with the divergence in TensorFlow Probability.
    """
    check_number("scale_p", scale_p, low=0, open_low=True)
    check_number("scale_q", scale_q, low=0, open_low=True)
    loc_p, scale_p = _parameters(loc_p, scale_p)
    loc_q, scale_q = _parameters(loc_q, scale_q)
    ratio = _divide(scale_p, scale_q)
    excess = _divide(scale_p - scale_q, scale_q)

    near = jnp.abs(excess) < 0.5
    # log(Gamma(1 + e)) + gamma e is the sum over k >= 2 of zeta(k) (-e)^k / k. With one
    # taken from each zeta(k), its terms fall as (e / 2)^k instead of e^k, and what was
    # taken sums to e - log(1 + e).
    e = jnp.where(near, excess, 0)
    log_ratio = jnp.log1p(e)
    series = jnp.zeros_like(e)
    for k in range(len(_ZETA_MINUS_ONE) + 1, 1, -1):
        series = _ZETA_MINUS_ONE[k - 2] / k - e * series
    near_width = _expm1_minus_identity(log_ratio) + e * e * series
    near_log_gamma = log_ratio + near_width - _EULER_GAMMA * e
    r = jnp.where(near, 2, ratio)
    far_width = jax.lax.lgamma(r) + _EULER_GAMMA * (r - 1)

    log_gamma = jnp.where(near, near_log_gamma, jax.lax.lgamma(r + 1))
    width = jnp.where(near, near_width, far_width)
    a = _divide(loc_q - loc_p, scale_q) + log_gamma
    return width + _expm1_minus_identity(a)


def sample(
    key: jax.Array,
    loc: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    shape: tuple[int, ...] | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Draws ``loc + scale g``, where `g` is standard Gumbel noise.

    The draws are differentiable in `loc` and `scale`. The noise is that of
    `jax.random.gumbel`, drawn in float32 or wider and cast at the end, since noise
    drawn in bfloat16 is far from Gumbel. The values of `g` end at about 16 in float32,
    which is too soon for events rarer than 1e-7; the configuration flag
    ``jax_use_high_dynamic_range_gumbel`` doubles that.

    Args:
        key: PRNG key.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.
        shape: Shape of the result, which `loc` and `scale` must broadcast to. None for
            their broadcast shape.
        dtype: Floating dtype of the result. None for that of `loc` and `scale`.

    Returns:
        Independent draws.

    Raises:
        ValueError: If `scale` is a Python number that is not positive, if `loc` and
            `scale` do not broadcast to `shape`, or if `dtype` is not floating.

    Example:
        >>> draws = sample(jax.random.key(0), loc=jnp.array([1.0, 2.0]), scale=1e-9)
        >>> print(draws)  # As good as no noise.
        [1. 2.]

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    dtype = jnp.result_type(loc, scale, float) if dtype is None else dtype
    dtype = jnp.result_type(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {dtype}.")
    loc, scale = _parameters(loc, scale)
    if shape is None:
        shape = loc.shape
    elif jnp.broadcast_shapes(shape, loc.shape) != tuple(shape):
        raise ValueError(
            f"loc and scale must broadcast to shape {list(shape)}, got "
            f"{list(loc.shape)} for the two of them."
        )
    noise = jax.random.gumbel(key, shape, jnp.promote_types(dtype, jnp.float32))
    return (loc + scale * noise).astype(dtype)


def perturbed_logits(key: jax.Array, logits: ArrayLike) -> jax.Array:
    """Adds independent standard Gumbel noise to each logit.

    The largest perturbed logit is at `i` with probability ``softmax(logits)[i]``, and
    the order of all of them is that of drawing without replacement. `gumbel_softmax`
    and `top_k` use these values if they have the same key. They give the importance
    weights of the `k` indices from `top_k`: if `kappa` is the largest perturbed logit
    that is not among them, a weight of ``1 / sf(kappa, loc=logits)`` for those above it
    and of zero for the others has mean one.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities of any shape, in [-inf, inf).

    Returns:
        The perturbed logits, in float32 or wider; -inf where the logit is -inf.

    Example:
        >>> perturbed = perturbed_logits(jax.random.key(0), jnp.array([1e9, -jnp.inf]))
        >>> print(perturbed)
        [1.e+09   -inf]

    References:
        Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019.
    """
    logits = _at_least_float32(logits)
    return logits + jax.random.gumbel(key, logits.shape, logits.dtype)


def gumbel_max(key: jax.Array, logits: ArrayLike, axis: int = -1) -> jax.Array:
    """Draws the index `i` with probability ``softmax(logits)[i]``.

    This is `jax.random.categorical`, which adds Gumbel noise and takes the argmax. The
    only difference is that logits of less than float32 are widened first, since noise
    in their own precision would be far from Gumbel.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities, in [-inf, inf). An index whose logit is
            -inf is never drawn, unless all of them are, which gives the index zero.
        axis: The axis of the distribution.

    Returns:
        One index for each distribution, of the shape of `logits` without `axis`.

    Raises:
        ValueError: If `logits` is a scalar.

    Example:
        >>> logits = jnp.array([-jnp.inf, 0.0, -jnp.inf])
        >>> print(gumbel_max(jax.random.key(0), logits))
        1

    References:
        Maddison et al., "A* Sampling", NeurIPS 2014.
    """
    logits = _at_least_float32(logits)
    _check_axis(logits)
    return jax.random.categorical(key, logits, axis)


def gumbel_softmax(
    key: jax.Array,
    logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    *,
    hard: bool = False,
    axis: int = -1,
) -> jax.Array:
    """Draws a differentiable, approximately one-hot vector.

    Computes ``softmax((logits + g) / temperature)`` with standard Gumbel noise `g`. Its
    largest entry is at `i` with probability ``softmax(logits)[i]``. The lower the
    temperature, the closer the draw is to one-hot and the larger is the variance of its
    gradient.

    With ``hard=True`` the value is exactly one-hot, and the derivative is that of the
    soft vector (straight-through): it is biased, as it belongs to another value.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities, in [-inf, inf). Where a logit is -inf,
            the result and its derivative are zero, also if all of them are.
        temperature: Positive; broadcasts against `logits`.
        hard: Whether to return a one-hot vector.
        axis: The axis of the distribution.

    Returns:
        Non-negative values whose sum over `axis` is one, of the shape of `logits`.

    Raises:
        ValueError: If `temperature` is a Python number that is not positive, or if
            `logits` is a scalar.

    Example:
        >>> logits = jnp.array([0.0, 100.0, -jnp.inf])  # The noise is below 20.
        >>> print(gumbel_softmax(jax.random.key(0), logits, 0.5, hard=True))
        [0. 1. 0.]

    References:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017,
        eq. 2 and section 2.2. Maddison et al., "The Concrete Distribution", ICLR 2017.
    """
    check_number("temperature", temperature, low=0, open_low=True)
    perturbed = perturbed_logits(key, logits)
    _check_axis(perturbed)
    temperature = jnp.asarray(temperature, perturbed.dtype)
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)

    possible = perturbed != -jnp.inf
    top = jnp.max(
        perturbed, axis, keepdims=True, initial=jnp.finfo(perturbed.dtype).min
    )
    # Nothing is above zero after the largest is subtracted, so that a low temperature
    # can only underflow to zero.
    gaps = jnp.where(possible, jax.lax.stop_gradient(top) - perturbed, 0)
    powers = jnp.where(possible, _exp_minus(_divide(gaps, temperature)), 0)
    total = jnp.sum(powers, axis, keepdims=True)
    soft = powers / jnp.where(total > 0, total, 1)
    soft = soft.astype(jnp.result_type(logits, float))
    if not hard:
        return soft
    choice = jnp.argmax(perturbed, axis)
    one_hot = jax.nn.one_hot(choice, soft.shape[axis], dtype=soft.dtype, axis=axis)
    # The bracket is exactly zero, so that no rounding is left in the value.
    return jnp.where(possible, one_hot, 0) + (soft - jax.lax.stop_gradient(soft))


def top_k(key: jax.Array, logits: ArrayLike, k: int) -> jax.Array:
    """Draws `k` different indices, one after the other, without replacement.

    Each is drawn with probabilities ``softmax(logits)`` among those that are left. It
    takes the `k` largest of `perturbed_logits` with the same key, which returns the
    values. `jax.random.categorical` with ``replace=False`` draws the same distribution,
    but may return indices whose logit is -inf.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities of shape [..., n], in [-inf, inf).
        k: How many to draw, in [1, n].

    Returns:
        Indices in the order of the draws, of shape [..., k] and dtype int32. If fewer
        than `k` logits are above -inf, the last places are `n`: an index out of bounds,
        which `jax.nn.one_hot` and scatters (``x.at[indices].set``) ignore.

    Raises:
        ValueError: If `k` is not an integer of at least one, if it is larger than `n`,
            or if `logits` is a scalar.

    Example:
        >>> logits = jnp.array([100.0, -jnp.inf, 200.0])  # The noise is below 20.
        >>> print(top_k(jax.random.key(0), logits, 3))
        [2 0 3]

    References:
        Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019.
    """
    check_whole("k", k, low=1)
    perturbed = perturbed_logits(key, logits)
    _check_axis(perturbed)
    size = perturbed.shape[-1]
    if k > size:
        raise ValueError(f"k must be at most the number of logits, {size}, got {k}.")
    values, indices = jax.lax.top_k(perturbed, k)
    return jnp.where(values == -jnp.inf, size, indices)


@jax.custom_jvp
def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Division whose derivative survives extreme denominators."""
    return numerator / denominator


@_divide.defjvp
def _divide_jvp(primals, tangents):
    # The square of the denominator, in the rule of JAX, is zero or infinite in float32
    # for denominators that are themselves harmless. The quotient may be infinite; it is
    # clipped so that a slope of zero in it stays zero.
    numerator, denominator = primals
    quotient = _divide(numerator, denominator)
    largest = jnp.finfo(quotient.dtype).max
    slope = jnp.clip(quotient, -largest, largest)
    return quotient, (tangents[0] - slope * tangents[1]) / denominator


@jax.custom_jvp
def _expm1_minus_identity(x: jax.Array) -> jax.Array:
    """``exp(x) - 1 - x``, at least zero and accurate near zero."""
    near = jnp.abs(x) < 0.5
    series = jnp.ones_like(x)
    for k in range(14, 2, -1):
        series = 1 + jnp.where(near, x, 0) / k * series
    # Where exp(x) overflows, so does the result, also if x itself is infinite.
    far = jnp.expm1(x) - jnp.minimum(x, 1000)
    return jnp.where(near, 0.5 * x * x * series, far)


@_expm1_minus_identity.defjvp
def _expm1_minus_identity_jvp(primals, tangents):
    slope = jnp.expm1(primals[0])
    # An infinite slope would turn every zero it is multiplied by into NaN. Where the
    # value is inf, the slope only has to be large.
    large = float(jnp.finfo(slope.dtype).max) ** 0.5
    slope = jnp.where(jnp.isinf(slope), large, slope)
    return _expm1_minus_identity(primals[0]), slope * tangents[0]


def _parameters(*arguments: ArrayLike) -> list[jax.Array]:
    """Promotes and broadcasts; the last argument is a scale."""
    check_number("scale", arguments[-1], low=0, open_low=True)
    dtype = jnp.result_type(*arguments, float)
    *rest, scale = [jnp.asarray(argument, dtype) for argument in arguments]
    scale = jnp.where(scale > 0, scale, jnp.nan)
    return list(jnp.broadcast_arrays(*rest, scale))


def _standardize(
    x: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns z and the scale."""
    x, loc, scale = _parameters(x, loc, scale)
    return _divide(x - loc, scale), scale


def _exp_minus(z: jax.Array, low: float = -10.0) -> jax.Array:
    """Returns exp(-z), with the slope zero below `low` and where it underflows.

    At z = -10, exp(-exp(-z)) is zero in all precisions, and at z = 1000, exp(-z) is.
    """
    return jnp.exp(-jnp.where(z < low, low, jnp.where(z > 1000, 1000, z)))


def _at_ends(q: jax.Array, at_zero: float, at_one: float) -> jax.Array:
    """Returns the limits at zero and one, and NaN elsewhere."""
    return jnp.where(q == 0, at_zero, jnp.where(q == 1, at_one, jnp.nan))


def _at_least_float32(logits: ArrayLike) -> jax.Array:
    dtype = jnp.promote_types(jnp.result_type(logits, float), jnp.float32)
    return jnp.asarray(logits, dtype)


def _check_axis(logits: jax.Array) -> None:
    if logits.ndim == 0:
        raise ValueError("logits must have shape [..., n], got [].")
