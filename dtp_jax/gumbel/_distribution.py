"""Densities, distribution functions and quantiles."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.layout import missing_value
from dtp_jax._core.numerics import divide, exp_minus, in_working_type

from ._parameters import parameters


@in_working_type
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
    return divide(exp_minus(z) * jnp.exp(-exp_minus(z)), scale)


@in_working_type
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
    return -linear - exp_minus(z, -jnp.inf) - jnp.log(scale)


@in_working_type
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
    return jnp.exp(-exp_minus(z))


@in_working_type
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
    return -exp_minus(z, -jnp.inf)


@in_working_type
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
    t = exp_minus(z)
    # The derivative of expm1 is computed as expm1 + 1, which has no correct digit left
    # where t is large. There the plain difference is as accurate, and so is its slope.
    return jnp.where(z > 0, -jnp.expm1(-t), 1 - jnp.exp(-t))


@in_working_type
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
        log(1 - exp(-abs(a)))", 2012, on log1mexp.
    """
    z, _ = _standardize(x, loc, scale)
    t = exp_minus(z)
    far = z > 7
    # The next term of the expansion, t^4 / 2880, is below 3e-16 there.
    tail = -z - t / 2 + t * t / 24
    return jnp.where(far, tail, jax.nn.log1mexp(jnp.where(far, 1, t)))


@in_working_type
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
    q, loc, scale = parameters(q, loc, scale)
    inside = (q > 0) & (q < 1)
    z = -jnp.log(-jnp.log(jnp.where(inside, q, 0.5)))
    z = jnp.where(inside, z, _at_ends(jnp.where(inside, 0, q), -jnp.inf, jnp.inf))
    return loc + scale * z


@in_working_type
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
    q, loc, scale = parameters(q, loc, scale)
    inside = (q > 0) & (q < 1)
    z = -jnp.log(-jnp.log1p(-jnp.where(inside, q, 0.5)))
    z = jnp.where(inside, z, _at_ends(jnp.where(inside, 0, q), jnp.inf, -jnp.inf))
    return loc + scale * z


def _standardize(
    x: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns z and the scale."""
    x, loc, scale = parameters(x, loc, scale)
    return divide(x - loc, scale), scale


def _at_ends(q: jax.Array, at_zero: float, at_one: float) -> jax.Array:
    """Returns the limits at zero and one, and NaN elsewhere."""
    return jnp.where(q == 0, at_zero, jnp.where(q == 1, at_one, missing_value()))
