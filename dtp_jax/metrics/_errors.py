"""From measurements to KPIs: functions whose answer is in [0, 1], higher is better.

Every function returns a float32 scalar and takes a mask, `where`, of the examples that
count: an array of the shape the function names, with 1 for sizes to be repeated, or
None for all. **With no example to judge the answer is NaN, which the library reads as
"not observed"**: the task keeps the KPI that it had.

An example whose prediction or target is not finite counts as wrong, so that a network
that diverges does not look good; mask the examples whose target is missing. All
functions run under `jax.jit` and `jax.vmap`.

* Classification: `accuracy`, `top_k_accuracy`, `average_precision`.
* Boxes, masks, keypoints: `mean_box_iou`, `mean_mask_iou`, `pck`.
* Regression: `within_threshold`, `bounded_error`, `correlation`.
* Any loss: `exp_loss`.

`mean_box_iou`, `bounded_error`, `correlation` and `exp_loss` can be differentiated:
their gradients are finite everywhere. The others are piecewise constant: their
gradients are zero.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax import boxes
from dtp_jax._core.checks import check_last_axis, check_number, check_whole

# What is not above this is no scale to divide by, and no spread to correlate.
_SMALLEST_SCALE = 1e-30


def accuracy(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Fraction of the examples whose largest logit is that of the label.

    Of equal logits the first counts as the largest, so constant logits only get class 0
    right. A label outside of 0 ... C - 1 is never met; mask it if it means "ignore".

    Args:
        logits: Logits or probabilities, ``[..., C]``.
        labels: Integer labels, ``[...]``.
        where: Which examples count, ``[...]``.

    Returns:
        The accuracy, float32, NaN if no example counts. An example with a NaN logit
        counts as wrong; infinite logits are fine.

    Raises:
        ValueError: If shapes do not fit or the labels are not integers.

    Example:
        The second of three is wrong.

        >>> logits = jnp.array([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
        >>> round(float(accuracy(logits, jnp.array([0, 1, 1]))), 4)
        0.6667
    """
    return top_k_accuracy(logits, labels, 1, where=where)


def top_k_accuracy(
    logits: ArrayLike, labels: ArrayLike, k: int, *, where: ArrayLike | None = None
) -> jax.Array:
    """Fraction of the examples whose label is among the k largest logits.

    There are always exactly k, those of `jax.lax.top_k`: of equal logits the first
    ones, so constant logits only get the classes below k right.

    Args:
        logits: Logits or probabilities, ``[..., C]``.
        labels: Integer labels, ``[...]``, treated as by `accuracy`.
        k: How many classes may be named, from 1 to C.
        where: Which examples count, ``[...]``.

    Returns:
        The accuracy, float32, NaN if no example counts. An example with a NaN logit
        counts as wrong.

    Raises:
        ValueError: If shapes or labels do not fit, or k is not from 1 to C.

    Example:
        The label is the second choice, the last choice, and tied for the first.

        >>> logits = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
        >>> round(float(top_k_accuracy(logits, jnp.array([1, 2, 1]), 2)), 4)
        0.6667
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            "logits [..., C] and labels [...] must have the same leading axes, got "
            f"{list(logits.shape)} and {list(labels.shape)}."
        )
    _check_integers("labels", labels)
    check_whole("k", k, low=1)
    num_classes = logits.shape[-1]
    if k > num_classes:
        raise ValueError(
            f"k must be at most the number of classes, {num_classes}, got {k}."
        )
    _, named = jax.lax.top_k(logits, k)
    correct = jnp.any(named == labels[..., None], axis=-1)
    correct &= ~jnp.any(jnp.isnan(logits), axis=-1)
    return _mean(correct, _valid(where, labels.shape))


def average_precision(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Average precision of a ranking: the mean precision at the positive examples.

    Computes ``sum_n (R_n - R_(n-1)) P_n``, with precision ``P_n`` and recall ``R_n`` of
    the examples that score at least the n-th largest distinct score. Tied examples
    enter together, so constant scores get the fraction of positives, whatever their
    order. It takes one sort, O(N log N).

    Args:
        scores: Scores, ``[N]``, larger for what is believed to be positive.
        labels: Booleans, or integers that are above 0 for positive examples, ``[N]``.
        where: Which examples count, ``[N]``.

    Returns:
        The average precision, float32, NaN if no positive example counts. An example
        with a NaN score counts as wrong: it ranks last if positive and first if
        negative.

    Raises:
        ValueError: If shapes do not fit or the labels are not integers or booleans.

    Example:
        The positives are at ranks 1 and 3, where the precision is 1 and 2/3.

        >>> labels = jnp.array([True, False, True])
        >>> round(float(average_precision(jnp.array([0.9, 0.8, 0.7]), labels)), 4)
        0.8333

    References:
        `sklearn.metrics.average_precision_score`, which this reproduces.
    """
    scores, labels = _as_floats(scores), jnp.asarray(labels)
    _check_same_shape("scores", scores, "labels", labels)
    if scores.ndim != 1:
        raise ValueError(
            f"scores must have shape [N], got {list(scores.shape)}. Ravel them to rank "
            "all together, or use jax.vmap to rank each row."
        )
    _check_integers("labels", labels)
    positive = labels > 0
    scores = jnp.where(
        jnp.isnan(scores), jnp.where(positive, -jnp.inf, jnp.inf), scores
    )
    order = jnp.argsort(scores, descending=True)
    valid = _valid(where, labels.shape)[order]
    positive, scores = positive[order] & valid, scores[order]
    true_positives, retrieved = jnp.cumsum(positive), jnp.cumsum(valid)
    # Every example sees the counts at the end of its group of ties. Examples that do
    # not count add nothing to them, so it does not matter where they were sorted to.
    size = scores.shape[0]
    ends = jnp.append(scores[1:] != scores[:-1], jnp.ones(min(size, 1), bool))
    end = jax.lax.cummin(jnp.where(ends, jnp.arange(size), size), reverse=True)
    precision = true_positives[end] / jnp.maximum(retrieved[end], 1)
    return _mean(precision, positive)


def mean_box_iou(
    predicted: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Mean intersection over union of predicted boxes and their targets.

    Computes the mean of `dtp_jax.boxes.iou`. Boxes are matched by position. It can be
    differentiated, although boxes that do not overlap have no gradient.

    Args:
        predicted: Boxes, ``[..., 4]``, as ``x1, y1, x2, y2``.
        target: Boxes, ``[..., 4]``.
        where: Which boxes count, ``[...]``.

    Returns:
        The mean, float32, NaN if no box counts. A box that is not finite has overlap 0.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        One box is met exactly, of the other one half: ``(1 + 1/2) / 2``.

        >>> target = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
        >>> float(mean_box_iou(target.at[1, 2].set(1.0), target))
        0.75
    """
    check_last_axis("predicted", predicted, 4)
    predicted, target = _as_floats(predicted), _as_floats(target)
    _check_same_shape("predicted", predicted, "target", target)
    valid = _valid(where, predicted.shape[:-1])
    finite = jnp.all(jnp.isfinite(predicted) & jnp.isfinite(target), axis=-1)
    # Boxes of zeros overlap nothing, and keep NaN out of the gradient.
    usable = (valid & finite)[..., None]
    overlap = boxes.iou(jnp.where(usable, predicted, 0), jnp.where(usable, target, 0))
    return _mean(overlap, valid)


def mean_mask_iou(
    predicted: ArrayLike,
    target: ArrayLike,
    num_classes: int,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Mean over the classes of the intersection over union of their masks.

    Computes ``n_cc / (p_c + t_c - n_cc)`` for each class c, with ``p_c`` pixels
    predicted as c, ``t_c`` labelled c and ``n_cc`` both, and averages it over the
    classes that occur in either. Pixels are counted over the whole batch.

    Args:
        predicted: Integer labels, ``[...]``. One outside of 0 ... C - 1 is wrong.
        target: Integer labels, ``[...]``. Pixels labelled outside of 0 ... C - 1, such
            as 255 or -1 for "void", do not count.
        num_classes: Number C of classes.
        where: Which pixels count, ``[...]``.

    Returns:
        The mean, float32, NaN if no pixel counts.

    Raises:
        ValueError: If shapes do not fit, the labels are not integers or C is below 1.

    Example:
        Class 0 has 1 of 2 pixels, class 1 has 2 of 3, and class 2 does not occur.

        >>> predicted, target = jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 1, 1])
        >>> round(12 * float(mean_mask_iou(predicted, target, 3)), 4)
        7.0

    References:
        `sklearn.metrics.jaccard_score` with ``average="macro"``, over the classes
        present.
    """
    predicted, target = jnp.asarray(predicted), jnp.asarray(target)
    check_whole("num_classes", num_classes, low=1)
    _check_same_shape("predicted", predicted, "target", target)
    _check_integers("predicted", predicted)
    _check_integers("target", target)
    # In a narrower type the comparison with the number of classes could overflow.
    predicted, target = predicted.astype(jnp.int32), target.astype(jnp.int32)
    valid = _valid(where, target.shape) & (target >= 0) & (target < num_classes)

    # Whole numbers: a float32 count would stop at 2^24 pixels.
    def count(labels, counted):
        labels = jnp.where(counted & (labels >= 0), labels, num_classes)
        zeros = jnp.zeros(num_classes, jnp.int32)
        return zeros.at[labels.ravel()].add(1, mode="drop")

    intersection = count(target, valid & (predicted == target))
    union = count(predicted, valid) + count(target, valid) - intersection
    return _mean(intersection / jnp.maximum(union, 1), union > 0)


def pck(
    predicted: ArrayLike,
    target: ArrayLike,
    scale: ArrayLike,
    *,
    threshold: ArrayLike = 0.5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Percentage of correct keypoints, as a fraction.

    A keypoint is correct if ``|predicted - target| <= threshold scale`` in the
    Euclidean norm. With the length of the head as scale and threshold 0.5 this is PCKh.

    Args:
        predicted: Keypoints, ``[..., 2]``.
        target: Keypoints, ``[..., 2]``.
        scale: Size of the object, broadcast to ``[...]``: ``[B, 1]`` for one per person
            and ``[B, K, 2]``. Where it is not above 0 the keypoint is wrong.
        threshold: Distance allowed, in units of `scale`, non-negative.
        where: Which keypoints count, such as the visible ones, ``[...]``.

    Returns:
        The fraction, float32, NaN if no keypoint counts.

    Raises:
        ValueError: If shapes do not fit or a Python number is out of range.

    Example:
        The distances are 5 and 0.5, and ``0.5 * 2 = 1`` is allowed.

        >>> predicted, target = jnp.array([[3.0, 4.0], [0.5, 0.0]]), jnp.zeros([2, 2])
        >>> float(pck(predicted, target, 2.0))
        0.5

    References:
        Andriluka et al., "2D Human Pose Estimation: New Benchmark", CVPR 2014.
    """
    check_number("scale", scale, low=0, open_low=True)
    check_number("threshold", threshold, low=0)
    check_last_axis("predicted", predicted, 2)
    predicted, target = _as_floats(predicted), _as_floats(target)
    _check_same_shape("predicted", predicted, "target", target)
    scale = _broadcast("scale", scale, predicted.shape[:-1])
    error = predicted - target
    # Comparisons with NaN are false. Unlike the root of a sum of squares, `hypot` does
    # not overflow.
    distance = jnp.hypot(error[..., 0], error[..., 1])
    correct = (distance <= threshold * scale) & (scale > 0) & jnp.isfinite(distance)
    return _mean(correct, _valid(where, predicted.shape[:-1]))


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
    predicted, target = _as_floats(predicted), _as_floats(target)
    _check_same_shape("predicted", predicted, "target", target)
    error = jnp.abs(predicted - target)
    correct = error <= _broadcast("threshold", threshold, error.shape)
    correct &= jnp.isfinite(error)
    return _mean(correct, _valid(where, predicted.shape))


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
    predicted, target = _as_floats(predicted), _as_floats(target)
    _check_same_shape("predicted", predicted, "target", target)
    valid = _valid(where, predicted.shape)
    scale = _broadcast("scale", scale, predicted.shape)
    usable = valid & jnp.isfinite(predicted) & jnp.isfinite(target)
    usable &= scale > _SMALLEST_SCALE
    error = jnp.where(usable, predicted, 0) - jnp.where(usable, target, 0)
    relative = jnp.abs(error) / jnp.where(usable, scale, 1)
    return _mean(jnp.where(usable, 1 - jnp.clip(relative, 0, 1), 0), valid)


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
    predicted, target = _as_floats(predicted), _as_floats(target)
    _check_same_shape("predicted", predicted, "target", target)
    valid = _valid(where, predicted.shape)
    finite = jnp.isfinite(predicted) & jnp.isfinite(target)
    usable = valid & finite
    x, x_varies = _center(predicted, usable)
    y, y_varies = _center(target, usable)
    varies = x_varies & y_varies
    # On [0, 1] a sum of squares is at least 1/2, unless nothing varies.
    squares = jnp.where(varies, jnp.sum(x**2) * jnp.sum(y**2), 1)
    r = jnp.where(varies, jnp.sum(x * y) / jnp.sqrt(squares), 0)
    kpi = jnp.where(jnp.any(valid & ~finite), 0, (jnp.clip(r, -1, 1) + 1) / 2)
    return _mean(kpi, jnp.any(valid))


def exp_loss(
    loss: ArrayLike, *, scale: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """A KPI for any loss whose smallest value is zero.

    Computes the mean of ``exp(-max(loss, 0) / scale)``. For the cross-entropy of each
    example this is the mean probability of the true class. It can be differentiated.

    Args:
        loss: A loss, ``[]``, or the losses of the examples, ``[...]``.
        scale: The loss that is worth ``1 / e``, above 0.
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
    loss = _as_floats(loss)
    valid = _valid(where, loss.shape)
    usable = valid & jnp.isfinite(loss)
    relative = jnp.maximum(jnp.where(usable, loss, 0), 0) / scale
    return _mean(jnp.where(usable, jnp.exp(-relative), 0), valid)


def _mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    count = jnp.sum(valid)
    total = jnp.sum(jnp.where(valid, values, 0))
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
    return mean.astype(jnp.float32)


def _center(values: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps usable values to [0, 1], less their mean there, and says if they vary.

    Offset and scale are constants to the gradient, which is exact all the same: the
    correlation does not depend on them. A constant becomes exactly zero, which rounding
    would prevent if its own mean were subtracted.
    """
    fixed = jax.lax.stop_gradient(values)
    low = jnp.min(fixed, where=usable, initial=jnp.inf)
    spread = jnp.max(fixed, where=usable, initial=-jnp.inf) - low
    varies = (spread > _SMALLEST_SCALE) & jnp.isfinite(spread)
    kept = usable & varies
    relative = (jnp.where(kept, values, 0) - jnp.where(kept, low, 0)) / jnp.where(
        varies, spread, 1
    )
    mean = jnp.sum(relative) / jnp.maximum(jnp.sum(usable), 1)
    return jnp.where(kept, relative - mean, 0), varies


def _valid(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
    if where is None:
        return jnp.ones(shape, bool)
    return _broadcast("where", where, shape).astype(bool)


def _broadcast(name: str, array: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts a scalar, or sizes of 1, but adds no axes: [B] is not [B, B]."""
    array = jnp.asarray(array)
    fits = len(array.shape) == len(shape) and all(
        size in (1, full) for size, full in zip(array.shape, shape, strict=True)
    )
    if array.ndim > 0 and not fits:
        raise ValueError(
            f"{name} must be a scalar or have shape {list(shape)}, with 1 for any "
            f"size, got {list(array.shape)}. Add the missing axes with size 1."
        )
    return jnp.broadcast_to(array, shape)


def _check_same_shape(name_a: str, a: jax.Array, name_b: str, b: jax.Array) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must have the same shape, got {list(a.shape)} and "
            f"{list(b.shape)}."
        )


def _check_integers(name: str, labels: jax.Array) -> None:
    if not (labels.dtype == bool or jnp.issubdtype(labels.dtype, jnp.integer)):
        raise ValueError(
            f"{name} must be integers or booleans, got {labels.dtype}. Take the argmax "
            "of scores or one-hot labels over the classes."
        )


def _as_floats(array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
