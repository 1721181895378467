"""Moments, entropy and divergence."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number
from dtp_jax._core.numerics import (
    difference,
    divide,
    expm1_minus_identity,
    in_working_type,
    working_type,
)

from ._parameters import parameters, positive

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


@in_working_type
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
    loc, scale = parameters(loc, scale)
    return loc + _EULER_GAMMA * scale


@in_working_type
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
    loc, scale = parameters(loc, scale)
    return jnp.where(scale > 0, loc, scale)


@in_working_type
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
    loc, scale = parameters(loc, scale)
    return loc - scale * math.log(math.log(2))


@in_working_type
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
    _, scale = parameters(loc, scale)
    return jnp.square(scale * (math.pi / math.sqrt(6)))


@in_working_type
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
    _, scale = parameters(loc, scale)
    return jnp.log(scale) + (1 + _EULER_GAMMA)


@in_working_type
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
    dtype = working_type(loc_p, scale_p, loc_q, scale_q)
    apart, wider, scale_p, scale_q = jnp.broadcast_arrays(
        difference(loc_q, loc_p, dtype),
        difference(scale_p, scale_q, dtype),
        positive(scale_p, dtype),
        positive(scale_q, dtype),
    )
    ratio, excess = divide(scale_p, scale_q), divide(wider, scale_q)

    near = jnp.abs(excess) < 0.5
    # log(Gamma(1 + e)) + gamma e is the sum over k >= 2 of zeta(k) (-e)^k / k. With one
    # taken from each zeta(k), its terms fall as (e / 2)^k instead of e^k, and what was
    # taken sums to e - log(1 + e).
    e = jnp.where(near, excess, 0)
    log_ratio = jnp.log1p(e)
    series = jnp.zeros_like(e)
    for k in range(len(_ZETA_MINUS_ONE) + 1, 1, -1):
        series = _ZETA_MINUS_ONE[k - 2] / k - e * series
    near_width = expm1_minus_identity(log_ratio) + e * e * series
    near_log_gamma = log_ratio + near_width - _EULER_GAMMA * e
    # Elsewhere log(Gamma(1 + r)) is infinite for a ratio beyond, and log(Gamma(r)) is
    # that less log(r). The ratio itself may have underflowed.
    limits = jnp.finfo(ratio.dtype)
    beyond = ratio > limits.max / 1000
    r = jnp.where(near | beyond, 2, ratio)
    under = ratio < limits.tiny
    logs = jnp.log(scale_p) - jnp.log(scale_q)
    log_r = jnp.where(under, logs, jnp.log(jnp.where(under, 1, r)))
    far_log_gamma = jax.lax.lgamma(r + 1)
    far_width = far_log_gamma - log_r + _EULER_GAMMA * (r - 1)

    log_gamma = jnp.where(near, near_log_gamma, far_log_gamma)
    width = jnp.where(near, near_width, far_width)
    a = divide(apart, scale_q) + log_gamma
    return jnp.where(beyond, jnp.inf, width + expm1_minus_identity(a))
