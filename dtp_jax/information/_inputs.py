"""How all measures are computed: read, made into terms, summed, and put in a unit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number, known_number
from dtp_jax._core.numerics import exact, relative_logits, working_type

Axis = int | tuple[int, ...] | None
Terms = Callable[..., jax.Array]


def in_base(nats: jax.Array, base: ArrayLike | None) -> jax.Array:
    """Changes the unit, from nats."""
    check_number("base", base, low=0, open_low=True)
    if known_number(base) == 1:
        raise ValueError("base must not be 1, whose logarithm is zero.")
    return nats if base is None else nats / jnp.log(jnp.asarray(base, nats.dtype))


def of_probabilities(
    terms: Terms,
    *arguments: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    base: ArrayLike | None,
) -> jax.Array:
    """Sums the terms of probabilities, which are zero where they are masked.

    Masking the input, not the terms, keeps what is masked out of the derivative.
    """
    dtype = working_type(*arguments)
    arrays = [jnp.asarray(argument, dtype) for argument in arguments]
    arrays, mask = _broadcast(arrays, where)
    if mask is not None:
        arrays = [jnp.where(mask, p, 0) for p in arrays]
    return _summed(terms(*arrays), arguments, axis, base)


def of_logits(
    terms: Terms,
    *arguments: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    base: ArrayLike | None,
) -> jax.Array:
    """Sums the terms of log-softmaxes, with the constant -inf for no probability."""
    dtype = working_type(*arguments)
    arrays, mask = _broadcast([exact(argument) for argument in arguments], where)
    log_probabilities = []
    for array in arrays:
        logits = relative_logits(array, axis, mask, dtype)
        kept = logits != -jnp.inf
        kept = kept if mask is None else kept & mask
        # The softmax of nothing but -inf would be NaN.
        some = jnp.any(kept, axis, keepdims=True)
        log_p = jax.nn.log_softmax(
            jnp.where(kept, logits, jnp.where(some, -jnp.inf, 0)), axis
        )
        log_probabilities.append(jnp.where(kept, log_p, -jnp.inf))
    return _summed(terms(*log_probabilities), arguments, axis, base)


def _broadcast(
    arrays: list[jax.Array], where: ArrayLike | None
) -> tuple[list[jax.Array], jax.Array | None]:
    """Broadcasts explicitly: JAX can be told to do nothing of the kind by itself."""
    if where is None:
        return list(jnp.broadcast_arrays(*arrays)), None
    *arrays, mask = jnp.broadcast_arrays(*arrays, jnp.asarray(where, bool))
    return arrays, mask


def _summed(
    terms: jax.Array,
    arguments: tuple[ArrayLike, ...],
    axis: Axis,
    base: ArrayLike | None,
) -> jax.Array:
    answer = in_base(jnp.sum(terms, axis), base)
    return answer.astype(jnp.result_type(*arguments, float))
