"""The arrays that have a derivative, and those that have none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ._inputs import is_real


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """A pytree, its arrays of real floats apart from the others.

    Attributes:
        real: Those of floats, in the order of `jax.tree.leaves`.
        rest: The other ones, such as integers.
        treedef: The structure of the pytree.
        mask: Which of its leaves are in `real`.
    """

    real: list[jax.Array]
    rest: list[Any]
    treedef: Any = dataclasses.field(metadata={"static": True})
    mask: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, name: str, tree: Any) -> "Split":
        """Splits a pytree.

        Args:
            name: What the user calls a leaf, for the messages.
            tree: The pytree.

        Returns:
            Its two parts.

        Raises:
            ValueError: If a leaf is complex or no array, naming it.

        Example:
            >>> split = Split.of("The feature", {"a": jnp.ones(2), "b": 3})
            >>> split.rest
            [3]
            >>> split.others().merged([jnp.zeros(2)])["b"]
            3
        """
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        leaves = [leaf for _, leaf in paths]
        mask = [
            is_real(name + jax.tree_util.keystr(path), leaf) for path, leaf in paths
        ]
        pairs = list(zip(leaves, mask, strict=True))
        real = [jnp.asarray(leaf) for leaf, used in pairs if used]
        rest = [leaf for leaf, used in pairs if not used]
        return cls(real, rest, treedef, tuple(mask))

    def others(self) -> "Split":
        """What is left without the arrays of floats."""
        return dataclasses.replace(self, real=[])

    def merged(self, real: list[jax.Array]) -> Any:
        """The pytree with these in place of the arrays of floats."""
        ours, theirs = iter(real), iter(self.rest)
        leaves = [next(ours) if used else next(theirs) for used in self.mask]
        return self.treedef.unflatten(leaves)
