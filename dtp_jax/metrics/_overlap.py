"""Boxes, masks and keypoints."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax import boxes
from dtp_jax._core.checks import (
    check_last_axis,
    check_number,
    check_same_shape,
    check_whole,
)
from dtp_jax._core.numerics import as_floats, class_indices, difference, exact

from ._inputs import broadcast, check_integers, mean_of, valid_of


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
    check_same_shape("predicted", predicted, "target", target)
    predicted, target = exact(predicted), exact(target)
    valid = valid_of(where, predicted.shape[:-1])
    finite = jnp.all(jnp.isfinite(predicted) & jnp.isfinite(target), axis=-1)
    # Boxes of zeros overlap nothing, and keep NaN out of the gradient.
    usable = (valid & finite)[..., None]
    overlap = boxes.iou(jnp.where(usable, predicted, 0), jnp.where(usable, target, 0))
    return mean_of(overlap, valid)


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
    check_whole("num_classes", num_classes, low=1)
    check_same_shape("predicted", predicted, "target", target)
    check_integers("predicted", predicted)
    check_integers("target", target)
    predicted = class_indices(predicted, num_classes)
    target = class_indices(target, num_classes)
    valid = valid_of(where, target.shape) & (target >= 0)

    # Whole numbers: a float32 count would stop at 2^24 pixels.
    def count(labels, counted):
        labels = jnp.where(counted & (labels >= 0), labels, num_classes)
        zeros = jnp.zeros(num_classes, jnp.int32)
        return zeros.at[labels.ravel()].add(1, mode="drop")

    intersection = count(target, valid & (predicted == target))
    union = count(predicted, valid) + count(target, valid) - intersection
    return mean_of(intersection / jnp.maximum(union, 1), union > 0)


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
        threshold: Distance allowed, in units of `scale`, non-negative, broadcast
            alike.
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
    check_same_shape("predicted", predicted, "target", target)
    error = difference(predicted, target)
    # In the type of a user's integers or half precision the product could overflow.
    scale = as_floats(broadcast("scale", scale, error.shape[:-1]))
    threshold = broadcast("threshold", threshold, scale.shape)
    # Comparisons with NaN are false. Unlike the root of a sum of squares, `hypot` does
    # not overflow.
    distance = jnp.hypot(error[..., 0], error[..., 1])
    correct = (distance <= threshold * scale) & (scale > 0) & jnp.isfinite(distance)
    return mean_of(correct, valid_of(where, distance.shape))
