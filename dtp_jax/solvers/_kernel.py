"""A whole solver as one kernel of a GPU, where there is one that takes it."""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import meshes

from ._algebra import LIBRARY, WRITTEN_OUT

# The largest matrix that the registers of one block hold.
_MAX_SIZE = 128

# What the instructions of the kernels ask for. All that is older takes the library.
_MIN_COMPUTE_CAPABILITY = 8.0

# By the size of the matrices, as an H200 was fastest; 1 for smaller ones.
_NUM_WARPS = {32: 4, 64: 4, 128: 8}


# A solver of small arrays, ``[T, T]``, ``[T]`` and ``[]``, on an algebra of its own. It
# takes that as `algebra=`, returns a list of arrays, and uses what a kernel has:
# operations entry by entry, sums, minima and maxima, loops and conditions, but no
# indexing and no concatenation. A number that a condition selects must have a type,
# ``jnp.full_like(x, 0.3)``, if the other one is a number, too.
Solver = Callable[..., list[jax.Array]]


def by_platform(
    solver: Solver, args: Sequence[jax.Array], fills: Sequence[float | None]
) -> list[jax.Array]:
    """Runs a solver as one kernel on a GPU, and elsewhere as the program it is.

    On a GPU a loop asks the host after every turn whether to go on, and each small
    factorization is a call of a library; one kernel does both on its own. It takes
    float32 and up to 128 tasks, needs a CUDA device that is visible where the program
    is traced, and a version of JAX that still makes such kernels. ``DTP_JAX_KERNELS=0``
    in the environment does without them.

    Args:
        solver: The solver.
        args: Its arrays, ``[T, T]``, ``[T]`` or ``[]``.
        fills: What each is filled up with for tasks that make their number a power of
            two, and must change nothing; None for the rows of the identity.

    Returns:
        What the solver returns.
    """
    return split_by_platform(
        solver, lambda *args: solver(*args, algebra=LIBRARY), args, fills
    )


def split_by_platform(
    solver: Solver,
    elsewhere: Callable[..., list[jax.Array]],
    args: Sequence[jax.Array],
    fills: Sequence[float | None],
    batched: Sequence[bool] | None = None,
    finish: Callable[[list[jax.Array]], list[jax.Array]] | None = None,
) -> list[jax.Array]:
    """`by_platform` with another function where no kernel runs.

    Args:
        solver: For the kernel.
        elsewhere: For all other platforms, from the same arrays to the same answer.
        args: As for `by_platform`.
        fills: As for `by_platform`.
        batched: Which of the arrays have a first axis more, of problems; None for none.
        finish: From what the kernel returns to the answer, by what is no work for a
            kernel.

    Returns:
        What either returns.
    """
    size = max(arg.shape[-1] for arg in args if arg.ndim)
    wide = size > _MAX_SIZE or any(arg.dtype == jnp.float64 for arg in args)
    # A kernel does not know how to share its work where axes are part of types.
    mesh = any(meshes.is_explicit(jax.typeof(arg).sharding.mesh) for arg in args)
    if wide or mesh or not available():
        return elsewhere(*args)
    kernel = functools.partial(_padded, solver, fills)
    if batched is not None:
        kernel = jax.vmap(kernel, in_axes=[0 if many else None for many in batched])
    if finish is not None:
        kernel = functools.partial(_and_then, kernel, finish)
    if _interpreted():
        return kernel(*args)
    return jax.lax.platform_dependent(*args, cuda=kernel, default=elsewhere)


def _and_then(
    first: Callable[..., Any], second: Callable[[Any], Any], *args: jax.Array
) -> Any:
    return second(first(*args))


def available() -> bool:
    """Whether kernels run on all GPUs of this process."""
    # JAX compiles a kernel for the kind of the default device, which may be no GPU.
    config: Any = jax.config
    return _available(config.jax_default_device)


@functools.cache
def _available(default_device: Any) -> bool:
    if _interpreted():
        return True
    if os.environ.get("DTP_JAX_KERNELS", "1") == "0" or _pallas() is None:
        return False
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return False
    return _lowers() and all(
        float(getattr(device, "compute_capability", 0)) >= _MIN_COMPUTE_CAPABILITY
        for device in devices
    )


