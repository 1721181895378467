"""Task gradients and optimizers for flax nnx modules."""

from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, overload

import jax
import optax

from dtp_jax import gradients
from dtp_jax.gradients import AxisName, GramianMode, Shared, TaskGradients

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dtp_jax.nnx needs flax: pip install "dtp-jax[flax]"', name=error.name
    ) from error

__all__ = [
    "Optimizer",
    "task_gradients",
]

M = TypeVar("M")
P = ParamSpec("P")
A = TypeVar("A")


@overload
def task_gradients(
    losses_fn: Callable[P, Any],
    has_aux: Literal[False] = False,
    *,
    wrt: Any = nnx.Param,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, TaskGradients]: ...
@overload
def task_gradients(
    losses_fn: Callable[P, tuple[Any, A]],
    has_aux: Literal[True],
    *,
    wrt: Any = nnx.Param,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, tuple[TaskGradients, A]]: ...
@overload
def task_gradients(
    losses_fn: Callable[P, Any],
    has_aux: bool = False,
    *,
    wrt: Any = nnx.Param,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[P, Any]: ...


def task_gradients(
    losses_fn: Callable[..., Any],
    has_aux: bool = False,
    *,
    wrt: Any = nnx.Param,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
    axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    """`dtp_jax.task_gradients` for a function of an nnx module.

    The forward pass runs once: batch statistics, dropout counters and other variables
    outside of `wrt` advance once per call, in the module itself, as under `nnx.grad`.
    Only the state of the module advances, not that of further arguments: keep
    `nnx.Rngs` in the module.

    Args:
        losses_fn: From a module (and other arguments) to a pytree of float losses; with
            `has_aux`, to a pair of it and anything else, such as the KPIs.
        has_aux: Whether `losses_fn` returns a pair.
        wrt: Which variables are parameters, an nnx filter; that of the `Optimizer`.
        shared: The parameters over which the Gramian is taken; see
            `dtp_jax.task_gradients`. Paths are those of the attributes, "trunk/kernel".
        gramian: How the Gramian is computed; see `dtp_jax.task_gradients`.
        axis_name: The axes of `jax.shard_map` over which the batch is split; see
            `dtp_jax.task_gradients`. Variables outside of `wrt` are not averaged: give
            `nnx.BatchNorm` the same ``axis_name``.

    Returns:
        A function of the arguments of `losses_fn` that returns a `TaskGradients`, or a
        pair of it and the auxiliary output. Call it inside `nnx.jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        >>> def losses_fn(model, x):
        ...     left, right = jnp.split(model(x), 2, axis=-1)
        ...     return {"left": jnp.sum(left), "right": jnp.sum(right)}
        >>> gradients = task_gradients(losses_fn)(model, jnp.array([[2.0, 3.0]]))
        >>> combined = gradients.combine({"left": 1.0, "right": 0.0})
        >>> combined["kernel"].tolist()
        [[2.0, 0.0], [3.0, 0.0]]
    """

    def wrapped(model: Any, *args: Any, **kwargs: Any) -> Any:
        graphdef, params, rest = nnx.split(model, wrt, ...)

        def of_params(params: Any, *args: Any, **kwargs: Any) -> Any:
            # The copy keeps tracers of the derivative out of the caller's module.
            copied = nnx.merge(graphdef, params, rest, copy=True)
            out = losses_fn(copied, *args, **kwargs)
            losses, aux = out if has_aux else (out, None)
            _, _, new_rest = nnx.split(copied, wrt, ...)
            return losses, (aux, new_rest)

        of_tasks = gradients.task_gradients(
            of_params,
            has_aux=True,
            shared=shared,
            gramian=gramian,
            axis_name=axis_name,
        )
        found, (aux, new_rest) = of_tasks(nnx.as_pure(params), *args, **kwargs)
        nnx.update(model, new_rest)
        return (found, aux) if has_aux else found

    return wrapped


class Optimizer(nnx.Optimizer[M]):
    """`nnx.Optimizer` whose `update` takes a `TaskGradients` and extra arguments.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from dtp_jax import dynamic_task_prioritization
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> tx = optax.chain(dynamic_task_prioritization(["a", "b"]), optax.sgd(0.1))
        >>> optimizer = Optimizer(model, tx, wrt=nnx.Param)
        >>> def losses_fn(model, x):
        ...     a, b = model(x)
        ...     return {"a": a**2, "b": b**2}
        >>> @nnx.jit
        ... def train_step(model, optimizer, x):
        ...     gradients = task_gradients(losses_fn)(model, x)
        ...     optimizer.update(model, gradients, kpis={"a": 0.2, "b": 0.7})
        ...     return gradients.losses
        >>> losses = train_step(model, optimizer, jnp.ones(2))
        >>> optimizer.step[...].item()
        1
    """

    def update(self, model: M, grads: Any, /, **kwargs: Any) -> optax.Updates:
        """Updates the module and the state of the optimizer.

        Args:
            model: The module.
            grads: A `TaskGradients` of `task_gradients`, gradients stacked along a
                first axis of tasks, or ordinary ones, of the parameters in `wrt`.
            **kwargs: Extra arguments of the transformation, such as ``kpis``.

        Returns:
            The updates that were applied.

        Raises:
            ValueError: If the gradients are of other variables than those in `wrt`.
        """
        # The base class turns gradients into an `nnx.State`, which a TaskGradients is
        # not, and whose leaves stacked gradients would not be; the rest is the same.
        params = nnx.as_pure(nnx.state(model, self.wrt))
        _check_wrt(grads, params)
        updates, opt_state = self.tx.update(
            nnx.as_pure(grads),
            nnx.as_pure(self.opt_state),
            params,
            **nnx.as_pure(kwargs),
        )
        nnx.update(model, optax.apply_updates(params, updates))
        nnx.update(self.opt_state, nnx.state(opt_state))
        self.step[...] += 1
        return updates


def _check_wrt(grads: Any, params: Any) -> None:
    if isinstance(grads, TaskGradients):
        theirs, of = grads.treedef, "dtp_jax.nnx.task_gradients(losses_fn, wrt=...)"
    else:
        theirs, of = jax.tree.structure(nnx.as_pure(grads)), "what made them"
    if theirs == jax.tree.structure(params):
        return
    ours = _paths(params)
    paths = _paths(theirs.unflatten(range(theirs.num_leaves)))
    less = [path for path in ours if path not in paths]
    more = [path for path in paths if path not in ours]
    raise ValueError(
        "The gradients are of other variables than those that the optimizer's wrt "
        f"selects; without a gradient: {', '.join(less) or 'none'}; unknown to the "
        f"optimizer: {', '.join(more) or 'none'}. Give {of} and the Optimizer the same "
        "wrt."
    )


def _paths(tree: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
