"""Types, differences and elementary functions that keep the digits they are given."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

_Arguments = ParamSpec("_Arguments")


def working_type(*arguments: Any) -> Any:
    """The type to compute in: that of the arguments together, float32 at least.

    Half precision is enough to store a number, not to sum many of them or to take one
    from one.
    """
    return jnp.promote_types(jnp.result_type(*arguments, float), jnp.float32)


def in_working_type(
    function: Callable[_Arguments, jax.Array],
) -> Callable[_Arguments, jax.Array]:
    """Lets a function compute in the working type and answer in that of its arguments.

    Args:
        function: Computes in the `working_type` of its arguments, all of them arrays.

    Returns:
        The same function, whose answer has the floating type of the arguments.
    """

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> jax.Array:
        dtype = jnp.result_type(*args, *kwargs.values(), float)
        return function(*args, **kwargs).astype(dtype)

    return wrapped


def exact(array: jax.typing.ArrayLike) -> jax.Array:
    """Turns what a user gives into an array that has lost nothing, if there is one.

    Integers stay integers, of 32 bits at least, so that sums and comparisons do not
    overflow. What JAX would cut off, such as 64 bits while it is set to 32, becomes
    floating.
    """
    leaves = jax.tree.leaves(array)
    if all(isinstance(leaf, (int, float, np.ndarray, np.generic)) for leaf in leaves):
        given = np.asarray(array)
        held = given.astype(jnp.result_type(given))
        integers = np.issubdtype(held.dtype, np.integer)
        cut = integers and not np.array_equal(held, given)
        array = given.astype(np.float32) if cut else held
    held = jnp.asarray(array)
    if jnp.issubdtype(held.dtype, jnp.floating):
        return held
    return held.astype(jnp.int32) if held.dtype.itemsize < 4 else held


def exact_type(array: jax.typing.ArrayLike) -> Any:
    """The type that a user gave, before JAX cuts anything off."""
    dtype = getattr(array, "dtype", None)
    return jnp.asarray(array).dtype if dtype is None else dtype


def is_finite(tree: Any) -> jax.Array:
    """Whether all numbers of a pytree, which has at least one leaf, are finite."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()


def as_floats(array: jax.typing.ArrayLike) -> jax.Array:
    """Converts to float32, or keeps a wider type."""
    held = exact(array)
    return held.astype(jnp.promote_types(held.dtype, jnp.float32))


def difference(
    a: jax.typing.ArrayLike, b: jax.typing.ArrayLike, dtype: Any = None
) -> jax.Array:
    """``a - b`` in a floating type, rounded after the subtraction, not before it.

    float32 holds integers up to 2^24 only. Beyond, two integers that are converted
    first may become equal, or lose all the digits in which they differ.

    Args:
        a: Numbers of any type.
        b: Numbers of any type; broadcasts against `a`.
        dtype: Of the answer; None for float32, or float64 if an argument has it.

    Returns:
        The difference. That of floating numbers is the ordinary one.
    """
    a, b = exact(a), exact(b)
    if dtype is None:
        dtype = functools.reduce(jnp.promote_types, (a.dtype, b.dtype), jnp.float32)
    a, b = jnp.broadcast_arrays(a, b)
    num_bits = 8 * max(a.dtype.itemsize, b.dtype.itemsize)
    parts = itertools.zip_longest(
        _parts(a, dtype, num_bits),
        _parts(b, dtype, num_bits),
        fillvalue=jnp.zeros((), dtype),
    )
    # The leading parts first: where they are close, their difference is exact.
    return functools.reduce(jnp.add, [of_a - of_b for of_a, of_b in parts])


