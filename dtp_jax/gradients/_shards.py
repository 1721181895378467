"""Devices that each hold a part of the batch."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import meshes

# The name of a mapped axis, or several; None where no axis is mapped by hand.
AxisName = Hashable | Sequence[Hashable]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The axes over which a batch is split by hand, as in `jax.shard_map`.

    Attributes:
        names: The names of the axes; none where nothing is to be averaged.
    """

    names: tuple[Hashable, ...] = ()

    @classmethod
    def over(cls, axis_name: AxisName | None) -> "Shards":
        """Reads what a user gives as `axis_name`."""
        if axis_name is None:
            return cls()
        if isinstance(axis_name, Sequence) and not isinstance(axis_name, str):
            return cls(tuple(axis_name))
        return cls((axis_name,))

    @property
    def number(self) -> int:
        """The number of shards."""
        return jax.lax.axis_size(self.names) if self.names else 1

    def check_mapped(self) -> None:
        """Checks that the axes are mapped where this is called.

        Raises:
            ValueError: If one is not.
        """
        try:
            _ = self.number
        except NameError as error:
            names = ", ".join(map(repr, self.names))
            raise ValueError(
                f"axis_name={names} is no mapped axis here: call this inside of "
                "jax.shard_map. Under jax.jit with sharded arrays leave axis_name out, "
                "the gradients are those of the whole batch."
            ) from error

    def varying(self, tree: Any) -> Any:
        """The same numbers, of a type that may differ from shard to shard.

        A derivative with respect to parameters that are typed as the same everywhere is
        summed over the shards by JAX, and that of a loss so typed is a part of the
        whole. Where all varies, each shard has a gradient of its own, whatever
        ``check_vma`` says, and their mean is that of the mean of the losses.

        Args:
            tree: A pytree of arrays.

        Returns:
            A pytree like it.
        """
        # The axes of `jax.vmap` have no such types.
        manual = jax.sharding.get_abstract_mesh().manual_axes if self.names else ()
        names = [name for name in self.names if name in manual]

        def cast(leaf: Any) -> Any:
            missing = tuple(name for name in names if name not in _varies_over(leaf))
            return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

        return jax.tree.map(cast, tree) if names else tree

    def mean(self, tree: Any) -> Any:
        """The mean over the shards.

        Args:
            tree: A pytree of arrays.

        Returns:
            A pytree like it, the same on all shards.
        """
        return jax.lax.pmean(tree, self.names) if self.names else tree

    def mean_of_losses(self, losses: Any) -> Any:
        """The mean over the shards of a few numbers, in float32 or better."""
        wide = jax.tree.map(
            lambda loss: loss.astype(jnp.promote_types(jnp.float32, loss.dtype)), losses
        )
        return jax.tree.map(
            lambda mean, loss: mean.astype(loss.dtype), self.mean(wide), losses
        )

    def products(
        self, pull: Callable[[jax.Array], Any], ones: jax.Array, vector: Any
    ) -> jax.Array:
        """The inner product of each row with a vector, as the mean over the shards.

        Args:
            pull: From weights to the weighted sum of the rows, on one shard.
            ones: ``[T]``.
            vector: A pytree like the rows, the same on all shards.

        Returns:
            ``[T]``.
        """
        # The sum is linear in the weights, and its transpose takes all products at
        # once. Transposing a mean over shards would not, without ``check_vma``.
        transpose: Any = jax.vjp(pull, self.varying(ones))[1]
        (products,) = transpose(self.varying(vector))
        return self.mean(products)

    def check_same(self, weights: jax.Array) -> None:
        """Checks, as far as types tell, that weights are the same on all shards.

        Args:
            weights: The weights of the tasks.

        Raises:
            ValueError: If they are typed as different ones.
        """
        if any(name in _varies_over(weights) for name in self.names):
            first, *others = self.names
            axis_name = self.names if others else first
            raise ValueError(
                "The weights differ from shard to shard: average what they are made "
                f"of, kpis=jax.lax.pmean(kpis, {axis_name!r}), and give every shard "
                "the same key."
            )


def zeros_of(kind: Any) -> jax.Array:
    """Zeros of a type as `jax.typeof` returns it, sharding and varying axes too."""
    explicit = meshes.is_explicit(kind.sharding.mesh)
    spread = kind.sharding if explicit else None
    zeros = jnp.zeros(kind.shape, kind.dtype, out_sharding=spread)
    missing = tuple(sorted(_varies_over_type(kind), key=str))
    return jax.lax.pcast(zeros, missing, to="varying") if missing else zeros


def _varies_over(leaf: Any) -> frozenset[Any]:
    return _varies_over_type(jax.typeof(leaf))


def _varies_over_type(kind: Any) -> frozenset[Any]:
    # The versions of JAX differ in where they say it.
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying
