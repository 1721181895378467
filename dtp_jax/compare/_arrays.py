"""Pytrees as plain arrays of bytes, and their hashes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree under numbers, as bytes that any dtype turns into.

    Args:
        tree: Of arrays, those of PRNG keys and of small floats included.

    Returns:
        Arrays that `numpy.savez` keeps.
    """
    leaves = [np.asarray(raw(leaf)) for leaf in jax.tree.leaves(tree)]
    # numpy forgets the names of dtypes that are not its own, such as bfloat16.
    return {
        f"leaf {place}": np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        for place, leaf in enumerate(leaves)
    }


def unflat(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """What `flat` took apart.

    Args:
        arrays: From `flat`.
        like: A pytree of arrays of the same shapes and dtypes.

    Returns:
        A pytree of arrays on the device.
    """

    def one(place: int, leaf: Any) -> jax.Array:
        stored = arrays[f"leaf {place}"]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            of_key = jax.random.key_data(leaf)
            data = stored.view(of_key.dtype).reshape(of_key.shape)
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
        return jnp.asarray(stored.view(leaf.dtype).reshape(leaf.shape))

    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten([one(place, leaf) for place, leaf in enumerate(leaves)])


def digest(tree: Any) -> str:
    """A short hash of the arrays of a pytree.

    Args:
        tree: Of arrays.

    Returns:
        Letters and digits.
    """
    found = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(raw(leaf))
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def raw(leaf: Any) -> Any:
    """The numbers of an array, also of one of typed PRNG keys.

    Args:
        leaf: An array.

    Returns:
        An array of numbers.
    """
    dtype: Any = getattr(leaf, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if typed else leaf
