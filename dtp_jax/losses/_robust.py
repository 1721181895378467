"""Robust losses."""

import math

import jax
import jax.numpy as jnp

from dtp_jax._core.checks import check_no_new_axes, check_number
from dtp_jax._core.numerics import divide, expm1


def general_robust_loss(
    x: jax.typing.ArrayLike, alpha: jax.typing.ArrayLike, scale: jax.typing.ArrayLike
) -> jax.Array:
    """Barron's loss, of which many robust losses are special cases.

    Computes ``(|alpha - 2| / alpha) (((x / scale)^2 / |alpha - 2| + 1)^(alpha / 2) -
    1)`` and its limits: half the square for alpha = 2, Charbonnier for 1, Cauchy for 0,
    Geman-McClure for -2, Welsch for -inf.

    Args:
        x: ``[...]``, residuals. The other arguments are scalars, or ``[...]`` with 1
            for sizes to be repeated.
        alpha: The shape; the smaller, the less outliers count. Any real number, -inf or
            inf. Its derivative is zero at the special values: 0, 2, the infinite ones.
        scale: The residual at which robustness sets in, above 0.

    Returns:
        ``[...]``, at least 0.

    Raises:
        ValueError: If `scale` is a number that is not positive, or the shapes do not
            fit.

    Example:
        ``sqrt(1 + 1) - 1`` for alpha = 1:

        >>> round(general_robust_loss(2.0, 1.0, 2.0).item(), 4)
        0.4142

    References:
        Barron, "A General and Adaptive Robust Loss Function", CVPR 2019, equation 8.
    """
    check_number("scale", scale, low=0, open_low=True)
    check_no_new_axes(x=x, alpha=alpha, scale=scale)
    dtype = jnp.result_type(jnp.float32, x, alpha, scale)
    x, alpha, scale = (jnp.asarray(value, dtype) for value in (x, alpha, scale))
    limits = jnp.finfo(dtype)
    # Beyond, the square would overflow: at 1e18 in float32.
    farthest = 10.0 ** math.floor(math.log10(limits.max) / 2 - 1)
    half = 0.5 * jnp.square(jnp.clip(divide(x, scale), -farthest, farthest))
    # Beyond, expm1 would overflow: at 87 in float32.
    highest = math.floor(math.log(limits.max)) - 1.0
    eps = limits.eps
    regular = (jnp.abs(alpha) > eps) & (jnp.abs(alpha - 2) > eps) & jnp.isfinite(alpha)
    # The special values get a stand-in, for which the general formula is finite.
    a = jnp.where(regular, alpha, 1.0)
    b = jnp.abs(a - 2)
    # (1 + u)^(a / 2) - 1 by log1p and expm1 keeps the digits of small residuals.
    square = jnp.minimum(2 * half, limits.max / 4 * jnp.minimum(b, 1))
    exponent = jnp.minimum(0.5 * a * jnp.log1p(square / b), highest)
    special = jnp.where(
        alpha == jnp.inf,
        expm1(jnp.minimum(half, highest)),
        jnp.where(
            alpha == -jnp.inf,
            -expm1(-half),
            jnp.where(jnp.abs(alpha) <= eps, jnp.log1p(half), half),
        ),
    )
    return jnp.where(regular, b / a * expm1(exponent), special)
