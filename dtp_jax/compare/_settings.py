"""What may differ between networks of one program."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# {"rate": number, "numbers": {name: number}}; the number of constant weights is a list.
Setting = dict[str, Any]


def stacked(settings: Sequence[Setting]) -> Setting:
    """Settings of several networks in one.

    Args:
        settings: Of one kind. A list of numbers is one vector.

    Returns:
        A setting of float32 arrays with a first axis of networks.
    """

    def is_number(node: Any) -> bool:
        return isinstance(node, (list, float))

    return jax.tree.map(
        lambda *numbers: jnp.asarray(np.array(numbers, np.float32)),
        *settings,
        is_leaf=is_number,
    )


def of_one(setting: Setting) -> Setting:
    """A setting as arrays, as a program of one network takes it.

    Args:
        setting: Of numbers.

    Returns:
        A setting of float32 arrays.
    """
    return jax.tree.map(lambda leaf: leaf[0], stacked([setting]))
