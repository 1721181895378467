"""What all metrics read, and their mean."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.layout import missing_value
from dtp_jax._core.numerics import exact_type

# What is not above this is no scale to divide by, and no spread to correlate.
SMALLEST_SCALE = 1e-30


def mean_of(values: jax.Array, valid: jax.Array) -> jax.Array:
    count = jnp.sum(valid)
    total = jnp.sum(jnp.where(valid, values, 0))
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1), missing_value())
    return mean.astype(jnp.float32)


def valid_of(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
    if where is None:
        return jnp.ones(shape, bool)
    return broadcast("where", where, shape).astype(bool)


def broadcast(name: str, array: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
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


def check_integers(name: str, labels: ArrayLike) -> None:
    dtype = exact_type(labels)
    if not jnp.issubdtype(dtype, jnp.integer) and dtype != jnp.bool_:
        raise ValueError(
            f"{name} must be integers or booleans, got {dtype}. Take the argmax of "
            "scores or one-hot labels over the classes."
        )
