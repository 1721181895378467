"""Measures of Gaussians."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.numerics import (
    difference,
    expm1_minus_identity,
    in_working_type,
    working_type,
)


@in_working_type
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
    log_variance = jnp.asarray(log_variance, working_type(log_variance))
    return (math.log(2 * math.pi) + 1 + log_variance) / 2


@in_working_type
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
    dtype = working_type(mean_p, log_variance_p, mean_q, log_variance_q)
    apart = difference(mean_p, mean_q, dtype)
    wider = difference(log_variance_p, log_variance_q, dtype)
    # The precision is bounded where its root would overflow, lest it meet a difference
    # of zero. The square is taken last since the precision overflows before its root.
    limit = math.log(jnp.finfo(dtype).max) - 1
    log_root = -jnp.asarray(log_variance_q, dtype) / 2
    log_root = jnp.where(log_root > limit, limit, log_root)
    apart, wider, log_root = jnp.broadcast_arrays(apart, wider, log_root)
    # Where the square is infinite, its slope is taken as zero.
    size = jnp.log(jax.lax.stop_gradient(jnp.abs(apart))) + log_root
    infinite = 2 * size > math.log(jnp.finfo(dtype).max)
    distance = jnp.square(jnp.where(infinite, 0, apart) * jnp.exp(log_root))
    distance = jnp.where(infinite, jnp.inf, distance)
    return (expm1_minus_identity(wider) + distance) / 2
