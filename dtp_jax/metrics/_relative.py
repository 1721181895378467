"""KPIs on one scale, from what guessing scores to what one would be content with."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_last_axis, check_number, known_number
from dtp_jax._core.layout import missing_value
from dtp_jax._core.numerics import as_floats, exact

from ._errors import bounded_error
from ._inputs import check_integers, valid_of
from ._overlap import mean_box_iou


def relative(
    kpi: Any,
    chance: Any = 0.0,
    reference: Any = 1.0,
    cap: ArrayLike = 0.99,
) -> Any:
    """A KPI as the share of the way from guessing to a good result.

    Computes ``clip((kpi - chance) / (reference - chance), 0, cap)``. Prioritization
    compares the KPIs of tasks with each other, so all should have the same zero, what a
    trivial predictor scores, and the same one, what you would ship or what a network of
    its own reaches. A KPI below `chance` counts as zero: the task cannot do worse. One
    above `reference` counts as `cap`: it cannot do better either, and since the focal
    weight of exactly 1 is zero, `cap` is less, so that the task is not dropped.

    With ``reference < chance`` lower is better, as for an error. The KPI need not lie
    in [0, 1]. It can be differentiated: within the range the derivative is ``1 /
    (reference - chance)``, outside it is zero.

    Args:
        kpi: A number or array, or a pytree of them. None stays None, and what is not
            finite becomes NaN, both "not observed".
        chance: What guessing scores: a number, or a pytree like `kpi`.
        reference: What counts as 1: a number, or a pytree like `kpi`.
        cap: The largest answer, in (0, 1].

    Returns:
        A pytree like `kpi`, in [0, cap], float32 or better.

    Raises:
        ValueError: If `chance` and `reference` are equal numbers or not finite, `cap`
            is out of range, or a pytree does not match `kpi`.

    Example:
        Half of the way from 10 % to 90 %; an error of 3 where guessing has 4 and 2 is
        good.

        >>> round(relative(0.5, 0.1, 0.9).item(), 4), relative(3.0, 4.0, 2.0).item()
        (0.5, 0.5)
        >>> relative({"a": 0.95, "b": None}, chance={"a": 0.1, "b": 0.0})["b"] is None
        True
    """
    check_number("cap", cap, low=0, high=1, open_low=True)

    def missing(leaf: Any) -> bool:
        return leaf is None

    leaves, treedef = jax.tree.flatten(kpi, is_leaf=missing)
    lows = _like("chance", chance, treedef, len(leaves))
    highs = _like("reference", reference, treedef, len(leaves))
    found = [
        None if leaf is None else jnp.clip(unclipped(leaf, low, high), 0, cap)
        for leaf, low, high in zip(leaves, lows, highs, strict=True)
    ]
    return treedef.unflatten(found)


def unclipped(kpi: ArrayLike, chance: ArrayLike, reference: ArrayLike) -> jax.Array:
    """``(kpi - chance) / (reference - chance)``, float32 or better.

    Args:
        kpi: A number or array.
        chance: What counts as 0.
        reference: What counts as 1.

    Returns:
        An array of the broadcast shape; NaN where the KPI is not finite or the two ends
        are equal.

    Raises:
        ValueError: If the ends are equal numbers, or numbers that are not finite.
    """
    check_range("chance and reference", chance, reference)
    kpi, low, high = as_floats(kpi), as_floats(chance), as_floats(reference)
    span = high - low
    known = jnp.isfinite(kpi) & (span != 0)
    share = (jnp.where(known, kpi, 0) - low) / jnp.where(span != 0, span, 1)
    return jnp.where(known, share, missing_value())


def check_range(name: str, chance: Any, reference: Any) -> None:
    """Checks the two ends of a range that are Python numbers.

    Args:
        name: What the user calls them, for the message.
        chance: What counts as 0.
        reference: What counts as 1.

    Raises:
        ValueError: If they are equal, or one is not finite.
    """
    ends = [known_number(end) for end in (chance, reference)]
    if any(end is not None and not math.isfinite(end) for end in ends):
        raise ValueError(f"{name} must be finite, got {chance!r} and {reference!r}.")
    if ends[0] is not None and ends[0] == ends[1]:
        raise ValueError(
            f"{name} must differ, got {chance!r} twice: the first is what guessing "
            "scores, the second what a good result is."
        )


def chance_accuracy(labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """The accuracy of always answering the most frequent class.

    Args:
        labels: Integer classes, ``[...]``, of a whole data set or a large sample of it.
        where: Which examples count, ``[...]``.

    Returns:
        The accuracy, float32, NaN if no example counts.

    Raises:
        ValueError: If the labels are not integers or the mask does not fit.

    Example:
        >>> round(chance_accuracy(jnp.array([2, 0, 2])).item(), 4)
        0.6667
    """
    labels = exact(labels)
    check_integers("labels", labels)
    valid = valid_of(where, labels.shape).ravel()
    labels = labels.ravel()
    order = jnp.argsort(labels)
    ordered, kept = labels[order], jnp.cumsum(valid[order])
    # How many that count stand before each run of equal labels, and at its end.
    ends = jnp.searchsorted(ordered, ordered, side="right") - 1
    starts = jnp.searchsorted(ordered, ordered, side="left")
    before = jnp.where(starts > 0, kept[jnp.maximum(starts - 1, 0)], 0)
    most = jnp.max(kept[ends] - before, initial=0)
    count = jnp.sum(valid)
    share = most / jnp.maximum(count, 1)
    return jnp.where(count > 0, share, missing_value()).astype(jnp.float32)


def chance_bounded_error(
    target: ArrayLike, scale: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """The `bounded_error` of always answering the median.

    Args:
        target: Targets, ``[...]``, of a whole data set or a large sample of it.
        scale: As for `bounded_error`.
        where: Which elements count, ``[...]``.

    Returns:
        The KPI, float32, NaN if no element counts.

    Raises:
        ValueError: If shapes do not fit or the scale is not above 0.

    Example:
        The median of 0, 1 and 5 is 1, and errors of 1, 0 and 4 at scale 4 are worth
        3/4, 1 and nothing.

        >>> round(chance_bounded_error(jnp.array([0.0, 1.0, 5.0]), 4.0).item(), 4)
        0.5833
    """
    target = as_floats(target)
    guess = _median(target.ravel(), valid_of(where, target.shape).ravel())
    return bounded_error(
        jnp.broadcast_to(guess, target.shape), target, scale, where=where
    )


def chance_mean_box_iou(
    target: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """The `mean_box_iou` of always answering one box, the median of each corner.

    Args:
        target: Boxes, ``[..., 4]``, of a whole data set or a large sample of it.
        where: Which boxes count, ``[...]``.

    Returns:
        The KPI, float32, NaN if no box counts.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0]] * 3 + [[5.0, 5.0, 6.0, 6.0]])
        >>> chance_mean_box_iou(boxes).item()
        0.75
    """
    target = as_floats(target)
    check_last_axis("target", target, 4)
    valid = valid_of(where, target.shape[:-1]).ravel()
    guess = jax.vmap(_median, in_axes=(1, None))(target.reshape(-1, 4), valid)
    return mean_box_iou(jnp.broadcast_to(guess, target.shape), target, where=where)


def chance_correlation() -> float:
    """The `correlation` of predictions that know nothing of the targets.

    Returns:
        0.5, for ``r = 0``.

    Example:
        >>> chance_correlation()
        0.5
    """
    return 0.5


def _median(values: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.nanmedian(
        jnp.where(valid & jnp.isfinite(values), values, missing_value())
    )


def _like(name: str, value: Any, treedef: Any, size: int) -> list[Any]:
    if jax.tree_util.all_leaves([value]):
        return [value] * size
    leaves, structure = jax.tree.flatten(value)
    if structure != treedef:
        raise ValueError(
            f"{name} must be one number, or a pytree like the KPIs, which have the "
            f"structure {treedef}; got {structure}."
        )
    return leaves
