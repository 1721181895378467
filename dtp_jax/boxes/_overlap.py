"""How far boxes overlap."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.numerics import difference

from ._inputs import as_pairs

# Lengths below this, and areas below this share of the enclosing box, count as zero.
# The steepest gradient is then the product of their inverses, 1e36, which is finite.
_NEGLIGIBLE = 1e-18


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


def _relative_areas(boxes_a, boxes_b) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Areas of intersection, union and enclosing box, relative to the last one."""
    a, b = as_pairs("boxes_a", boxes_a, "boxes_b", boxes_b)
    low_a, high_a, low_b, high_b = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    top = jnp.maximum(jnp.maximum(low_a, high_a), jnp.maximum(low_b, high_b))
    bottom = jnp.minimum(jnp.minimum(low_a, high_a), jnp.minimum(low_b, high_b))
    enclosing = difference(top, bottom)
    # Ratios of areas do not change when an axis is scaled: with a constant scale
    # neither do their gradients, and no area over- or underflows. Lengths along an axis
    # without extent become zero, and so does the gradient along it.
    side = jax.lax.stop_gradient(enclosing)
    side = jnp.where(side <= _NEGLIGIBLE, jnp.inf, side)

    def area(lengths):
        lengths = jnp.maximum(lengths, 0) / side
        return lengths[..., 0] * lengths[..., 1]

    shared = difference(jnp.minimum(high_a, high_b), jnp.maximum(low_a, low_b))
    intersection = area(shared)
    areas = area(difference(high_a, low_a)) + area(difference(high_b, low_b))
    return intersection, areas - intersection, area(enclosing)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A quotient that is 0 where the denominator is, with a gradient to match."""
    empty = denominator <= _NEGLIGIBLE
    safe = jnp.where(empty, 1, denominator)
    # Dividing both by a constant keeps the square of a small denominator, which
    # underflows, out of the gradient.
    scale = jax.lax.stop_gradient(safe)
    return jnp.where(empty, 0, (numerator / scale) / (safe / scale))
