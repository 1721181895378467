"""Branches and loops that leave nothing behind outside of `jax.jit`.

Called there, those of `jax.lax` are compiled for the functions they get. A function
that is made anew in every call makes a new program in every call, which stays in
memory. Run in Python, the same operations are compiled once for their shapes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from .checks import is_traced


def _runs_now(*trees: Any) -> bool:
    leaves = jax.tree.leaves(trees)
    return not is_traced() and not any(isinstance(x, jax.core.Tracer) for x in leaves)


def cond(
    pred: Any, yes: Callable[..., Any], no: Callable[..., Any], *operands: Any
) -> Any:
    """What `jax.lax.cond` returns.

    Args:
        pred: A boolean scalar.
        yes: Called if it is True.
        no: Called if not; returns arrays of the same shapes and types.
        *operands: What both get.

    Returns:
        What the one that is called returns.

    Example:
        >>> cond(jnp.array(True), lambda: 1.0, lambda: 2.0)
        1.0
    """
    if _runs_now(pred):
        return yes(*operands) if pred else no(*operands)
    return jax.lax.cond(pred, yes, no, *operands)


def scan(step: Callable[[Any, Any], Any], start: Any, xs: Any) -> Any:
    """What `jax.lax.scan` returns, of at least one step.

    Args:
        step: From what is carried and an element to what is carried and a result.
        start: What is carried at first.
        xs: A pytree of arrays with a first axis, of the elements.

    Returns:
        What is carried at last, and the results, stacked.

    Example:
        >>> total, sums = scan(lambda a, x: (a + x, a), jnp.zeros(()), jnp.arange(4.0))
        >>> total.item(), sums.tolist()
        (6.0, [0.0, 0.0, 1.0, 3.0])
    """
    if not _runs_now(start, xs):
        return jax.lax.scan(step, start, xs)
    carry, results = start, []
    for number in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, result = step(carry, jax.tree.map(lambda x, n=number: x[n], xs))
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def over(function: Callable[[Any], Any], xs: Any) -> Any:
    """What `jax.lax.map` returns: a function of each element, one after the other.

    Args:
        function: Returns a pytree of arrays.
        xs: A pytree of arrays with a first axis, of the elements, at least one.

    Returns:
        The results, stacked.

    Example:
        >>> over(lambda x: 2 * x, jnp.arange(3)).tolist()
        [0, 2, 4]
    """
    return scan(lambda carry, x: (carry, function(x)), (), xs)[1]


def repeat(times: Any, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """What `jax.lax.fori_loop` returns, from zero on.

    Args:
        times: How often.
        step: From the number of the step and what is carried to what is carried.
        start: What is carried at first.

    Returns:
        What is carried at last.

    Example:
        >>> repeat(3, lambda number, total: total + number, jnp.zeros(())).item()
        3.0
    """
    if not _runs_now(times, start):
        return jax.lax.fori_loop(0, times, step, start)
    for number in range(int(times)):
        start = step(jnp.asarray(number), start)
    return start
