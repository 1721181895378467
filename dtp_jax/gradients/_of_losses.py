"""From a function of several losses to their gradients."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, get_args, overload

import jax

from ._inputs import check_argnums, check_params, split_aux
from ._linearized import GramianMode, Linearized
from ._shards import AxisName, Shards
from ._shared import Shared, shared_mask
from ._spread import references
from ._task_gradients import TaskGradients

P = ParamSpec("P")
A = TypeVar("A")


@overload
def task_gradients(
    losses_fn: Callable[P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: Literal[False] = False,
    *,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, TaskGradients]: ...
@overload
def task_gradients(
    losses_fn: Callable[P, tuple[Any, A]],
    argnums: int | Sequence[int] = 0,
    *,
    has_aux: Literal[True],
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, tuple[TaskGradients, A]]: ...
@overload
def task_gradients(
    losses_fn: Callable[P, tuple[Any, A]],
    argnums: int | Sequence[int],
    has_aux: Literal[True],
    *,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, tuple[TaskGradients, A]]: ...
@overload
def task_gradients(
    losses_fn: Callable[P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, Any]: ...
def task_gradients(
    losses_fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    """`jax.value_and_grad` for a function that returns several losses.

    Runs the forward pass once and returns a `TaskGradients`, which has computed no
    gradient yet. A method that reads losses or KPIs then costs the one backward pass of
    plain training, a method that reads the Gramian what it must. Call it inside the
    jitted train step: its result is a new function each time, so that a jitted function
    that gets it as an argument compiles anew.

    Args:
        losses_fn: Returns a pytree of float losses (scalars, or arrays whose elements
            are tasks of their own); with `has_aux`, a pair of it and anything else.
        argnums: Which arguments are the parameters, as for `jax.grad`.
        has_aux: Whether `losses_fn` returns a pair.
        shared: The parameters over which the Gramian is taken, those that more than one
            task uses: a predicate on the path of a parameter, ``lambda path:
            path.startswith("trunk")``, or a pytree of booleans, their structure or a
            prefix of it, ``{"trunk": True, "heads": False}``. None for all.
        gramian: How the Gramian is computed; all ways agree to rounding. "unrolled":
            one backward pass per task, each on its own in the program, so that a task
            does no work in other tasks' heads; its compile time grows with T. "switch":
            the same as branches of a loop; it keeps the Jacobian alone. "vmap": one
            backward pass with all tasks as a batch; T times the memory of activations.
            "chunks": so with as many tasks as take 1 GiB. "map": one pass after the
            other through all heads. "columns": a pass and its transpose per task; no
            Jacobian, at the precision of the model's products. "auto": "unrolled" up to
            8 tasks, "switch" up to 64, "map" above (measured on a CPU); on a mesh,
            where loops gather parameters T times, "unrolled" and "vmap" in their place;
            on a GPU "vmap" where more than 8 take less than 1 GiB, "chunks" above 64
            (on an H200, 40 tasks took 1.6 plain gradients by "vmap", 4.2 by "switch" on
            a small network, 14 by "switch", 25 in chunks on a wide).
        axis_name: The axis, or axes, of `jax.shard_map` over which the batch is split,
            None elsewhere. The parameters are the same on all devices, and the losses
            are those of a device's own part. ``.losses`` are their means over the axis
            then, and all gradients are those of these means: ``.combine`` averages one
            gradient, ``.gramian``, ``.stack`` and ``.squared_norms`` those of all
            tasks. It does not matter what ``check_vma`` is. Average the KPIs yourself,
            ``jax.lax.pmean(kpis, axis_name)``, and give all devices the same keys. For
            parts of unequal size divide each sum over a part by
            ``jax.lax.pmean(size_of_the_part, axis_name)``.

    Returns:
        A function of the arguments of `losses_fn` that returns a `TaskGradients`, or a
        pair of it and the auxiliary output. Call it inside `jax.jit`.

    Raises:
        ValueError: If `gramian` is none of the above; when called, if a loss or a
            parameter is no real float, `shared` does not fit the parameters, or
            `axis_name` is not mapped.

    Example:
        >>> import jax.numpy as jnp
        >>> def losses_fn(params, x):
        ...     return {"a": jnp.sum(params * x), "b": jnp.sum(params**2)}
        >>> gradients = task_gradients(losses_fn)(jnp.ones(3), jnp.arange(3.0))
        >>> gradients.losses["a"].item(), gradients.losses["b"].item()
        (3.0, 3.0)
        >>> gradients.combine({"a": 1.0, "b": 0.5}).tolist()
        [1.0, 2.0, 3.0]
    """
    if gramian not in get_args(GramianMode):
        raise ValueError(
            f"gramian must be one of {', '.join(get_args(GramianMode))}, "
            f"got {gramian!r}."
        )

    check_argnums(argnums)
    shards = Shards.over(axis_name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        if len(args) <= max(numbers):
            raise ValueError(
                f"argnums={argnums} names a positional argument, but there are only "
                f"{len(args)}: pass the parameters by position."
            )
        given = [args[number] for number in numbers]
        for params in given:
            check_params(params)
        shards.check_mapped()
        given = shards.varying(given)
        params = given[0] if isinstance(argnums, int) else tuple(given)

        def of_params(params: Any) -> Any:
            full = list(args)
            values = (params,) if isinstance(argnums, int) else params
            for number, value in zip(numbers, values, strict=True):
                full[number] = value
            losses, aux = split_aux(losses_fn(*full, **kwargs), has_aux)
            return shards.varying(losses), aux

        losses, jvp, aux = jax.linearize(of_params, params, has_aux=True)
        leaves, treedef = jax.tree.flatten(params)
        types = tuple(map(jax.typeof, leaves))
        mask, like = shared_mask(shared, params), references(leaves)
        linear_map = Linearized(
            losses, jvp, treedef, types, mask, gramian, shards, like
        )
        gradients = TaskGradients(shards.mean_of_losses(losses), linear_map)
        return (gradients, aux) if has_aux else gradients

    return wrapped
