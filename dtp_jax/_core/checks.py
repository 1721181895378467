"""Validation: Python numbers are checked, tracers and arrays are trusted."""

import operator
import sys
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer


def check_number(
    name: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> None:
    """Checks that a Python number is finite and lies in an interval.

    Arrays and tracers pass unchecked: a hyperparameter may be injected, scheduled or
    vmapped, and its value is then not known while tracing. What is no number at all,
    such as text, does not pass.

    Args:
        name: What the caller calls the value, used in the message.
        value: A Python number, or an array, a callable or None, which pass.
        low: Lower end of the interval; None for no lower end.
        high: Upper end of the interval; None for no upper end.
        open_low: Whether the lower end itself is excluded.
        open_high: Whether the upper end itself is excluded.
        infinite: Whether infinity counts as a number.

    Raises:
        ValueError: If the number is not in the interval (NaN never is).
    """
    check_real(name, value)
    number = known_number(value)
    if number is None:
        return
    above = low is None or (number > low if open_low else number >= low)
    below = high is None or (number < high if open_high else number <= high)
    # Neither infinite nor an integer that no float is as large as.
    allowed = abs(number) <= sys.float_info.max or (infinite and number == number)
    if above and below and allowed:
        return
    left = f"{'[' if infinite else '('}-inf"
    right = f"inf{']' if infinite else ')'}"
    left = left if low is None else f"{'(' if open_low else '['}{low}"
    right = right if high is None else f"{high}{')' if open_high else ']'}"
    raise ValueError(f"{name} must be a number in {left}, {right}, got {number!r}.")


def check_scalar(name: str, value: Any, **interval: Any) -> None:
    """Checks a number that holds for all tasks: its shape, then as `check_number` does.

    An array of one number per task would be taken by position without a word, and the
    tasks of a dict are sorted by name.

    Args:
        name: What the caller calls the value, used in the message.
        value: A number, an array or tracer of one, or something that is no number.
        interval: Keyword arguments of `check_number`.

    Raises:
        ValueError: If it is more than one number, or not in the interval.
    """
    got = None
    if isinstance(value, (list, tuple, dict)):
        got = f"a {type(value).__name__}"
    elif getattr(value, "ndim", 0) > 0:
        got = f"one array of shape {list(jnp.shape(value))}"
    if got is not None:
        raise ValueError(f"{name} must be one number for all tasks, got {got}.")
    check_number(name, value, **interval)


def check_whole(name: str, value: Any, *, low: int = 0) -> None:
    """Checks that a value is an integer of at least `low`, as far as it is known.

    Args:
        name: What the caller calls the value, used in the message.
        value: A Python number, an array or tracer of one number, or None, which pass.
        low: The smallest value allowed.

    Raises:
        ValueError: If it is a float, a bool, more than one number or none, or smaller
            than `low`.
    """
    check_real(name, value)
    value = _as_python(value)
    if value is None or getattr(value, "shape", None) == ():
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[int, ...]) -> None:
    """Checks that a value is one of a few integers, as far as it is known.

    Args:
        name: What the caller calls the value, used in the message.
        value: An integer, or an array or tracer of one number, which passes.
        choices: What it may be.

    Raises:
        ValueError: If it is something else.
    """
    value = _as_python(value)
    if getattr(value, "shape", None) == ():
        check_real(name, value)
        return
    if not isinstance(value, (int, float)) or value not in choices:
        *first, last = map(str, choices)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}.")


def check_optimizer(name: str, value: Any) -> None:
    """Checks that a value is an optimizer of optax.

    Args:
        name: What the caller calls the value, used in the message.
        value: The value, or None, which passes.

    Raises:
        TypeError: If it is something else.
    """
    if value is None or isinstance(value, optax.GradientTransformation):
        return
    hint = ""
    if callable(value):
        hint = " It is a function: call it, with a learning rate if it takes one."
    if hasattr(value, "gradient_transformation"):
        hint = " Its method gradient_transformation() returns one."
    raise TypeError(
        f"{name} must be an optax optimizer, such as optax.adam(1e-2), got "
        f"{type(value).__name__}.{hint}"
    )


def check_static(name: str, value: Any, instead: str = "") -> None:
    """Checks that a number that decides the shape of the program is a Python number.

    Args:
        name: What the caller calls the value, used in the message.
        value: A Python or numpy number, or anything else that is not traced.
        instead: What else would do, for the message.

    Raises:
        ValueError: If it is traced, as `optax.inject_hyperparams` does to all numbers.
    """
    if isinstance(value, Tracer):
        other = f", or give {instead}" if instead else ""
        raise ValueError(
            f"{name} must be known before the program is compiled, but is traced. "
            f"optax.inject_hyperparams traces all numbers: add static_args=('{name}',)"
            f"{other}."
        )


