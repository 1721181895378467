"""Losses weighted by a learned variance."""

import jax
import jax.numpy as jnp

from dtp_jax._core.checks import check_no_new_axes, check_number
from dtp_jax._core.numerics import working_type

from ._logits import margin_of


def uncertainty_regression(
    loss: jax.typing.ArrayLike,
    log_variance: jax.typing.ArrayLike,
    *,
    positive: bool = False,
    bound: jax.typing.ArrayLike = 10.0,
) -> jax.Array:
    """Squared error weighted by a learned variance.

    Computes ``exp(-s) L / 2 + s / 2``, the negative log-likelihood of a Gaussian with
    log-variance s, less a constant. Its optimum in s is ``log L``; it is unbounded
    below as L vanishes. For log-variances kept among the parameters of a model (keep
    them out of weight decay); `dtp_jax.balancers.uncertainty` keeps them elsewhere.

    Beyond ``|s| = bound`` the value is that of the nearest end plus half the distance,
    so that a log-variance outside is drawn back and everything stays finite.

    Args:
        loss: ``[...]``, squared errors, at least 0.
        log_variance: ``[...]``, s; a scalar, or with 1 for sizes to be repeated.
        positive: Replaces ``s / 2`` by ``log(1 + exp(s))``, which keeps the sum
            positive (Liebel and Koerner); its optimum is ``exp(s) = (L + sqrt(L^2 + 8
            L)) / 4``.
        bound: Largest absolute log-variance that is used as it is, above 0.

    Returns:
        ``[...]``.

    Raises:
        ValueError: If `bound` is a number that is not positive, or the shapes do not
            fit.

    Example:
        At the optimum ``s = log 3`` the value is ``(1 + log 3) / 2``.

        >>> import math
        >>> round(uncertainty_regression(3.0, math.log(3.0)).item(), 4)
        1.0493

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, equation 7; Liebel and Koerner, "Auxiliary Tasks in Multi-task
        Learning", 2018.
    """
    check_no_new_axes(loss=loss, log_variance=log_variance, bound=bound)
    s, outside = _bounded(log_variance, bound)
    regularizer = jax.nn.softplus(s) if positive else 0.5 * s
    total = 0.5 * _divided(loss, s) + regularizer + outside
    return total.astype(jnp.result_type(loss, log_variance, bound, float))


def uncertainty_classification(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    log_variance: jax.typing.ArrayLike,
    *,
    exact_temperature: bool = False,
    bound: jax.typing.ArrayLike = 10.0,
) -> jax.Array:
    """Cross-entropy weighted by a learned temperature.

    Computes ``exp(-s) L + s / 2``, where L is the cross-entropy; its optimum in s is
    ``log 2L``. This approximates the likelihood of a softmax with the temperature
    ``exp(s)``, exactly so at s = 0. With ``exact_temperature=True`` the likelihood
    itself, ``-log softmax(logits exp(-s))[label]``, at the same cost.

    Args:
        logits: ``[..., C]``. Classes with a logit of -inf are left out; if it is the
            true class, the loss is inf, and its gradients are finite.
        labels: ``[...]``, integers in [0, C); the loss of any other label is NaN.
        log_variance: ``[...]``, s; a scalar, or with 1 for sizes to be repeated.
        exact_temperature: Whether to compute the likelihood instead of its
            approximation.
        bound: Largest absolute log-variance that is used as it is, above 0; see
            `uncertainty_regression`.

    Returns:
        ``[...]``.

    Raises:
        ValueError: If `bound` is a number that is not positive, or the shapes do not
            fit.

    Example:
        Two equal logits: ``log 2`` at s = 0, either way.

        >>> import jax.numpy as jnp
        >>> round(uncertainty_classification(jnp.zeros(2), jnp.array(0), 0.0).item(), 4)
        0.6931

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, equations 8 to 10.
    """
    check_no_new_axes(labels=labels, log_variance=log_variance, bound=bound)
    s, outside = _bounded(log_variance, bound)
    factor = jnp.exp(-s) if exact_temperature else 1.0
    margin, certain, unknown = margin_of(logits, labels, factor)
    cross_entropy = jnp.where(certain, 0, jax.nn.softplus(-margin))
    cross_entropy = jnp.where(unknown, jnp.nan, cross_entropy)
    if exact_temperature:
        total = cross_entropy + outside
    else:
        total = _divided(cross_entropy, s) + 0.5 * s + outside
    return total.astype(jnp.result_type(logits, log_variance, bound, float))


def uncertainty_laplace(
    loss: jax.typing.ArrayLike,
    log_scale: jax.typing.ArrayLike,
    *,
    bound: jax.typing.ArrayLike = 10.0,
) -> jax.Array:
    """Absolute error weighted by a learned scale.

    Computes ``exp(-b) L + b``, the negative log-likelihood of a Laplace distribution
    with log-scale b, less a constant. Its optimum in b is ``log L``.

    Args:
        loss: ``[...]``, absolute errors, at least 0.
        log_scale: ``[...]``, b; a scalar, or with 1 for sizes to be repeated.
        bound: Largest absolute log-scale that is used as it is, above 0; see
            `uncertainty_regression`.

    Returns:
        ``[...]``.

    Raises:
        ValueError: If `bound` is a number that is not positive, or the shapes do not
            fit.

    Example:
        >>> uncertainty_laplace(3.0, 0.0).item()
        3.0

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, section 3.2, which says "similarly" for a Laplace likelihood.
    """
    check_no_new_axes(loss=loss, log_scale=log_scale, bound=bound)
    b, outside = _bounded(log_scale, bound)
    total = _divided(loss, b) + b + outside
    return total.astype(jnp.result_type(loss, log_scale, bound, float))


def _bounded(
    log_variance: jax.typing.ArrayLike, bound: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    check_number("bound", bound, low=0, open_low=True, infinite=True)
    dtype = working_type(log_variance, bound)
    s, limit = jnp.asarray(log_variance, dtype), jnp.asarray(bound, dtype)
    inside = jnp.where(s > limit, limit, jnp.where(s < -limit, -limit, s))
    return inside, 0.5 * jnp.abs(s - inside)


def _divided(loss: jax.typing.ArrayLike, log_scale: jax.Array) -> jax.Array:
    """``exp(-log_scale) loss``, where an infinite loss has no slope in the scale.

    No scale can make it finite, and an infinite slope would be NaN in an example that a
    mask multiplies by zero.
    """
    loss = jnp.asarray(loss, working_type(loss))
    finite = jnp.isfinite(loss)
    divided = jnp.exp(-log_scale) * jnp.where(finite, loss, 0)
    return jnp.where(finite, divided, loss)
