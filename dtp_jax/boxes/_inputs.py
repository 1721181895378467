"""What all functions of boxes read."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_last_axis
from dtp_jax._core.numerics import as_floats, exact


def as_boxes(name: str, array: ArrayLike) -> jax.Array:
    check_last_axis(name, array, 4)
    return as_floats(array)


def as_corners(name: str, array: ArrayLike) -> jax.Array:
    """Boxes that stay integers if they are, until differences are taken."""
    check_last_axis(name, array, 4)
    corners = exact(array)
    return corners if jnp.issubdtype(corners.dtype, jnp.integer) else as_floats(corners)


def as_pairs(
    name_a: str, a: ArrayLike, name_b: str, b: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Boxes that are compared with each other: of one type, and broadcast.

    Integers next to floats, or to integers of another kind, become floats: there is no
    type that holds both exactly.
    """
    a, b = as_corners(name_a, a), as_corners(name_b, b)
    if a.dtype != b.dtype:
        a, b = as_floats(a), as_floats(b)
    a, b = jnp.broadcast_arrays(a, b)
    return a, b
