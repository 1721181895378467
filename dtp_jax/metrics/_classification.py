"""Classification and ranking."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_labels, check_same_shape, check_whole
from dtp_jax._core.numerics import as_floats, class_indices, exact

from ._inputs import check_integers, mean_of, valid_of


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
    logits = jnp.asarray(logits)
    check_labels(logits, labels)
    check_integers("labels", labels)
    check_whole("k", k, low=1)
    num_classes = logits.shape[-1]
    if k > num_classes:
        raise ValueError(
            f"k must be at most the number of classes, {num_classes}, got {k}."
        )
    _, named = jax.lax.top_k(logits, k)
    label = class_indices(labels, num_classes)
    correct = jnp.any(named == label[..., None], axis=-1)
    correct &= ~jnp.any(jnp.isnan(logits), axis=-1)
    return mean_of(correct, valid_of(where, label.shape))


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
    check_same_shape("scores", scores, "labels", labels)
    scores = exact(scores)
    if scores.ndim != 1:
        raise ValueError(
            f"scores must have shape [N], got {list(scores.shape)}. Ravel them to rank "
            "all together, or use jax.vmap to rank each row."
        )
    check_integers("labels", labels)
    positive = exact(labels) > 0
    if not jnp.issubdtype(scores.dtype, jnp.integer):
        # Integers are ranked as they are: large ones would be tied in float32.
        scores = as_floats(scores)
        last = jnp.where(positive, -jnp.inf, jnp.inf)
        scores = jnp.where(jnp.isnan(scores), last, scores)
    order = jnp.argsort(scores, descending=True)
    valid = valid_of(where, positive.shape)[order]
    positive, scores = positive[order] & valid, scores[order]
    true_positives, retrieved = jnp.cumsum(positive), jnp.cumsum(valid)
    # Every example sees the counts at the end of its group of ties. Examples that do
    # not count add nothing to them, so it does not matter where they were sorted to.
    size = scores.shape[0]
    ends = jnp.append(scores[1:] != scores[:-1], jnp.ones(min(size, 1), bool))
    end = jax.lax.cummin(jnp.where(ends, jnp.arange(size), size), reverse=True)
    precision = true_positives[end] / jnp.maximum(retrieved[end], 1)
    return mean_of(precision, positive)