def relative_logits(
    logits: jax.typing.ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.typing.ArrayLike | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Logits in a floating type; integers less the largest, which a softmax ignores.

    Args:
        logits: Numbers of any type.
        axis: The axis or axes of the distribution; None for all.
        where: Mask of the entries that count; None for all.
        dtype: Of the answer; None for float32, or float64 if the logits have it.

    Returns:
        Floating logits with the same softmax.
    """
    logits = exact(logits)
    if jnp.issubdtype(logits.dtype, jnp.floating):
        return as_floats(logits) if dtype is None else logits.astype(dtype)
    lowest = jnp.iinfo(logits.dtype).min
    largest = jnp.max(logits, axis, keepdims=True, initial=lowest, where=where)
    return difference(logits, largest, dtype)


def class_indices(labels: jax.typing.ArrayLike, num_classes: int) -> jax.Array:
    """Integer labels as int32, with -1 for those outside of ``0 ... num_classes - 1``.

    They are compared with the number of classes in a type that holds it, and are
    brought to 32 bits only when nothing can be cut off any more.

    Args:
        labels: Integers or booleans of any width.
        num_classes: The number of classes.

    Returns:
        Indices of the shape of the labels.
    """
    labels = exact(labels)
    inside = (labels >= 0) & (labels < num_classes)
    return jnp.where(inside, jnp.where(inside, labels, 0).astype(jnp.int32), -1)


@jax.custom_jvp
def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Division whose derivative survives extreme denominators."""
    return numerator / denominator


@divide.defjvp
def _divide_jvp(primals, tangents):
    # The square of the denominator, in the rule of JAX, is zero or infinite in float32
    # for denominators that are themselves harmless. The quotient may be infinite; it is
    # clipped so that a slope of zero in it stays zero.
    numerator, denominator = primals
    quotient = divide(numerator, denominator)
    largest = jnp.finfo(quotient.dtype).max
    slope = jnp.clip(quotient, -largest, largest)
    return quotient, (tangents[0] - slope * tangents[1]) / denominator


@jax.custom_jvp
def expm1(x: jax.Array) -> jax.Array:
    """``exp(x) - 1``, with the derivative ``exp(x)``.

    JAX derives it as ``expm1(x) + 1``, which has no correct digit below ``x = -17`` in
    float32.
    """
    return jnp.expm1(x)


@expm1.defjvp
def _expm1_jvp(primals, tangents):
    return expm1(primals[0]), jnp.exp(primals[0]) * tangents[0]


@jax.custom_jvp
def expm1_minus_identity(x: jax.Array) -> jax.Array:
    """``exp(x) - 1 - x``, at least zero and accurate near zero."""
    near = jnp.abs(x) < 0.5
    series = jnp.ones_like(x)
    for k in range(14, 2, -1):
        series = 1 + jnp.where(near, x, 0) / k * series
    # Where exp(x) overflows, so does the result, also if x itself is infinite.
    far = jnp.expm1(x) - jnp.minimum(x, 1000)
    return jnp.where(near, 0.5 * x * x * series, far)


@expm1_minus_identity.defjvp
def _expm1_minus_identity_jvp(primals, tangents):
    slope = expm1(primals[0])
    # An infinite slope would turn every zero it is multiplied by into NaN. Where the
    # value is inf, the slope only has to be large.
    large = float(jnp.finfo(slope.dtype).max) ** 0.5
    slope = jnp.where(jnp.isinf(slope), large, slope)
    return expm1_minus_identity(primals[0]), slope * tangents[0]


def exp_minus(z: jax.Array, low: float = -10.0) -> jax.Array:
    """Returns exp(-z), with the slope zero below `low` and where it underflows.

    At z = -10, exp(-exp(-z)) is zero in all precisions, and at z = 1000, exp(-z) is.
    """
    return jnp.exp(-jnp.where(z < low, low, jnp.where(z > 1000, 1000, z)))


def softmax_over(active: jax.Array, logits: jax.Array) -> jax.Array:
    """The softmax over some of the tasks.

    Args:
        active: ``[T]`` booleans, which ones.
        logits: ``[T]``.

    Returns:
        ``[T]``, zero for the other tasks, and for all if none is active.

    Example:
        >>> softmax_over(jnp.array([True, False, True]), jnp.zeros(3)).tolist()
        [0.5, 0.0, 0.5]
    """
    # Over nothing it would be NaN, on its way to zero, and `jax_debug_nans` raises.
    some = active | ~jnp.any(active)
    return jnp.where(active, jax.nn.softmax(logits, where=some), 0)


def _parts(array: jax.Array, dtype: Any, num_bits: int) -> list[jax.Array]:
    """Floating numbers, the largest first, whose sum is exactly the array."""
    num_digits = jnp.finfo(dtype).nmant + 1
    if jnp.issubdtype(array.dtype, jnp.floating):
        return [array.astype(dtype)]
    # The magnitude of the smallest signed integer needs all bits of an unsigned one.
    unsigned = jnp.uint64 if num_bits == 64 else jnp.uint32
    rest = array.astype(unsigned)
    rest = jnp.where(array < 0, ~rest + 1, rest)
    sign = jnp.where(array < 0, -1, 1).astype(dtype)
    parts = []
    while num_bits > 0:
        num_bits = max(num_bits - num_digits, 0)
        head = (rest >> num_bits) << num_bits
        head = jnp.where(rest <= 2**num_digits, rest, head)
        parts.append(sign * head.astype(dtype))
        rest = rest - head
    return parts
