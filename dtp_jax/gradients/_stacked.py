"""The Jacobian as arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg

from ._linearized import squared_norm
from ._shards import Shards
from ._shared import check_heads, select


def check_stacked(stacked: Any, params: Any, num_tasks: int) -> None:
    """Checks that gradients are stacked along a first axis of tasks.

    Args:
        stacked: The gradients.
        params: The parameters.
        num_tasks: The number of tasks T.

    Raises:
        ValueError: If a leaf is not ``[T, *param]``, naming it.
    """
    gradients, theirs = jax.tree_util.tree_flatten_with_path(stacked)
    parameters, ours = jax.tree.flatten(params)
    if theirs != ours:
        raise ValueError(
            "The gradients are no pytree like the parameters: their structure is "
            f"{theirs}, that of the parameters {ours}. Pass what "
            "dtp_jax.task_gradients(losses_fn)(params, ...) returns, which is called "
            "twice, or a pytree like the parameters with leaves [T, *param]."
        )
    for (path, gradient), param in zip(gradients, parameters, strict=True):
        expected = (num_tasks, *jnp.shape(param))
        if jnp.shape(gradient) == expected:
            continue
        name = jax.tree_util.keystr(path)
        if jnp.shape(gradient) == jnp.shape(param):
            raise ValueError(
                f"The gradient{name} has the shape of its parameter, "
                f"{list(jnp.shape(param))}, and no axis of tasks: it is already summed "
                "over the tasks. Call dtp_jax.task_gradients(losses_fn)(params, ...) "
                "in place of jax.grad and pass its result, and keep other "
                "transformations after the balancing link, of which a chain takes one."
            )
        raise ValueError(
            f"The gradient{name} has shape {list(jnp.shape(gradient))}, expected "
            f"{list(expected)}: one gradient for each of the {num_tasks} tasks along "
            "the first axis."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """The Jacobian as arrays, each leaf ``[T, *param]``."""

    jacobian: Any
    shared: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    known: jax.Array | None = None  # the Gramian, where someone keeps it

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """The weighted sum of the rows, without those of weight zero."""
        if unshared is not None:
            check_heads(self.shared)
            return select(self.shared, self.pull(weights), self.pull(unshared))
        return jax.tree.map(
            lambda rows: linalg.weighted_sum(weights, rows), self.jacobian
        )

    def stack(self) -> Any:
        """The Jacobian as it was given."""
        return self.jacobian

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of each row, all rows as a batch."""
        return jax.vmap(function)(self._shared_leaves())

    def squared_norms(self) -> jax.Array:
        """The squared norm of each row."""
        return self.each(squared_norm)

    def products(self, ones: jax.Array, vector: Any) -> jax.Array:
        """Inner products of the rows with a vector."""
        return Shards().products(self.pull, ones, vector)

    def gramian(self) -> jax.Array:
        """Inner products of the rows, leaf by leaf."""
        if self.known is not None:
            return self.known
        grams = [linalg.gram(leaf) for leaf in self._shared_leaves()]
        return sum(grams[1:], start=grams[0])

    @property
    def treedef(self) -> Any:
        """The structure of the parameters."""
        return jax.tree.structure(self.jacobian)

    @property
    def dtype(self) -> Any:
        """That of the rows, float32 at least."""
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(self.jacobian)]
        return jnp.result_type(jnp.float32, *dtypes)

    def finite(self) -> jax.Array:
        """Which rows are finite, ``[T]``."""
        leaves = jax.tree.leaves(self.jacobian)
        finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
        return jnp.stack(finite).all(axis=0)

    def _shared_leaves(self) -> list[jax.Array]:
        leaves = zip(jax.tree.leaves(self.jacobian), self.shared, strict=True)
        return [leaf for leaf, used in leaves if used]
