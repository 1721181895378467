"""Boxes as offsets from anchors."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.numerics import as_floats, difference

from ._inputs import as_boxes, as_corners, as_pairs

# An anchor side this short cannot be divided by, not even squared in a gradient.
_SHORTEST_ANCHOR_SIDE = 1e-12


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
    boxes, anchors = as_pairs("boxes", boxes, "anchors", anchors)
    return difference(boxes, anchors) / _anchor_sides(anchors)


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
    offsets = as_boxes("offsets", offsets)
    anchors = as_corners("anchors", anchors)
    offsets, anchors = jnp.broadcast_arrays(offsets, anchors)
    return as_floats(anchors) + offsets * _anchor_sides(anchors)


def _anchor_sides(anchors: jax.Array) -> jax.Array:
    sides = difference(anchors[..., 2:], anchors[..., :2])
    sides = jnp.where(sides <= _SHORTEST_ANCHOR_SIDE, 1, sides)
    return jnp.concatenate([sides, sides], axis=-1)
