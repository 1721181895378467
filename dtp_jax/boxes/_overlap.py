"""Boxes with uncertain corners: overlap, regression targets, KL loss, variance voting.

A box is ``[..., 4]``: ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``. A box that
is inverted along an axis (``x2 < x1``) has no area, like one whose corners coincide.
All functions compute, and answer, in float32, or in float64 when given it.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_last_axis, check_number, check_whole

# Lengths below this, and areas below this share of the enclosing box, count as zero.
# The steepest gradient is then the product of their inverses, 1e36, which is finite.
_NEGLIGIBLE = 1e-18

# An anchor side this short cannot be divided by, not even squared in a gradient.
_SHORTEST_ANCHOR_SIDE = 1e-12


class VotedBoxes(NamedTuple):
    """Answer of `variance_voting`: K places, filled from the front."""

    boxes: jax.Array  # [K, 4], relocated boxes, zeros where not valid
    scores: jax.Array  # [K], falling, zeros where not valid
    indices: jax.Array  # [K], int32, the input box each one was, -1 where not valid
    valid: jax.Array  # [K], bool


def iou(boxes_a: ArrayLike, boxes_b: ArrayLike) -> jax.Array:
    """Intersection over union of pairs of boxes.

    Computes ``|A n B| / |A u B|``. Where neither box has an area the ratio is 0 / 0 and
    the answer is 0, also for two identical boxes: what has no area overlaps nothing.
    Value and gradient are finite for all finite boxes whose differences are; NaN or
    infinity in a pair makes its answer NaN. A box without area has next to no gradient.

    Args:
        boxes_a: Boxes, ``[..., 4]``.
        boxes_b: Boxes, ``[..., 4]``. The leading axes broadcast: pass ``a[:, None]``
            and ``b`` for all pairs, ``[N, M]``.

    Returns:
        ``[...]``, in [0, 1].

    Raises:
        ValueError: If a last axis is not of size 4.

    Example:
        Two squares of area 4 share 1, so their union is 7.

        >>> a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 1.0, 3.0, 3.0])
        >>> round(7 * float(iou(a, b)), 5)
        1.0
    """
    intersection, union, _ = _relative_areas(boxes_a, boxes_b)
    return _ratio(intersection, union)


def giou(boxes_a: ArrayLike, boxes_b: ArrayLike) -> jax.Array:
    """Generalized intersection over union, which also grades boxes that do not overlap.

    Computes ``IoU - (|C| - |A u B|) / |C|``, where C is the smallest box around all the
    corners of A and B. The loss is ``1 - giou``, in [0, 2]. Both ratios are 0 where
    they are 0 / 0: two identical boxes without area score 0 (loss 1), two different
    points -1. Value and gradient are finite as for `iou`.

    Args:
        boxes_a: Boxes, ``[..., 4]``.
        boxes_b: Boxes, ``[..., 4]``; the leading axes broadcast.

    Returns:
        ``[...]``, in [-1, 1].

    Raises:
        ValueError: If a last axis is not of size 4.

    Example:
        Two unit squares at opposite corners of a box of area 4: ``0 - (4 - 2) / 4``.

        >>> a, b = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 2.0, 2.0])
        >>> float(giou(a, b))
        -0.5

    References:
        Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, alg. 1.
    """
    intersection, union, enclosure = _relative_areas(boxes_a, boxes_b)
    return _ratio(intersection, union) - _ratio(enclosure - union, enclosure)


def encode(boxes: ArrayLike, anchors: ArrayLike) -> jax.Array:
    """Offsets of the corners of boxes from those of anchors, in sizes of the anchor.

    Computes ``t_x1 = (x1 - x1_anchor) / w``, and likewise for ``y1`` (with ``h``),
    ``x2`` and ``y2``. An anchor side that is not above 1e-12 counts as 1, so that
    `decode` stays the inverse and nothing is divided by zero. There are no extra
    weights and widths are ``x2 - x1`` (the authors' code multiplies by 10 and adds one
    pixel).

    Args:
        boxes: Boxes, ``[..., 4]``.
        anchors: Anchors or proposals, ``[..., 4]``; the leading axes broadcast.

    Returns:
        Offsets, ``[..., 4]``.

    Raises:
        ValueError: If a last axis is not of size 4.

    Example:
        >>> anchor = jnp.array([0.0, 0.0, 10.0, 4.0])
        >>> print(encode(jnp.array([1.0, 2.0, 9.0, 4.0]), anchor))
        [ 0.1  0.5 -0.1  0. ]

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, sec. 3.1.
    """
    boxes = _as_boxes("boxes", boxes)
    anchors = _as_boxes("anchors", anchors)
    return (boxes - anchors) / _anchor_sides(anchors)


def decode(offsets: ArrayLike, anchors: ArrayLike) -> jax.Array:
    """Boxes from the offsets of their corners: the inverse of `encode`.

    Computes ``x1 = x1_anchor + t_x1 w``, and likewise for the other corners. Offsets of
    a large network error may give inverted boxes, which have no area.

    Args:
        offsets: Offsets, ``[..., 4]``, in sizes of the anchor.
        anchors: Anchors or proposals, ``[..., 4]``; the leading axes broadcast.

    Returns:
        Boxes, ``[..., 4]``.

    Raises:
        ValueError: If a last axis is not of size 4.

    Example:
        >>> anchor = jnp.array([0.0, 0.0, 10.0, 4.0])
        >>> print(decode(jnp.array([0.5, 0.5, 0.0, 1.0]), anchor))
        [ 5.  2. 10.  8.]

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, sec. 3.1.
    """
    offsets = _as_boxes("offsets", offsets)
    anchors = _as_boxes("anchors", anchors)
    return anchors + offsets * _anchor_sides(anchors)


def kl_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    log_variance: ArrayLike,
    *,
    log_variance_min: ArrayLike = -10.0,
    log_variance_max: ArrayLike = 10.0,
) -> jax.Array:
    """Regression loss of a Gaussian coordinate with predicted variance, per coordinate.

    Computes ``exp(-alpha) huber(prediction - target) + alpha / 2``, where ``alpha`` is
    the log-variance, and ``huber(e)`` is ``e^2 / 2`` for ``|e| <= 1`` and
    ``|e| - 1 / 2`` beyond. For small errors it is the KL divergence from the target (a
    point mass) to ``N(prediction, exp(alpha))``, less its constants; with ``alpha = 0``
    it is smooth-L1.

    In ``alpha`` the loss is unbounded below as the error vanishes, so ``alpha`` is
    clamped (the paper does not say). Outside the interval the loss is that of the
    nearest end plus half the distance to it: the gradient there has size 1/2 and points
    back inside, so that no log-variance can get stuck or drift away.

    Args:
        prediction: Offsets, ``[..., 4]``, as `encode` makes them.
        target: Offsets, ``[..., 4]``.
        log_variance: Log-variances of the offsets, ``[..., 4]``. The standard deviation
            is ``exp(log_variance / 2)``.
        log_variance_min: Lower end of the interval that is used as it is.
        log_variance_max: Upper end.

    Returns:
        Losses, ``[..., 4]``, may be negative. The paper sums them over the coordinates
        and averages over the boxes.

    Raises:
        ValueError: If a last axis is not of size 4, or the interval is empty.

    Example:
        An error of 2, at variance 1 and at its best variance, ``2 huber = 3``: there
        the loss is ``(1 + log 3) / 2``.

        >>> error, zeros = jnp.full(4, 2.0), jnp.zeros(4)
        >>> print(kl_loss(error, zeros, zeros))
        [1.5 1.5 1.5 1.5]
        >>> round(float(kl_loss(error, zeros, jnp.full(4, jnp.log(3)))[0]), 4)
        1.0493

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, sec. 3.2.
    """
    check_number("log_variance_min", log_variance_min)
    check_number("log_variance_max", log_variance_max)
    if isinstance(log_variance_min, (int, float)):
        check_number("log_variance_max", log_variance_max, low=log_variance_min)
    prediction = _as_boxes("prediction", prediction)
    target = _as_boxes("target", target)
    log_variance = _as_boxes("log_variance", log_variance)
    inside = jnp.clip(log_variance, log_variance_min, log_variance_max)
    outside = jnp.abs(log_variance - inside)
    error = optax.losses.huber_loss(prediction, target, delta=1.0)
    return jnp.exp(-inside) * error + 0.5 * (inside + outside)


def bounded_iou_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    beta: ArrayLike = 0.2,
    eps: ArrayLike = 1e-3,
) -> jax.Array:
    """Grades offset and size along each axis by what they alone cost in IoU.

    With d the distance of the centres along an axis and w, w_t the two lengths, the
    offset has the grade ``max(0, (w_t - 2 d) / (w_t + 2 d))`` and the size ``min(w /
    w_t, w_t / w)``, the IoU of boxes that differ in this size only. The loss is
    ``huber(1 - grade)`` of each, where ``huber(c)`` is ``c^2 / (2 beta)`` below beta
    and ``c - beta / 2`` beyond. No derivative flows into the target. Where the distance
    exceeds half of ``w_t`` the grade of the offset is 0, without slope.

    Args:
        prediction: Boxes, ``[..., 4]``. Inverted ones have length zero.
        target: Boxes, ``[..., 4]``.
        beta: Where the loss turns from square to linear, in (0, 1].
        eps: Added to the denominators, in the units of the boxes, above 0.

    Returns:
        ``[..., 4]`` in [0, 1 - beta / 2], for x, y, width and height.

    Raises:
        ValueError: If a last axis is not of size 4, or a number is out of its range.

    Example:
        Half the width at the same centre: the grade is 1/2, ``0.5 - 0.2 / 2 = 0.4``.

        >>> wide = jnp.array([0.0, 0.0, 4.0, 2.0])
        >>> half = jnp.array([1.0, 0.0, 3.0, 2.0])
        >>> [round(x, 2) for x in bounded_iou_loss(half, wide).tolist()]
        [0.0, 0.0, 0.4, 0.0]

    References:
        Tychsen-Smith and Petersson, "Improving Object Localization with Fitness NMS and
        Bounded IoU Loss", CVPR 2018; the formula is that of public implementations.
    """
    check_number("beta", beta, low=0, high=1, open_low=True)
    check_number("eps", eps, low=0, open_low=True)
    box = _as_boxes("prediction", prediction)
    goal = jax.lax.stop_gradient(_as_boxes("target", target))
    size = jnp.maximum(box[..., 2:] - box[..., :2], 0)
    goal_size = jnp.maximum(goal[..., 2:] - goal[..., :2], 0)
    # Twice the distance of the centres.
    apart = jnp.abs(box[..., 2:] + box[..., :2] - goal[..., 2:] - goal[..., :2])
    of_center = jnp.maximum((goal_size - apart) / (goal_size + apart + eps), 0)
    of_size = jnp.minimum(goal_size / (size + eps), size / (goal_size + eps))
    cost = 1 - jnp.concatenate([of_center, of_size], axis=-1)
    return jnp.where(cost < beta, cost**2 / (2 * beta), cost - beta / 2)


def log_variance_init(stddev: float = 1e-4) -> jax.nn.initializers.Initializer:
    """Initializer of the weights of a log-variance head, next to a bias of zeros.

    Draws from ``N(0, stddev^2)``, so that training starts as smooth-L1 regression.

    Args:
        stddev: Standard deviation of the weights.

    Returns:
        A function ``(key, shape, dtype) -> weights`` for ``kernel_init`` and the like.

    Raises:
        ValueError: If `stddev` is negative.

    Example:
        >>> weights = log_variance_init()(jax.random.key(0), (256, 4), jnp.float32)
        >>> bool(jnp.max(jnp.abs(weights)) < 1e-3)
        True

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, sec. 3.2.
    """
    check_number("stddev", stddev, low=0)
    return jax.nn.initializers.normal(stddev)


def variance_voting(
    boxes: ArrayLike,
    scores: ArrayLike,
    variances: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    sigma_t: ArrayLike = 0.02,
    iou_threshold: ArrayLike = 0.5,
    soft: bool = False,
    soft_sigma: ArrayLike = 0.5,
    score_threshold: ArrayLike = 0.001,
    max_outputs: int | None = None,
    voters: Literal["all", "remaining"] = "all",
) -> VotedBoxes:
    """Non-maximum suppression that moves each kept box to the vote of its neighbours.

    Repeats: take the box b with the best score among the remaining ones; relocate it,
    per coordinate, to ``sum_i q_i x_i / sum_i q_i``, where ``q_i = p_i / variance_i``
    and ``p_i = exp(-(1 - IoU(b_i, b))^2 / sigma_t)``, over b itself (``p = 1``) and the
    boxes with ``IoU(b_i, b) > 0``; then suppress. Hard suppression drops the boxes with
    ``IoU > iou_threshold``; soft multiplies scores by ``exp(-IoU^2 / soft_sigma)`` and
    drops those that fall below `score_threshold`. Overlaps are always those of the
    input boxes, and scores have no part in the vote.

    All shapes are fixed, so it compiles and vmaps over images and classes. Of equal
    scores the first goes first. Not meant to be differentiated.

    The vote is a softmax of ``log p - log variance``, so that ratios of any size are
    fine. A variance of zero counts as the smallest positive normal number (such a box
    draws its neighbours to itself); a negative, infinite or NaN one as the largest
    number: such a box moves no other and, alone, stays where it is. A box without area
    can still be selected, and no other box votes for it. Boxes or scores that are not
    finite are left out as if masked.

    Args:
        boxes: Boxes of one class in one image, ``[N, 4]``; N may be 0.
        scores: Their scores, ``[N]``, non-negative.
        variances: Variances of their coordinates, ``[N, 4]``, in the order of `boxes`
            (the authors' code pairs ``y1`` with the variance of ``x2``). Only ratios
            matter, so any unit will do, if it is the same for all boxes.
        mask: Which boxes exist, ``[N]``; all of them if None. The others neither vote
            nor are selected.
        sigma_t: How far votes reach, above 0. 0.01 is also in use; towards 0 only
            identical boxes vote.
        iou_threshold: Largest overlap that hard suppression leaves, in [0, 1].
        soft: Whether suppression is soft.
        soft_sigma: Width of the soft suppression, above 0.
        score_threshold: Boxes with a smaller score are not selected, though they vote
            if `voters` is "all". Filter the background with `mask`.
        max_outputs: Number K of places in the answer; N if None.
        voters: "all" is the paper's algorithm: every box votes every time. With
            "remaining", as in the authors' code, only those vote that were neither
            selected nor dropped before.

    Returns:
        A `VotedBoxes` in the order of selection.

    Raises:
        ValueError: If a shape or a Python number does not fit.

    Example:
        The second box overlaps the first and has half its variance in ``x2``. With
        ``IoU = 4 / 5`` and ``sigma_t = 0.04`` its vote there counts ``2 exp(-1)``, so
        the corner moves by ``2 / (2 + e)``. The third box is far away.

        >>> boxes = jnp.array([[0, 0, 4, 1], [0, 0, 5, 1], [8, 8, 9, 9]])
        >>> variances = jnp.ones([3, 4]).at[1, 2].set(0.5)
        >>> scores = jnp.array([0.9, 0.5, 0.7])
        >>> voted = variance_voting(boxes, scores, variances, sigma_t=0.04)
        >>> round(float(voted.boxes[0, 2]) - 4, 4), round(2 / (2 + 2.71828), 4)
        (0.4239, 0.4239)
        >>> print(voted.indices, voted.valid)
        [ 0  2 -1] [ True  True False]

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, algorithm 1.
        Bodla et al., "Soft-NMS", ICCV 2017, sec. 3.
    """
    check_number("sigma_t", sigma_t, low=0, open_low=True)
    check_number("iou_threshold", iou_threshold, low=0, high=1)
    check_number("soft_sigma", soft_sigma, low=0, open_low=True)
    check_number("score_threshold", score_threshold, low=0)
    check_whole("max_outputs", max_outputs, low=1)
    if voters not in ("all", "remaining"):
        raise ValueError(f'voters must be "all" or "remaining", got {voters!r}.')
    boxes = _as_boxes("boxes", boxes)
    variances = _as_boxes("variances", variances)
    scores = _as_floats(scores)
    mask = jnp.ones(scores.shape, bool) if mask is None else jnp.asarray(mask, bool)
    num_boxes = boxes.shape[0]
    shapes = boxes.shape, scores.shape, variances.shape, mask.shape
    if shapes != ((num_boxes, 4), (num_boxes,), (num_boxes, 4), (num_boxes,)):
        raise ValueError(
            "boxes, scores, variances and mask must have shapes [N, 4], [N], [N, 4] "
            f"and [N], got {', '.join(str(list(shape)) for shape in shapes)}. For "
            "several images or classes use jax.vmap."
        )
    num_outputs = num_boxes if max_outputs is None else max_outputs
    if num_boxes == 0:
        return VotedBoxes(
            boxes=jnp.zeros((num_outputs, 4), boxes.dtype),
            scores=jnp.zeros(num_outputs, scores.dtype),
            indices=jnp.full(num_outputs, -1, jnp.int32),
            valid=jnp.zeros(num_outputs, bool),
        )
    usable = mask & jnp.all(jnp.isfinite(boxes), axis=-1) & jnp.isfinite(scores)
    boxes = jnp.where(usable[:, None], boxes, 0)
    limits = jnp.finfo(variances.dtype)
    # The comparison is also false for NaN.
    variances = jnp.where(variances >= 0, variances, limits.max)
    log_variances = jnp.log(jnp.clip(variances, limits.tiny, limits.max))

    def select(state, _):
        scores, remaining = state
        best = jnp.argmax(jnp.where(remaining, scores, -jnp.inf)).astype(jnp.int32)
        valid = remaining[best]
        chosen = jnp.arange(num_boxes) == best
        # A box without area has no overlap even with itself.
        overlap = jnp.where(chosen, 1, iou(boxes[best], boxes))

        votes = (usable if voters == "all" else remaining) & (overlap > 0) | chosen
        logits = -((1 - overlap[:, None]) ** 2) / sigma_t - log_variances
        weights = jax.nn.softmax(jnp.where(votes[:, None], logits, -jnp.inf), axis=0)
        # Averaging the shifts keeps a box exact where all voters agree.
        shift = jnp.sum(weights * (boxes - boxes[best]), axis=0)

        index = jnp.where(valid, best, -1)
        chosen_score = jnp.where(valid, scores[best], 0)
        voted = VotedBoxes(
            jnp.where(valid, boxes[best] + shift, 0), chosen_score, index, valid
        )
        if soft:
            decay = jnp.exp(-(overlap**2) / soft_sigma)
            scores = (scores * decay).astype(scores.dtype)
            kept = scores >= score_threshold
        else:
            kept = overlap <= iou_threshold
        return (scores, remaining & kept & ~chosen), voted

    state = scores, usable & (scores >= score_threshold)
    return jax.lax.scan(select, state, length=num_outputs)[1]


def _relative_areas(boxes_a, boxes_b) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Areas of intersection, union and enclosing box, relative to the last one."""
    a = _as_boxes("boxes_a", boxes_a)
    b = _as_boxes("boxes_b", boxes_b)
    low_a, high_a, low_b, high_b = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    top = jnp.maximum(jnp.maximum(low_a, high_a), jnp.maximum(low_b, high_b))
    bottom = jnp.minimum(jnp.minimum(low_a, high_a), jnp.minimum(low_b, high_b))
    enclosing = top - bottom
    # Ratios of areas do not change when an axis is scaled: with a constant scale
    # neither do their gradients, and no area over- or underflows. Lengths along an axis
    # without extent become zero, and so does the gradient along it.
    side = jax.lax.stop_gradient(enclosing)
    side = jnp.where(side <= _NEGLIGIBLE, jnp.inf, side)

    def area(lengths):
        lengths = jnp.maximum(lengths, 0) / side
        return lengths[..., 0] * lengths[..., 1]

    intersection = area(jnp.minimum(high_a, high_b) - jnp.maximum(low_a, low_b))
    union = area(high_a - low_a) + area(high_b - low_b) - intersection
    return intersection, union, area(enclosing)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A quotient that is 0 where the denominator is, with a gradient to match."""
    empty = denominator <= _NEGLIGIBLE
    safe = jnp.where(empty, 1, denominator)
    # Dividing both by a constant keeps the square of a small denominator, which
    # underflows, out of the gradient.
    scale = jax.lax.stop_gradient(safe)
    return jnp.where(empty, 0, (numerator / scale) / (safe / scale))


def _anchor_sides(anchors: jax.Array) -> jax.Array:
    sides = anchors[..., 2:] - anchors[..., :2]
    sides = jnp.where(sides <= _SHORTEST_ANCHOR_SIDE, 1, sides)
    return jnp.concatenate([sides, sides], axis=-1)


def _as_boxes(name: str, array: ArrayLike) -> jax.Array:
    check_last_axis(name, array, 4)
    return _as_floats(array)


def _as_floats(array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