def _lowers() -> bool:
    """Whether JAX makes a program of a kernel, tried on the smallest one.

    A version of JAX may refuse what its modules still offer, a kind of GPU be unknown
    to it, and the warning that Pallas/Triton is deprecated be an error to a user: each
    would stop a training step.
    """

    def kernel(x: jax.Array) -> list[jax.Array]:
        return in_one_kernel(lambda x, algebra: [x + 1], x, num_warps=1)

    try:
        traced = jax.jit(kernel).trace(jax.ShapeDtypeStruct((2,), jnp.float32))
        traced.lower(lowering_platforms=("cuda",))
    except Exception:
        return False
    return True


def _interpreted() -> bool:
    """Whether to run kernels step by step on any device, which tests do."""
    return os.environ.get("DTP_JAX_KERNELS") == "interpret"


@functools.cache
def _pallas() -> tuple[Any, Any] | None:
    """What makes kernels, None if this version of JAX has it elsewhere or no more."""
    try:
        # Some versions announce that a module is about to move, as an error where a
        # user makes errors of warnings. What is not there is not used.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from jax.experimental.pallas import pallas_call
            from jax.experimental.pallas.triton import CompilerParams
    except ImportError:
        return None
    return pallas_call, CompilerParams


def _padded(
    solver: Solver, fills: Sequence[float | None], *args: jax.Array
) -> list[jax.Array]:
    """The answer from arrays whose sizes are powers of two, cut to size."""
    num_tasks = max(arg.shape[-1] for arg in args if arg.ndim)
    size = max(2, 1 << (num_tasks - 1).bit_length())
    wanted = jax.eval_shape(functools.partial(solver, algebra=WRITTEN_OUT), *args)
    padded = [_pad(x, fill, size) for x, fill in zip(args, fills, strict=True)]
    found = in_one_kernel(solver, *padded, num_warps=_NUM_WARPS.get(size, 1))
    return [
        x[tuple(slice(n) for n in like.shape)].astype(like.dtype)
        for x, like in zip(found, wanted, strict=True)
    ]


def _pad(x: jax.Array, fill: float | None, size: int) -> jax.Array:
    more = size - x.shape[-1] if x.ndim else 0
    if not more:
        return x
    padded = jnp.pad(x, [(0, more)] * x.ndim, constant_values=fill or 0)
    if fill is None:
        padded += jnp.diag(jnp.pad(jnp.zeros_like(x[0]), (0, more), constant_values=1))
    return padded


def in_one_kernel(solver: Solver, *args: jax.Array, num_warps: int) -> list[jax.Array]:
    """Runs a solver as one kernel.

    Args:
        solver: The solver.
        *args: Arrays whose dimensions are powers of two, or scalars.
        num_warps: How many warps share the work.

    Returns:
        What the solver returns.
    """
    makers = _pallas()
    assert makers is not None
    pallas_call, compiler_params = makers

    def from_refs(*values: jax.Array) -> list[jax.Array]:
        values = tuple(
            x if arg.dtype != bool else x != 0
            for x, arg in zip(values, args, strict=True)
        )
        found = solver(*values, algebra=WRITTEN_OUT)
        return [x.astype(jnp.int32) if x.dtype == bool else x for x in found]

    # A kernel passes no booleans, and no scalars.
    inputs = [x.astype(jnp.int32) if x.dtype == bool else x for x in args]
    shapes = jax.eval_shape(from_refs, *inputs)

    def kernel(*refs: Any) -> None:
        ins, outs = refs[: len(args)], refs[len(args) :]
        values = [
            ref[...] if arg.ndim else jnp.sum(ref[...])
            for ref, arg in zip(ins, args, strict=True)
        ]
        for ref, value in zip(outs, from_refs(*values), strict=True):
            ref[...] = value.reshape(ref.shape)

    found = pallas_call(
        kernel,
        out_shape=jax.eval_shape(
            lambda *xs: [jnp.atleast_1d(x) for x in from_refs(*xs)], *inputs
        ),
        compiler_params=compiler_params(num_warps=num_warps, num_stages=1),
        interpret=_interpreted(),
    )(*[jnp.atleast_1d(x) for x in inputs])
    return [x.reshape(like.shape) for x, like in zip(found, shapes, strict=True)]
