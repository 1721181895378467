"""What parameters, losses, features and gradients must be, said where they are not."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What JAX makes an array of.
NUMBERS = (bool, int, float, complex, np.ndarray, np.generic, jax.Array)
_TWO_REALS = (
    "Inner products of complex gradients are not those of real losses. Keep the real "
    "and the imaginary part as two real arrays, and put them together where they are "
    "used, jax.lax.complex(real, imag)."
)


def check_params(params: Any) -> None:
    """Checks that parameters are arrays of real floats.

    Args:
        params: The parameters.

    Raises:
        ValueError: If a leaf is something else, naming it, or if they are an nnx
            module.
    """
    for module in jax.tree.leaves(params, is_leaf=_is_nnx_module):
        if _is_nnx_module(module):
            raise ValueError(
                f"The parameters are an nnx module, {type(module).__name__}, of which "
                "batch statistics and counters are no parameters: use "
                "dtp_jax.nnx.task_gradients with dtp_jax.nnx.Optimizer. For other "
                "functions split it, graphdef, params, rest = nnx.split(model, "
                "nnx.Param, ...), and merge it where it is used, "
                "nnx.merge(graphdef, params, rest, copy=True)."
            )
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = f"The parameter{jax.tree_util.keystr(path)}"
        if not is_real(name, leaf):
            raise ValueError(
                f"{name} has dtype {jnp.result_type(leaf)} and no derivative. Keep it "
                "out of the argument that argnums names; of an nnx module, out of what "
                "wrt selects."
            )


def split_aux(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """Splits and checks what a function of losses returned.

    Args:
        out: Its output.
        has_aux: Whether that is a pair of losses and anything else.

    Returns:
        The losses, as arrays, and the auxiliary output, None without one.

    Raises:
        ValueError: If it is no pair, there is no loss, or one is not a real float.
    """
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(
            f"With has_aux=True the function must return a pair (losses, aux), got "
            f"{type(out).__name__}."
        )
    losses, aux = out if has_aux else (out, None)
    if not jax.tree.leaves(losses):
        raise ValueError("losses_fn returned no loss. Return a pytree of float losses.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(losses)[0]:
        where = jax.tree_util.keystr(path)
        if not isinstance(leaf, NUMBERS):
            raise ValueError(
                f"losses{where} is a {type(leaf).__name__}; a loss must be a real "
                "float. Return anything else next to the losses, has_aux=True."
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"losses{where} has dtype {jnp.result_type(leaf)}; a loss must be a "
                "real float."
            )
    return jax.tree.map(jnp.asarray, losses), aux


def is_real(name: str, leaf: Any) -> bool:
    """Whether a leaf is an array of real floats.

    Args:
        name: What the user calls the leaf, for the messages.
        leaf: A leaf of a pytree.

    Returns:
        True if it is, False for other arrays, such as integers.

    Raises:
        ValueError: If it is complex, or no array.
    """
    if not isinstance(leaf, NUMBERS) and not hasattr(leaf, "dtype"):
        what = getattr(leaf, "__name__", repr(leaf))
        raise ValueError(
            f"{name} is no array but a {type(leaf).__name__}, {what:.60}. Keep it out, "
            "with equinox by params, static = eqx.partition(model, "
            "eqx.is_inexact_array), and model = eqx.combine(params, static) where it "
            "is used."
        )
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"{name} has dtype {dtype}. {_TWO_REALS}")
    return jnp.issubdtype(dtype, jnp.floating)


def real_rows(rows: Any) -> Any:
    """Gradients as arrays of real floats; integers become float32.

    Args:
        rows: A pytree of gradients.

    Returns:
        A pytree like it.

    Raises:
        ValueError: If a leaf is complex, or no array, naming it.
    """

    def real(path: Any, leaf: Any) -> jax.Array:
        name = f"The gradient{jax.tree_util.keystr(path)}"
        floats = is_real(name, leaf)
        if jnp.result_type(leaf) == jax.dtypes.float0:
            raise ValueError(
                f"{name} has dtype float0: its parameter is an integer and has no "
                "derivative. Keep it out of the parameters."
            )
        # Weighted sums of integers would be cut to integers.
        array = jnp.asarray(leaf)
        return array if floats else array.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(real, rows)


def _is_nnx_module(value: Any) -> bool:
    # Told by name, since flax is not needed here.
    return any(
        base.__name__ == "Module" and base.__module__.startswith("flax.nnx")
        for base in type(value).__mro__
    )


def check_argnums(argnums: Any) -> None:
    """Checks what says which arguments are the parameters.

    Args:
        argnums: An int, or a sequence of them.

    Raises:
        ValueError: If it is something else, such as the parameters themselves.
    """
    numbers = [argnums] if isinstance(argnums, int) else argnums
    if not isinstance(numbers, Sequence) or not all(
        isinstance(number, int) for number in numbers
    ):
        raise ValueError(
            "argnums must be the place of the parameters among the arguments of "
            f"losses_fn, an int or a tuple of ints, got {type(argnums).__name__}. The "
            "arguments themselves go to the function that is returned: "
            "task_gradients(losses_fn)(params, ...)."
        )
