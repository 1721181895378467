"""A whole solver as one kernel of a GPU."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# The largest matrix that the registers of one block hold.
MAX_SIZE = 128


def padded_size(num_tasks: int) -> int:
    """The next power of two, which blocks are made of."""
    return max(2, 1 << (num_tasks - 1).bit_length())


def num_warps_for(size: int) -> int:
    """Warps of 32 threads for a matrix of that size."""
    return {64: 4, 128: 16}.get(size, 1)


def in_one_kernel(
    function: Callable[..., Sequence[jax.Array]],
    *args: jax.Array,
    num_warps: int,
    interpret: bool = False,
) -> list[jax.Array]:
    """Runs a function of small arrays as one kernel.

    Args:
        function: From arrays to a list of arrays, in operations that a kernel has.
        *args: Arrays whose dimensions are powers of two.
        num_warps: How many warps share the work.
        interpret: Whether to run it step by step, on any device.

    Returns:
        What the function returns.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    shapes = jax.eval_shape(lambda *a: list(function(*a)), *args)
    whole = [jax.ShapeDtypeStruct(s.shape or (1,), s.dtype) for s in shapes]

    def kernel(*refs: Any) -> None:
        ins, outs = refs[: len(args)], refs[len(args) :]
        for ref, value in zip(outs, function(*[r[...] for r in ins]), strict=True):
            ref[...] = value.reshape(ref.shape)

    params = triton.CompilerParams(num_warps=num_warps, num_stages=1)
    found = pl.pallas_call(
        kernel, out_shape=whole, compiler_params=params, interpret=interpret
    )(*args)
    return [x.reshape(s.shape) for x, s in zip(found, shapes, strict=True)]
