"""A network of dense layers with a head for each task, as plain functions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def init(key: jax.Array, sizes: Sequence[int], num_tasks: int, outputs: int) -> Any:
    """He's initialization of a trunk and of the heads.

    Args:
        key: A PRNG key.
        sizes: Of the layers of the trunk, inputs first.
        num_tasks: The number of heads.
        outputs: Of each head.

    Returns:
        Parameters.
    """
    *keys, last = jax.random.split(key, len(sizes))
    layers = zip(keys, sizes[:-1], sizes[1:], strict=True)
    width = sizes[-1]
    heads = jax.random.normal(last, (width, num_tasks, outputs)) / width**0.5
    return {
        "trunk": [
            {
                "w": jax.random.normal(key, (rows, columns)) * (2 / rows) ** 0.5,
                "b": jnp.zeros(columns),
            }
            for key, rows, columns in layers
        ],
        "heads": {"w": heads, "b": jnp.zeros((num_tasks, outputs))},
    }


def apply(params: Any, inputs: jax.Array) -> jax.Array:
    """The outputs of all heads, ``[N, T, outputs]``.

    Args:
        params: From `init`.
        inputs: ``[N, ...]``, of which all but the first axis are features.

    Returns:
        Outputs without an activation.
    """
    features = inputs.reshape(inputs.shape[0], -1)
    for layer in params["trunk"]:
        features = jax.nn.relu(features @ layer["w"] + layer["b"])
    heads = params["heads"]
    return jnp.einsum("bi,ito->bto", features, heads["w"]) + heads["b"]
