"""The Jacobian as a linear function."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from dtp_jax._core import control, linalg
from dtp_jax._core.checks import is_traced
from dtp_jax._core.layout import TaskLayout, layout_of

from ._shards import Shards
from ._shared import check_heads, select
from ._spread import alike, may_be_spread

# How the rows of the Jacobian are computed; see `task_gradients`.
GramianMode = Literal["auto", "unrolled", "switch", "vmap", "chunks", "map", "columns"]

# Measured on a CPU of two cores (`make bench`) and on an H200 (`make bench-device`). Up
# to the first number of tasks, gradients stay in memory until they are summed. Beyond
# it a loop over branches is faster and takes half the memory. Compiling either is
# linear in T, and past the second number longer than most runs gain.
MAX_UNROLLED = 8
_MAX_BRANCHES = 64

# What a chunk of tasks may take. 40 tasks took some 0.1 GiB where "vmap" was 2.6 times
# faster than "switch", and 5 GiB where chunks were half as fast.
_CHUNK_BYTES = 2**30


class LinearMap(Protocol):
    """What a `TaskGradients` knows of the Jacobian of the losses."""

    @property
    def treedef(self) -> Any:
        """The structure of the parameters."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the weights that lose no digit of the rows, float32 at least."""
        ...

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """The gradient of the sum of the losses times ``weights``, ``[T]``.

        Parameters that are not shared take the weights `unshared` if given.
        """
        ...

    def stack(self) -> Any:
        """The Jacobian, each leaf ``[T, *param]``."""
        ...

    def gramian(self) -> jax.Array:
        """``[T, T]`` inner products over the shared parameters."""
        ...

    def squared_norms(self) -> jax.Array:
        """``[T]``, the diagonal of the Gramian."""
        ...

    def products(self, ones: jax.Array, vector: Any) -> jax.Array:
        """``[T]`` inner products with a pytree like the parameters, over all of them.

        The weights `ones` are where the sum of the rows is transposed.
        """
        ...

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of the shared leaves of each row, its results stacked."""
        ...

    def finite(self) -> jax.Array | None:
        """``[T]``, which rows are finite; None if that would cost a backward pass."""
        ...


def weights_like(losses: Any, weights: jax.Array) -> Any:
    """Weights as a cotangent of the losses.

    Args:
        losses: A pytree of losses.
        weights: ``[T]``.

    Returns:
        A pytree of the structure, shapes and types of the losses.
    """
    # Adding the zeros gives each weight the type of its loss, dtype and all: inside
    # `jax.shard_map` a loss may vary over devices where the weight does not.
    return jax.tree.map(
        lambda weight, loss: weight.astype(loss.dtype) + jnp.zeros_like(loss),
        layout_of(losses).tree(weights),
        losses,
    )


def one_output(jvp: Callable[..., Any], losses: Any, task: int) -> tuple[Any, Any]:
    """One loss of a linearized function of several.

    Transposing one output on its own drops what only other losses need while tracing,
    which a cotangent of zeros would not.

    Args:
        jvp: The linear function.
        losses: The losses, its output at the point of linearization.
        task: The position of the loss in the order of `jax.tree.leaves`.

    Returns:
        The linear function to this loss only, and the cotangent one.
    """
    sizes = layout_of(losses).sizes
    leaf = int(np.searchsorted(np.cumsum(sizes), task, side="right"))
    index = task - sum(sizes[:leaf])

    def element(losses: Any) -> jax.Array:
        return jax.tree.leaves(losses)[leaf].reshape(-1)[index]

    return lambda *args: element(jvp(*args)), jnp.ones_like(element(losses))


def squared_norm(leaves: Sequence[jax.Array]) -> jax.Array:
    """The inner product of one gradient with itself, in float32 or better.

    Args:
        leaves: Arrays of any shape.

    Returns:
        A scalar.

    Example:
        >>> squared_norm([jnp.array([1.0, 2.0]), jnp.array(2.0)]).item()
        9.0
    """
    squares = [linalg.gram(leaf[None])[0, 0] for leaf in leaves]
    return sum(squares[1:], start=squares[0])


def in_a_loop(
    calls: Sequence[Callable[[], Any]], then: Callable[[Any], Any] = lambda x: x
) -> Any:
    """The results of functions, stacked, one function after the other.

    On CPU this is faster than stacking what they return, from some ten functions on,
    and takes half the memory.

    Args:
        calls: Functions without arguments that return pytrees of the same arrays.
        then: A function of each result, of which there is one in the program.

    Returns:
        A pytree like what `then` returns, each leaf with a new first axis.

    Example:
        >>> in_a_loop([lambda: 2.0, lambda: 3.0]).tolist()
        [2.0, 3.0]
    """

    def call(number: jax.Array) -> Any:
        return then(jax.lax.switch(number, calls))

    if not is_traced():
        # Compiled for these functions, the loop would stay in memory.
        results = [then(function()) for function in calls]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    return jax.lax.map(call, jnp.arange(len(calls)))


class _Kept:
    """Rows that were computed in the trace in which this was made."""

    def __init__(self) -> None:
        self.trace = get_opaque_trace_state()
        self.rows: list[list[jax.Array]] | None = None

    def here(self) -> bool:
        """Whether that trace is the one at work."""
        return get_opaque_trace_state() == self.trace


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["losses", "jvp", "like"],
    meta_fields=["treedef", "param_types", "shared", "mode", "shards"],
)
@dataclasses.dataclass(frozen=True)
class Linearized:
    """The Jacobian as a linear function, its rows by transposition.

    The rows of "unrolled" are kept, so that after the Gramian their sum costs no
    further backward pass, but only those of the trace in which this object was made:
    what a branch of `jax.lax.cond` computes is of no use outside of it.

    The function is that of one shard; all that is returned is the mean over shards.
    """

    losses: Any
    jvp: Any
    treedef: Any
    # Types with sharding, which a transposed product over sharded axes needs to know.
    param_types: tuple[Any, ...]
    shared: tuple[bool, ...]
    mode: GramianMode
    shards: Shards
    # The parameters, where the compiler is to spread the rows as it does these.
    like: list[jax.Array]
    # No part of the pytree: a copy that passed through `jax.jit` starts anew.
    kept: _Kept = dataclasses.field(init=False, default_factory=_Kept, compare=False)

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """The rows, weighted and summed, or one backward pass if there are none yet."""
        self.shards.check_same(weights)
        if unshared is not None:
            check_heads(self.shared)
        if self.kept.rows is not None and self.kept.here():
            return self._sum(self.kept.rows, weights, unshared)
        gradient = self._pull(weights)
        if unshared is not None:
            gradient = select(self.shared, gradient, self._pull(unshared))
        return self.shards.mean(gradient)

    def stack(self) -> Any:
        """All rows, by the mode that the Gramian uses."""
        return self.treedef.unflatten(self._over_rows(lambda leaves: leaves, True))

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of each row, by the mode that the Gramian uses."""
        return self._over_rows(function)

    def squared_norms(self) -> jax.Array:
        """The squared norm of each row."""
        return self.each(squared_norm)

    def products(self, ones: jax.Array, vector: Any) -> jax.Array:
        """A forward derivative of the losses, as a transpose of the backward pass."""
        return self.shards.products(self._pull, ones, vector)

    def gramian(self) -> jax.Array:
        """Inner products of the rows, leaf by leaf."""
        if self._mode == "columns":
            columns = control.over(self._column, self._units())
            return columns.astype(self.dtype)
        leaves = self._over_rows(lambda leaves: leaves)
        # Summing leaf by leaf lets the compiler free each one after its contribution.
        return sum(map(linalg.gram, leaves), start=jnp.zeros((), self.dtype))

    def finite(self) -> None:
        """Rows are not known without a backward pass each."""

    @property
    def dtype(self) -> Any:
        """That of the parameters, float32 at least."""
        return jnp.result_type(
            jnp.float32, *[param.dtype for param in self.param_types]
        )

    def _pull(self, weights: jax.Array) -> Any:
        """One backward pass of this shard."""
        cotangent = weights_like(self.losses, weights)
        (gradient,) = jax.linear_transpose(self.jvp, self._like())(cotangent)
        return alike(gradient, self.like)

    def _row(self, task: int) -> Any:
        """The gradient of a task on this shard."""
        one_loss, one = one_output(self.jvp, self.losses, task)
        (gradient,) = jax.linear_transpose(one_loss, self._like())(one)
        # Zeros of a loss without a gradient must have the type of the others.
        return alike(self.shards.varying(gradient), self.like)

    def _column(self, weights: jax.Array) -> jax.Array:
        def shared_row(weights: jax.Array) -> list[jax.Array]:
            return self._shared_leaves(self._pull(weights))

        # Transposing the backward pass instead of pushing forward: a function with
        # `jax.custom_vjp` has no forward mode.
        weights = self.shards.varying(weights)
        row = self.shards.varying(self.shards.mean(shared_row(weights)))
        (column,) = jax.linear_transpose(shared_row, weights)(row)
        return self.shards.mean(column)

    def _over_rows(
        self, function: Callable[[list[jax.Array]], Any], whole: bool = False
    ) -> Any:
        """A function of the shared leaves of each row, or of all, results stacked."""
        leaves_of = jax.tree.leaves if whole else self._shared_leaves
        if self._mode == "unrolled":
            rows = self._averaged(self._rows(), False) if whole else self._rows()
            results = [function(leaves_of(row)) for row in rows]
            return jax.tree.map(lambda *xs: jnp.stack(xs), *results)

        def of_mean(leaves: list[jax.Array]) -> Any:
            return function(self.shards.mean(leaves))

        if self._mode == "switch":
            tasks = range(self._layout.num_tasks)
            calls = [lambda t=t: leaves_of(self._row(t)) for t in tasks]
            return in_a_loop(calls, of_mean)
        num_tasks = self._layout.num_tasks
        size = {"vmap": num_tasks, "map": 1}.get(self._mode, self._chunk_size())
        return _in_chunks(
            lambda unit: of_mean(leaves_of(self._pull(unit))), self._units(), size
        )

    def _rows(self) -> list[list[jax.Array]]:
        """The leaves of each row, the shared ones averaged over the shards."""
        # A sum of many takes long to compile, and is no faster than a backward pass.
        few = self._layout.num_tasks <= MAX_UNROLLED
        if not (few and self.kept.here()):
            return self._computed_rows()
        if self.kept.rows is None:
            self.kept.rows = self._computed_rows()
        return self.kept.rows

    def _computed_rows(self) -> list[list[jax.Array]]:
        tasks = range(self._layout.num_tasks)
        rows = [jax.tree.leaves(self._row(task)) for task in tasks]
        return self._averaged(rows, True)

    def _sum(
        self,
        rows: list[list[jax.Array]],
        weights: jax.Array,
        unshared: jax.Array | None,
    ) -> Any:
        unshared = weights if unshared is None else unshared
        leaves = zip(self.shared, *rows, strict=True)
        sums = [
            linalg.weighted_sum_of(weights if used else unshared, of_tasks)
            for used, *of_tasks in leaves
        ]
        # One head has a gradient in few rows: its sum is averaged, not each row.
        (total,) = self._averaged([sums], False)
        return self.treedef.unflatten(total)

    def _averaged(
        self, rows: list[list[jax.Array]], shared: bool
    ) -> list[list[jax.Array]]:
        """The rows with the leaves that are shared, or not, averaged over shards."""
        chosen = [
            [
                leaf
                for leaf, used in zip(row, self.shared, strict=True)
                if used == shared
            ]
            for row in rows
        ]
        means = [iter(mean) for mean in self.shards.mean(chosen)]
        return [
            [
                next(mean) if used == shared else leaf
                for leaf, used in zip(row, self.shared, strict=True)
            ]
            for row, mean in zip(rows, means, strict=True)
        ]

    def _units(self) -> jax.Array:
        return jnp.eye(self._layout.num_tasks, dtype=self._layout.dtype)

    def _shared_leaves(self, gradient: Any) -> list[jax.Array]:
        leaves = jax.tree.leaves(gradient)
        return [leaf for leaf, used in zip(leaves, self.shared, strict=True) if used]

    def _like(self) -> Any:
        return self.treedef.unflatten(self.param_types)

    @property
    def _layout(self) -> TaskLayout:
        return layout_of(self.losses)

    @property
    def _mode(self) -> GramianMode:
        if self.mode != "auto":
            return self.mode
        num_tasks = self._layout.num_tasks
        if num_tasks <= MAX_UNROLLED:
            return "unrolled"
        on_gpu = jax.default_backend() == "gpu"
        if on_gpu and self._chunk_size() == num_tasks:
            return "vmap"
        # A loop would gather spread parameters again for each task.
        if may_be_spread(self.param_types):
            return "unrolled" if num_tasks <= _MAX_BRANCHES else "vmap"
        if num_tasks <= _MAX_BRANCHES:
            return "switch"
        return "chunks" if on_gpu else "map"

    def _chunk_size(self) -> int:
        """How many tasks at a time fit into the memory of a chunk."""
        # A backward pass makes gradients of what was kept, and of the parameters.
        held = [*jax.tree.leaves(self.jvp), *self.param_types]
        of_task = sum(leaf.size * leaf.dtype.itemsize for leaf in held)
        num_tasks = self._layout.num_tasks
        num_chunks = -(-num_tasks // max(1, _CHUNK_BYTES // max(1, of_task)))
        return -(-num_tasks // num_chunks)


def _in_chunks(
    function: Callable[[jax.Array], Any], units: jax.Array, size: int
) -> Any:
    """A function of each unit vector, so many at a time."""
    if size >= units.shape[0]:
        return jax.vmap(function)(units)
    if size == 1:
        return control.over(function, units)
    return jax.lax.map(function, units, batch_size=size)
