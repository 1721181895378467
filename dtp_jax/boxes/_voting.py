"""Non-maximum suppression with variance voting."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number, check_whole
from dtp_jax._core.numerics import as_floats, difference

from ._inputs import as_boxes, as_corners
from ._overlap import iou


class VotedBoxes(NamedTuple):
    """Answer of `variance_voting`: K places, filled from the front."""

    boxes: jax.Array  # [K, 4], relocated boxes, zeros where not valid
    scores: jax.Array  # [K], falling, zeros where not valid
    indices: jax.Array  # [K], int32, the input box each one was, -1 where not valid
    valid: jax.Array  # [K], bool


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
    corners = as_corners("boxes", boxes)
    boxes = as_floats(corners)
    variances = as_boxes("variances", variances)
    scores = as_floats(scores)
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
    corners = jnp.where(usable[:, None], corners, 0)
    boxes = as_floats(corners)
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
        overlap = jnp.where(chosen, 1, iou(corners[best], corners))

        votes = (usable if voters == "all" else remaining) & (overlap > 0) | chosen
        logits = -((1 - overlap[:, None]) ** 2) / sigma_t - log_variances
        weights = jax.nn.softmax(jnp.where(votes[:, None], logits, -jnp.inf), axis=0)
        # Averaging the shifts keeps a box exact where all voters agree.
        shifts = difference(corners, corners[best])
        shift = jnp.sum(weights * shifts, axis=0)

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
