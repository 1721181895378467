"""Counters that are right after 2**31 steps, too.

A run of weeks may take more steps than int32 holds. A number that counts stops at the
largest; a number that only has a phase, such as that of "every k-th step", goes on from
a small one of the same phase.
"""

import jax
import jax.numpy as jnp

LARGEST = jnp.iinfo(jnp.int32).max


def count_up(count: jax.Array, counted: jax.typing.ArrayLike = True) -> jax.Array:
    """Counts up to the largest number, and stays there.

    Args:
        count: int32, of any shape.
        counted: Booleans of the same shape, or one for all: where False, the count
            stays as it is.

    Returns:
        An array like the counts.

    Example:
        >>> count_up(jnp.array([0, 7, 2**31 - 1])).tolist()
        [1, 8, 2147483647]
    """
    grows = jnp.logical_and(counted, count < LARGEST)
    return count + grows.astype(count.dtype)


def next_step(step: jax.Array, period: jax.typing.ArrayLike = 1) -> jax.Array:
    """The number of the next step, of which only ``step % period`` is asked.

    Args:
        step: int32, at least 0.
        period: At least 1.

    Returns:
        ``step + 1``; after the largest number one that leaves the same remainder, and
        is not 0, the number of the first step, for periods up to 2**30.

    Example:
        >>> next_step(jnp.array(3), 10).item()
        4
        >>> (2**31 - 1) % 10, next_step(jnp.array(2**31 - 1), 10).item()
        (7, 18)
    """
    period = jnp.asarray(period).astype(step.dtype)
    phase = (step % period + 1) % period
    again = phase + jnp.where(period <= 2**30, period, 0)
    return jnp.where(step < LARGEST, count_up(step), again)