def known_number(value: Any) -> float | None:
    """Reads a number that is known while a program is traced.

    Args:
        value: Of Python or NumPy, or anything else.

    Returns:
        The number; None for what is none, and for arrays and tracers.

    Example:
        >>> import numpy as np
        >>> known_number(np.float32(0.5)), known_number(np.ones(2)), known_number("1")
        (0.5, None, None)
    """
    value = _as_python(value)
    return value if isinstance(value, (int, float)) else None


def index_of(value: Any) -> int:
    """Reads an integer.

    Args:
        value: Of Python, NumPy or JAX, or anything else.

    Returns:
        The integer; -1 for what is none, as text, a bool and a float are.

    Example:
        >>> import numpy as np
        >>> index_of(np.int64(3)), index_of("3"), index_of(True), index_of(0.5)
        (3, -1, -1, -1)
    """
    if isinstance(value, (str, bool)):
        return -1
    try:
        return operator.index(value)
    except TypeError:
        return -1


def is_traced() -> bool:
    """Whether a program is being traced, in place of running operations one by one.

    Example:
        >>> is_traced(), jax.eval_shape(lambda: jnp.zeros(3) + is_traced()).shape
        (False, (3,))
    """
    return isinstance(jnp.zeros(()), Tracer)


def check_real(name: str, value: Any) -> None:
    """Checks that what stands for a number is one, and not complex.

    JAX reads text as the number that it spells, and drops half of what is complex.

    Args:
        name: What the caller calls the value, used in the message.
        value: A number or an array. None, a callable and a container pass.

    Raises:
        ValueError: If it is not real.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        passes = value is None or callable(value)
        real = passes or isinstance(value, (int, float, list, tuple, dict))
    else:
        kinds = (jnp.bool_, jnp.integer, jnp.floating)
        real = any(jnp.issubdtype(dtype, kind) for kind in kinds)
    if not real:
        got = type(value).__name__ if dtype is None else f"an array of {dtype}"
        raise ValueError(f"{name} must be a real number, got {got}: {value!r}.")


def check_same_shape(
    name_a: str, a: jax.typing.ArrayLike, name_b: str, b: jax.typing.ArrayLike
) -> None:
    """Checks that two arrays have the same shape.

    Args:
        name_a: What the caller calls the first, used in the message.
        a: An array, of which only the shape is read.
        name_b: What the caller calls the second.
        b: Another array.

    Raises:
        ValueError: If the shapes differ.
    """
    shape_a, shape_b = _shape_of(a), _shape_of(b)
    if shape_a != shape_b:
        raise ValueError(
            f"{name_a} and {name_b} must have the same shape, got {list(shape_a)} and "
            f"{list(shape_b)}."
        )


def check_labels(logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike) -> None:
    """Checks that there is one label for each row of logits.

    Args:
        logits: An array ``[..., C]``, of which only the shape is read.
        labels: An array ``[...]``.

    Raises:
        ValueError: If the leading axes differ, or the logits are a scalar.
    """
    shape, rows = _shape_of(logits), _shape_of(labels)
    if not shape or shape[:-1] != rows:
        raise ValueError(
            "logits [..., C] and labels [...] must have the same leading axes, got "
            f"{list(shape)} and {list(rows)}."
        )


def check_no_new_axes(**arrays: jax.typing.ArrayLike) -> None:
    """Checks that arrays broadcast without an axis that one of them does not have.

    Scalars broadcast to anything, and sizes of 1 to any size. That ``[B]`` and
    ``[B, 1]`` make ``[B, B]`` is the mistake that this finds.

    Args:
        **arrays: The arrays, of which only the shapes are read, by the names that the
            caller gives them.

    Raises:
        ValueError: If two of them, not scalars, differ in the number of axes, or in a
            size that is not 1.
    """
    shapes = {name: _shape_of(array) for name, array in arrays.items()}
    full = [shape for shape in shapes.values() if shape]
    fit = len({len(shape) for shape in full}) <= 1 and all(
        len({size for size in sizes if size != 1}) <= 1
        for sizes in zip(*full, strict=False)
    )
    if not fit:
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(
            "All but scalars must have the same shape, or 1 for a size to be repeated, "
            f"got {got}. Add missing axes with size 1, or take away those too many."
        )


def check_last_axis(name: str, array: jax.typing.ArrayLike, size: int) -> None:
    """Checks the size of the last axis of an array.

    Args:
        name: What the caller calls the array, used in the message.
        array: An array, of which only the shape is read.
        size: The size that its last axis must have.

    Raises:
        ValueError: If the last axis has another size or does not exist.
    """
    shape = _shape_of(array)
    if not shape or shape[-1] != size:
        raise ValueError(f"{name} must have shape [..., {size}], got {list(shape)}.")


def _shape_of(array: Any) -> tuple[int, ...]:
    # The shape of a list is that of the array it makes, tracers in it or not.
    listed = isinstance(array, (list, tuple))
    return jnp.shape(jnp.asarray(array) if listed else array)


def _as_python(value: Any) -> Any:
    # A number of NumPy is known, as one of Python is.
    return value.item() if isinstance(value, np.generic) else value
