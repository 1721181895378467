"""The gradient of each task on its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from dtp_jax._core import linalg, meshes
from dtp_jax._core.checks import is_traced
from dtp_jax._core.linalg import Rows

from ._linearized import Linearized
from ._stacked import Stacked
from ._task_gradients import TaskGradients


def shared_rows(gradients: TaskGradients) -> list[jax.Array]:
    """The gradients of all tasks with respect to the shared parameters.

    Costs a backward pass per task, unless the gradients are stacked already.

    Args:
        gradients: Of `task_gradients` or `TaskGradients.from_stacked`.

    Returns:
        Arrays ``[T, *param]``, one for each shared parameter, in the order of
        `jax.tree.leaves`.

    Raises:
        ValueError: If they are no `TaskGradients`, or were taken at features.

    Example:
        >>> import jax.numpy as jnp
        >>> stacked = {"head": jnp.eye(2), "trunk": jnp.ones((2, 3))}
        >>> shared = {"head": False, "trunk": True}
        >>> gradients = TaskGradients.from_stacked(stacked, shared=shared)
        >>> [rows.shape for rows in shared_rows(gradients)]
        [(2, 3)]
    """
    mask = _shared_of(gradients)
    leaves = jax.tree.leaves(gradients.stack())
    return [leaf for leaf, used in zip(leaves, mask, strict=True) if used]


def rows_at_hand(gradients: TaskGradients) -> Rows | None:
    """The gradients of all tasks where they cost no backward pass.

    Args:
        gradients: Of `task_gradients` or `TaskGradients.from_stacked`.

    Returns:
        For each shared parameter ``[T, *param]``, or T arrays where the Gramian was
        computed in the trace at work and its rows are kept. None in any other case.

    Example:
        >>> import jax.numpy as jnp
        >>> gradients = TaskGradients.from_stacked(jnp.array([[1.0, 5.0], [2.0, 3.0]]))
        >>> [rows.shape for rows in rows_at_hand(gradients)]
        [(2, 2)]
    """
    linear_map = getattr(gradients, "_map", None)
    if isinstance(linear_map, Stacked):
        return shared_rows(gradients)
    if not isinstance(linear_map, Linearized):
        return None
    kept = linear_map.kept
    if kept.rows is None or not kept.here():
        return None
    leaves = zip(linear_map.shared, *map(jax.tree.leaves, kept.rows), strict=True)
    return [of_tasks for used, *of_tasks in leaves if used]


def of_each_row(
    gradients: TaskGradients, function: Callable[[list[jax.Array]], Any]
) -> Any:
    """Applies a function to the gradient of each task, one after the other.

    Args:
        gradients: Of `task_gradients` or `TaskGradients.from_stacked`.
        function: From the gradients of one task with respect to the shared parameters,
            in the order of `jax.tree.leaves`, to arrays.

    Returns:
        What the function returns, stacked over the tasks.

    Raises:
        ValueError: As `shared_rows` does.

    Example:
        >>> import jax.numpy as jnp
        >>> gradients = TaskGradients.from_stacked(jnp.array([[1.0, 5.0], [2.0, 3.0]]))
        >>> of_each_row(gradients, lambda leaves: jnp.max(leaves[0])).tolist()
        [5.0, 3.0]
    """
    _shared_of(gradients)
    return gradients._map.each(function)


def row_norms(leaves: Sequence[jax.Array]) -> jax.Array:
    """The norm of each task's gradient, which neither overflows nor underflows.

    Args:
        leaves: Stacked gradients of each parameter, ``[T, *param]``.

    Returns:
        ``[T]`` in float32 or better; NaN for a gradient that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> norms = row_norms([jnp.array([[3e30], [1.0]]), jnp.array([4e30, 0.0])])
        >>> [f"{norm:.4g}" for norm in norms.tolist()]
        ['5e+30', '1']
    """

    def over_rows(reduce: Any, rows: jax.Array) -> jax.Array:
        rows = rows.astype(jnp.promote_types(jnp.float32, rows.dtype))
        return reduce(rows, axis=tuple(range(1, rows.ndim)), initial=0)

    largest = [over_rows(jnp.max, jnp.abs(rows)) for rows in leaves]
    size = jnp.max(jnp.stack(largest), axis=0)
    unit = linalg.positive(size)

    def squares(rows: jax.Array) -> jax.Array:
        column = unit.reshape(-1, *[1] * (rows.ndim - 1))
        return over_rows(jnp.sum, jnp.square(rows / column))

    return unit * jnp.sqrt(sum(map(squares, leaves), start=jnp.zeros_like(unit)))


def type_of(param: Any) -> jax.ShapeDtypeStruct:
    """What `zero_rows` reads of a parameter, without holding on to its values.

    Args:
        param: An array, or its `jax.ShapeDtypeStruct`.

    Returns:
        Its shape, dtype and, where it was placed on purpose, sharding.

    Example:
        >>> import jax.numpy as jnp
        >>> type_of(jnp.ones((3, 2))).shape
        (3, 2)
    """
    if isinstance(param, jax.core.Tracer):
        return jax.eval_shape(lambda x: x, param)
    sharding = None
    if getattr(param, "committed", True):
        sharding = getattr(param, "sharding", None)
    return jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=sharding)


def zero_rows(num_tasks: int, param: Any) -> jax.Array:
    """Zeros in the place of the gradients of all tasks, to be remembered.

    Args:
        num_tasks: The number of tasks T.
        param: A parameter, or its `jax.ShapeDtypeStruct`.

    Returns:
        ``[T, *param]`` in float32 or better, over the devices as the parameter is.

    Example:
        >>> import jax.numpy as jnp
        >>> zero_rows(2, jnp.ones(3)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(param))
    shape = (num_tasks, *np.shape(param))
    traced = isinstance(param, jax.core.Tracer)
    sharding = (
        jax.typeof(param).sharding if traced else getattr(param, "sharding", None)
    )
    if isinstance(sharding, jax.NamedSharding):
        spread = jax.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
        if meshes.is_explicit(sharding.mesh) and is_traced():
            # In a loop the memory must be of the type of the gradients that it follows.
            return jnp.zeros(shape, dtype, out_sharding=spread)
        if not traced:
            return jnp.zeros(shape, dtype, device=spread)
    # Zeros like the parameter lie where it does, and so does what is made of them.
    return jnp.broadcast_to(jnp.zeros_like(param, dtype)[None], shape)


def _shared_of(gradients: TaskGradients) -> tuple[bool, ...]:
    if not isinstance(gradients, TaskGradients):
        raise ValueError(
            f"Expected a TaskGradients, got {type(gradients).__name__}: call "
            "dtp_jax.task_gradients(losses_fn)(params, ...), or wrap stacked gradients "
            "in TaskGradients.from_stacked."
        )
    mask = getattr(gradients._map, "shared", None)
    if mask is None:
        raise ValueError(
            "Gradients at the level of features do not tell which parameters are "
            "shared, and features differ from batch to batch: use "
            "dtp_jax.task_gradients(..., shared=...)."
        )
    return mask
