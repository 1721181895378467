"""Regression, and any loss."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number, check_same_shape
from dtp_jax._core.numerics import as_floats, difference, exact

from ._inputs import SMALLEST_SCALE, broadcast, mean_of, valid_of


def within_threshold(
    predicted: ArrayLike,
    target: ArrayLike,
    threshold: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Fraction of the predictions that are off by at most a threshold.

    Computes the mean of ``|predicted - target| <= threshold``, element by element.

    Args:
        predicted: Predictions, ``[...]``.
        target: Targets, ``[...]``.
        threshold: Error allowed, non-negative, broadcast to ``[...]``.
        where: Which elements count, ``[...]``.

    Returns:
        The fraction, float32, NaN if no element counts.

    Raises:
        ValueError: If shapes do not fit or the threshold is negative.

    Example:
        >>> predicted, target = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.full(4, 1.0)
        >>> float(within_threshold(predicted, target, 1.5))
        0.5
    """
    check_number("threshold", threshold, low=0)
    check_same_shape("predicted", predicted, "target", target)
    error = jnp.abs(difference(predicted, target))
    correct = error <= broadcast("threshold", threshold, error.shape)
    correct &= jnp.isfinite(error)
    return mean_of(correct, valid_of(where, error.shape))


def bounded_error(
    predicted: ArrayLike,
    target: ArrayLike,
    scale: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """One minus the mean absolute error, in units of the largest error that matters.

    Computes the mean of ``1 - clip(|predicted - target| / scale, 0, 1)``, element by
    element. It can be differentiated; errors above `scale` have no gradient.

    Args:
        predicted: Predictions, ``[...]``.
        target: Targets, ``[...]``.
        scale: Error that is worth nothing, such as the image size, broadcast to
            ``[...]``. Where it is not above 0 the element is worth nothing.
        where: Which elements count, ``[...]``.

    Returns:
        The mean, float32, NaN if no element counts. What is not finite is worth
        nothing.

    Raises:
        ValueError: If shapes do not fit or the scale is not above 0.

    Example:
        Errors of 1 and 5 at scale 4 are worth 3/4 and nothing.

        >>> float(bounded_error(jnp.array([1.0, 5.0]), jnp.zeros(2), 4.0))
        0.375
    """
    check_number("scale", scale, low=0, open_low=True)
    check_same_shape("predicted", predicted, "target", target)
    predicted, target = exact(predicted), exact(target)
    valid = valid_of(where, predicted.shape)
    scale = broadcast("scale", scale, predicted.shape)
    usable = valid & jnp.isfinite(predicted) & jnp.isfinite(target)
    usable &= scale > SMALLEST_SCALE
    error = difference(jnp.where(usable, predicted, 0), jnp.where(usable, target, 0))
    relative = jnp.abs(error) / jnp.where(usable, scale, 1)
    return mean_of(jnp.where(usable, 1 - jnp.clip(relative, 0, 1), 0), valid)


def correlation(
    predicted: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Pearson's correlation of predictions and targets, moved to [0, 1].

    Computes ``(r + 1) / 2`` over all elements. Where r is not defined, because one of
    the two is constant or there is only one element, the answer is 0.5, as for
    unrelated predictions. It can be differentiated. Values are mapped to [0, 1] before
    they are multiplied, so neither their offset nor their scale costs accuracy.

    Args:
        predicted: Predictions, ``[...]``.
        target: Targets, ``[...]``.
        where: Which elements count, ``[...]``.

    Returns:
        The KPI, float32, NaN if no element counts, and 0 if one that counts is not
        finite.

    Raises:
        ValueError: If the shapes differ.

    Example:
        The deviations from the means are (-1, 0, 1) and (-1, 1, 0), so ``r = 1/2``.

        >>> predicted, target = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 6.0, 5.0])
        >>> round(float(correlation(predicted, target)), 4)
        0.75
    """
    check_same_shape("predicted", predicted, "target", target)
    predicted, target = exact(predicted), exact(target)
    valid = valid_of(where, predicted.shape)
    finite = jnp.isfinite(predicted) & jnp.isfinite(target)
    usable = valid & finite
    x, x_varies = _center(predicted, usable)
    y, y_varies = _center(target, usable)
    varies = x_varies & y_varies
    # On [0, 1] a sum of squares is at least 1/2, unless nothing varies.
    squares = jnp.where(varies, jnp.sum(x**2) * jnp.sum(y**2), 1)
    r = jnp.where(varies, jnp.sum(x * y) / jnp.sqrt(squares), 0)
    kpi = jnp.where(jnp.any(valid & ~finite), 0, (jnp.clip(r, -1, 1) + 1) / 2)
    return mean_of(kpi, jnp.any(valid))


def exp_loss(
    loss: ArrayLike, *, scale: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """A KPI for any loss whose smallest value is zero.

    Computes the mean of ``exp(-max(loss, 0) / scale)``. For the cross-entropy of each
    example this is the mean probability of the true class. It can be differentiated.

    Args:
        loss: A loss, ``[]``, or the losses of the examples, ``[...]``.
        scale: The loss that is worth ``1 / e``, above 0, broadcast to ``[...]``.
        where: Which losses count, ``[...]``.

    Returns:
        The KPI, float32, NaN if no loss counts. A loss that is not finite is worth 0.

    Raises:
        ValueError: If shapes do not fit or the scale is not above 0.

    Example:
        >>> float(exp_loss(jnp.log(jnp.array([2.0, 4.0]))))
        0.375
    """
    check_number("scale", scale, low=0, open_low=True)
    loss = as_floats(loss)
    valid = valid_of(where, loss.shape)
    usable = valid & jnp.isfinite(loss)
    scale = broadcast("scale", scale, loss.shape)
    relative = jnp.maximum(jnp.where(usable, loss, 0), 0) / scale
    return mean_of(jnp.where(usable, jnp.exp(-relative), 0), valid)


def _center(values: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps usable values to [0, 1], less their mean there, and says if they vary.

    Offset and scale are constants to the gradient, which is exact all the same: the
    correlation does not depend on them. A constant becomes exactly zero, which rounding
    would prevent if its own mean were subtracted.
    """
    if jnp.issubdtype(values.dtype, jnp.integer):
        lowest = jnp.min(values, where=usable, initial=jnp.iinfo(values.dtype).max)
        values = difference(values, lowest)
    values = as_floats(values)
    fixed = jax.lax.stop_gradient(values)
    low = jnp.min(fixed, where=usable, initial=jnp.inf)
    spread = jnp.max(fixed, where=usable, initial=-jnp.inf) - low
    varies = (spread > SMALLEST_SCALE) & jnp.isfinite(spread)
    kept = usable & varies
    relative = (jnp.where(kept, values, 0) - jnp.where(kept, low, 0)) / jnp.where(
        varies, spread, 1
    )
    mean = jnp.sum(relative) / jnp.maximum(jnp.sum(usable), 1)
    return jnp.where(kept, relative - mean, 0), varies
