"""Gradients of several losses at once, computed only as far as a method needs them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from dtp_jax._core import linalg
from dtp_jax._core.layout import TaskLayout, layout_of

# How the rows of the Jacobian are computed; see `task_gradients`.
GramianMode = Literal["auto", "unrolled", "switch", "vmap", "map", "columns"]

# Measured on a CPU of two cores (`make bench`). Up to the first number of tasks, their
# gradients stay in memory until they are summed, which saves a backward pass. Beyond it
# a loop over branches is faster than one pass after the other in the program, and takes
# half the memory. The time to compile either is linear in T, and past the second number
# it is longer than most runs gain.
MAX_UNROLLED = 8
_MAX_BRANCHES = 64

# A number that no scaling or clipping leaves as it is; see `TaskGradients`.
_SEAL = 77

# Which parameters count: None for all, a predicate on their path ("trunk/w"), or a
# pytree of booleans that is the parameters' structure or a prefix of it.
Shared = Callable[[str], bool] | Any


class LinearMap(Protocol):
    """What a `TaskGradients` knows of the Jacobian of the losses."""

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

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of the shared leaves of each row, its results stacked."""
        ...

    def finite(self) -> jax.Array | None:
        """``[T]``, which rows are finite; None if that would cost a backward pass."""
        ...


@jax.tree_util.register_pytree_node_class
class TaskGradients:
    """The gradients of T losses, not computed until they are needed.

    A registered pytree of the losses and the linear map from a change of the parameters
    to the change of the losses. It may be passed through `jax.jit`, `jax.lax.cond` and
    `jax.lax.scan`; under `jax.vmap`, make and use it inside the mapped function.

    Attributes:
        losses: The losses, a pytree of scalars or arrays; None if they are not known.
    """

    def __init__(self, losses: Any, linear_map: Any) -> None:
        """Use `task_gradients` or `TaskGradients.from_stacked` instead."""
        self.losses = losses
        self._map: LinearMap = linear_map
        self._seal: Any = np.full((), _SEAL, np.int8)

    @classmethod
    def from_stacked(
        cls, stacked: Any, losses: Any = None, *, shared: Shared | None = None
    ) -> "TaskGradients":
        """Wraps gradients that are already computed, such as by ``vmap(grad(...))``.

        Args:
            stacked: A pytree like the parameters, each leaf ``[T, *param]``, the tasks
                in the order of the leaves of the losses.
            losses: The losses, T in all. None if no method needs them.
            shared: The parameters over which the Gramian is taken; see
                `task_gradients`.

        Returns:
            A `TaskGradients` whose `combine` leaves out tasks of weight zero, whatever
            their gradients hold.

        Raises:
            ValueError: If the first axes differ, or are not as long as there are tasks.

        Example:
            >>> import jax.numpy as jnp
            >>> gradients = TaskGradients.from_stacked({"w": jnp.eye(2)})
            >>> gradients.combine(jnp.array([3.0, 4.0]))["w"].tolist()
            [3.0, 4.0]
        """
        leaves = jax.tree_util.tree_flatten_with_path(stacked)[0]
        if not leaves:
            raise ValueError("stacked holds no array. Give the gradients of each task.")
        num_tasks = layout_of(losses).num_tasks if losses is not None else None
        for path, leaf in leaves:
            first = jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
            num_tasks = first if num_tasks is None else num_tasks
            if first is None or first != num_tasks:
                raise ValueError(
                    f"stacked{jax.tree_util.keystr(path)} has shape "
                    f"{list(jnp.shape(leaf))}, expected [{num_tasks}, *param]: one "
                    "gradient for each task along the first axis."
                )
        mask = shared_mask(shared, stacked)
        return cls(losses, _Stacked(jax.tree.map(jnp.asarray, stacked), mask))

    @property
    def num_tasks(self) -> int:
        """The number of tasks T."""
        return self._layout.num_tasks

    def combine(self, weights: Any, unshared_weights: Any = None) -> Any:
        """The gradient of ``sum_t weights[t] * losses[t]``, by one backward pass.

        Args:
            weights: A pytree like the losses, or ``[T]``. Constants: no derivative
                flows back into them from the result of an optimizer.
            unshared_weights: If given, the parameters outside of `shared` get the
                gradient of the losses weighted by these instead. It costs nothing more
                under `jax.jit`: each backward pass is only run where it is used.

        Returns:
            A pytree like the parameters.

        Raises:
            ValueError: If the weights do not match the losses, or `unshared_weights`
                are given where every parameter is shared.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> gradients = task_gradients(losses_fn)(jnp.array(1.0))
            >>> gradients.combine({"a": 1.0, "b": 2.0}).item()
            8.0
        """
        layout = self._layout
        shared = layout.vector("weights", weights, or_vector=True)
        if unshared_weights is None:
            return self._map.pull(shared)
        name = "unshared_weights"
        unshared = layout.vector(name, unshared_weights, or_vector=True)
        return self._map.pull(shared, unshared)

    def gramian(self) -> jax.Array:
        """Inner products of the gradients over the shared parameters.

        It is computed anew by each call, but `jax.jit` merges repeated ones. For few
        tasks the gradients are kept, and a later `combine` in the same trace is their
        sum instead of one more backward pass.

        Returns:
            ``[T, T]`` in float32 or better, the tasks in the order of the leaves of the
            losses.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> task_gradients(losses_fn)(jnp.array(1.0)).gramian().tolist()
            [[4.0, 6.0], [6.0, 9.0]]
        """
        return self._map.gramian()

    def squared_norms(self) -> jax.Array:
        """The diagonal of the Gramian, without the rest of it.

        Costs a backward pass per task, as the Gramian does, and no products. "switch"
        and "map" hold one gradient at a time.

        Returns:
            ``[T]`` in float32 or better, of the gradients over the shared parameters.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> task_gradients(losses_fn)(jnp.array(1.0)).squared_norms().tolist()
            [4.0, 9.0]
        """
        return self._map.each(_squared_norm)

    def stack(self) -> Any:
        """The gradients of all tasks.

        Returns:
            A pytree like the parameters, each leaf ``[T, *param]``.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> task_gradients(losses_fn)(jnp.array(1.0)).stack().tolist()
            [2.0, 3.0]
        """
        return self._map.stack()

    def stacked(self, rows: Any = None) -> "TaskGradients":
        """The same tasks with gradients that are computed and held.

        Args:
            rows: Gradients in place of those of `stack`, a pytree like them, such as
                after clipping each.

        Returns:
            A `TaskGradients` of stacked gradients. It takes T times the memory of the
            parameters; the rows of different tasks no longer touch.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> gradients = task_gradients(losses_fn)(jnp.array(1.0))
            >>> gradients.stacked(-gradients.stack()).gramian().tolist()
            [[4.0, 6.0], [6.0, 9.0]]
        """
        if rows is None and isinstance(self._map, _Stacked):
            return self
        linear_map = _Stacked(self.stack() if rows is None else rows, self.shared)
        # The seal goes along: what was scaled before stays known.
        return self.tree_unflatten(None, (self.losses, linear_map, self._seal))

    @property
    def shared(self) -> tuple[bool, ...]:
        """Which parameters are shared, in the order of `jax.tree.leaves`."""
        if isinstance(self._map, (_Linearized, _Stacked)):
            return self._map.shared
        # Other maps take the Gramian over something else than parameters.
        return (True,) * len(jax.tree.leaves(jax.eval_shape(self.stack)))

    def finite(self) -> jax.Array | None:
        """Which tasks have finite gradients, where that is known without a pass.

        Returns:
            ``[T]`` booleans for stacked gradients, else None.
        """
        return self._map.finite()

    def check_params(self, params: Any) -> None:
        """Checks stacked gradients against the parameters they belong to.

        Args:
            params: The parameters of the optimizer.

        Raises:
            ValueError: If a leaf is not ``[T, *param]``, naming it.
        """
        if isinstance(self._map, _Stacked):
            check_stacked(self._map.jacobian, params, self.num_tasks)

    def untouched(self) -> jax.Array:
        """Whether no transformation took this for a pytree of gradients.

        Returns:
            A boolean that is False if the leaves were scaled, which only a schedule can
            do without changing their types.

        Raises:
            ValueError: If arithmetic was done on the leaves, such as by `optax.scale`
                in a chain before the balancing link.
        """
        if self._seal.dtype != jnp.int8:
            raise ValueError(
                "The TaskGradients were changed by a transformation that took them for "
                "gradients: put clipping, scaling and the like after the balancing "
                "link, optax.chain(balance(...), optax.clip_by_global_norm(...), ...)."
            )
        return self._seal == _SEAL

    def tree_flatten(self) -> tuple[tuple[Any, Any, Any], None]:
        """For `jax.tree_util`."""
        # A map over the leaves, such as a clip, would act on the linear map. The seal
        # is an integer: most arithmetic makes a float of it, the rest another number.
        return (self.losses, self._map, self._seal), None

    @classmethod
    def tree_unflatten(
        cls, aux: None, children: tuple[Any, Any, Any]
    ) -> "TaskGradients":
        """For `jax.tree_util`."""
        del aux
        losses, linear_map, seal = children
        gradients = cls(losses, linear_map)
        gradients._seal = seal
        return gradients

    @property
    def _layout(self) -> TaskLayout:
        if self.losses is not None:
            return layout_of(self.losses)
        num_tasks = jax.tree.leaves(self._map)[0].shape[0]
        return layout_of(jax.ShapeDtypeStruct((num_tasks,), jnp.float32))


def task_gradients(
    losses_fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    shared: Shared | None = None,
    gramian: GramianMode = "auto",
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
            path.startswith("trunk")``, or a pytree of booleans that is the parameters'
            structure or a prefix of it, ``{"trunk": True, "heads": False}``. None for
            all.
        gramian: How the Gramian is computed; all ways agree to rounding.
            "unrolled": one backward pass per task, each on its own in the program, so
            that a task does no work in other tasks' heads; its compile time grows with
            T. "switch": the same passes as the branches of a loop; the Jacobian is all
            it keeps. "vmap": one backward pass with all tasks as a batch; T times the
            memory of activations. "map": one pass through all heads after the other in
            a loop, the shortest program. "columns": one backward pass and its transpose
            per task in a loop, which never holds the Jacobian; the least memory, and
            the precision of the model's own products.
            "auto": "unrolled" up to 8 tasks, "switch" up to 64, "map" above.

    Returns:
        A function of the arguments of `losses_fn` that returns a `TaskGradients`, or a
        pair of it and the auxiliary output. Call it inside `jax.jit`.

    Raises:
        ValueError: If `gramian` is none of the above; when called, if a loss is not a
            float or `shared` does not fit the parameters.

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

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        if len(args) <= max(numbers):
            raise ValueError(
                f"argnums={argnums} names a positional argument, but there are only "
                f"{len(args)}: pass the parameters by position."
            )
        params = tuple(args[number] for number in numbers)
        _check_params(params)

        def of_params(*params: Any) -> Any:
            full = list(args)
            for number, value in zip(numbers, params, strict=True):
                full[number] = value
            return split_aux(losses_fn(*full, **kwargs), has_aux)

        if isinstance(argnums, int):
            (params,) = params
            losses, jvp, aux = jax.linearize(of_params, params, has_aux=True)
        else:
            losses, jvp, aux = jax.linearize(
                lambda params: of_params(*params), params, has_aux=True
            )
        leaves, treedef = jax.tree.flatten(params)
        linear_map = _Linearized(
            losses,
            jvp,
            treedef,
            tuple(jax.typeof(leaf) for leaf in leaves),
            shared_mask(shared, params),
            gramian,
        )
        gradients = TaskGradients(losses, linear_map)
        return (gradients, aux) if has_aux else gradients

    return wrapped


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


def cross_gramian(first: TaskGradients, second: TaskGradients) -> jax.Array:
    """Inner products of the gradients of two batches, over the shared parameters.

    Its expectation over independent batches is the Gramian of the expected gradients,
    which that of a single batch exceeds by the covariance of the noise. It costs a
    backward pass per task of each batch that is not stacked, and the memory of the
    rows.

    Args:
        first: The task gradients of one batch.
        second: Those of another, with respect to the same parameters.

    Returns:
        ``[T, T]``, ``<first[s], second[t]>`` in float32 or better; not symmetric.

    Raises:
        ValueError: If the tasks or the shared parameters differ, or a batch has
            gradients at the level of features.

    Example:
        >>> import jax.numpy as jnp
        >>> first = TaskGradients.from_stacked(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
        >>> second = TaskGradients.from_stacked(jnp.array([[1.0, 1.0], [0.0, 3.0]]))
        >>> cross_gramian(first, second).tolist()
        [[1.0, 0.0], [2.0, 6.0]]
    """
    rows, others = shared_rows(first), shared_rows(second)
    shapes = [x.shape for x in rows], [x.shape for x in others]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The two batches must have gradients of the same tasks and the same shared "
            f"parameters, [T, *param]; got the shapes {shapes[0]} and {shapes[1]}."
        )
    grams = [linalg.gram(x, y) for x, y in zip(rows, others, strict=True)]
    return sum(grams[1:], start=grams[0])


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


def split_aux(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """Splits and checks what a function of losses returned.

    Args:
        out: Its output.
        has_aux: Whether that is a pair of losses and anything else.

    Returns:
        The losses, as arrays, and the auxiliary output, None without one.

    Raises:
        ValueError: If it is no pair, there is no loss, or one is not a real float.
    """
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(
            f"With has_aux=True the function must return a pair (losses, aux), got "
            f"{type(out).__name__}."
        )
    losses, aux = out if has_aux else (out, None)
    if not jax.tree.leaves(losses):
        raise ValueError("losses_fn returned no loss. Return a pytree of float losses.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(losses)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"losses_fn returned{jax.tree_util.keystr(path)} of dtype "
                f"{jnp.result_type(leaf)}; a loss must be a real float."
            )
    return jax.tree.map(jnp.asarray, losses), aux


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


def in_a_loop(calls: Sequence[Callable[[], Any]]) -> Any:
    """The results of functions, stacked, one function after the other.

    On CPU this is faster than stacking what they return, from some ten functions on,
    and takes half the memory.

    Args:
        calls: Functions without arguments that return pytrees of the same arrays.

    Returns:
        A pytree like those, each leaf with a new first axis.

    Example:
        >>> in_a_loop([lambda: 2.0, lambda: 3.0]).tolist()
        [2.0, 3.0]
    """

    def call(number: jax.Array) -> Any:
        return jax.lax.switch(number, calls)

    return jax.lax.map(call, jnp.arange(len(calls)))


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
            f"The gradients have the structure {theirs}, the parameters {ours}. Give a "
            "TaskGradients, or a pytree like the parameters with leaves [T, *param]."
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
                "transformations after the balancing link."
            )
        raise ValueError(
            f"The gradient{name} has shape {list(jnp.shape(gradient))}, expected "
            f"{list(expected)}: one gradient for each of the {num_tasks} tasks along "
            "the first axis."
        )


def shared_mask(shared: Shared | None, params: Any) -> tuple[bool, ...]:
    """Reads which parameters are shared.

    Args:
        shared: As for `task_gradients`.
        params: The parameters, or a pytree like them.

    Returns:
        One boolean for each parameter, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: If `shared` does not fit the parameters or selects none.
    """
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    if shared is None:
        return (True,) * len(paths)
    if callable(shared):
        mask = tuple(bool(shared(path)) for path in paths)
    else:
        try:
            full = jax.tree.map(
                lambda use, subtree: jax.tree.map(lambda _: use, subtree),
                shared,
                params,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "shared is not a prefix of the parameters, whose paths are "
                f"{', '.join(paths)}: {error}"
            ) from error
        mask = tuple(jax.tree.leaves(full))
        if not all(isinstance(use, bool) for use in mask):
            raise ValueError("shared must hold only True and False.")
    if not any(mask):
        raise ValueError(f"shared selects none of the parameters {', '.join(paths)}.")
    return mask


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
    unit = jnp.where(size > 0, size, 1)

    def squares(rows: jax.Array) -> jax.Array:
        column = unit.reshape(-1, *[1] * (rows.ndim - 1))
        return over_rows(jnp.sum, jnp.square(rows / column))

    return unit * jnp.sqrt(sum(map(squares, leaves), start=jnp.zeros_like(unit)))


class _Kept:
    """Rows that were computed in the trace in which this was made."""

    def __init__(self) -> None:
        self.trace = get_opaque_trace_state()
        self.rows: list[Any] | None = None

    def here(self) -> bool:
        """Whether that trace is the one at work."""
        return get_opaque_trace_state() == self.trace


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["losses", "jvp"],
    meta_fields=["treedef", "param_types", "shared", "mode"],
)
@dataclasses.dataclass(frozen=True)
class _Linearized:
    """The Jacobian as a linear function, its rows by transposition.

    The rows of "unrolled" are kept, so that after the Gramian their sum costs no
    further backward pass, but only those of the trace in which this object was made:
    what a branch of `jax.lax.cond` computes is of no use outside of it.
    """

    losses: Any
    jvp: Any
    treedef: Any
    # Types with sharding, which a transposed product over sharded axes needs to know.
    param_types: tuple[Any, ...]
    shared: tuple[bool, ...]
    mode: GramianMode
    # No part of the pytree: a copy that passed through `jax.jit` starts anew.
    kept: _Kept = dataclasses.field(init=False, default_factory=_Kept, compare=False)

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """The rows, weighted and summed, or one backward pass if there are none yet."""
        if unshared is not None:
            _check_heads(self.shared)
        if self.kept.rows is not None and self.kept.here():
            return self._sum(self.kept.rows, weights, unshared)
        if unshared is not None:
            return _select(self.shared, self.pull(weights), self.pull(unshared))
        cotangent = weights_like(self.losses, weights)
        (gradient,) = jax.linear_transpose(self.jvp, self._like())(cotangent)
        return gradient

    def stack(self) -> Any:
        """All rows, by the mode that the Gramian uses."""
        return self._over_rows(lambda row: row)

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of each row, by the mode that the Gramian uses."""
        return self._over_rows(lambda row: function(self._shared_leaves(row)))

    def gramian(self) -> jax.Array:
        """Inner products of the rows, leaf by leaf."""
        if self._mode == "columns":
            columns = jax.lax.map(self._column, self._units())
            return columns.astype(self._dtype)
        leaves = self._over_rows(self._shared_leaves)
        # Summing leaf by leaf lets the compiler free each one after its contribution.
        return sum(map(linalg.gram, leaves), start=jnp.zeros((), self._dtype))

    def finite(self) -> None:
        """Rows are not known without a backward pass each."""

    def _row(self, task: int) -> Any:
        one_loss, one = one_output(self.jvp, self.losses, task)
        (gradient,) = jax.linear_transpose(one_loss, self._like())(one)
        return gradient

    def _column(self, weights: jax.Array) -> jax.Array:
        def shared_row(weights: jax.Array) -> list[jax.Array]:
            return self._shared_leaves(self.pull(weights))

        # Transposing the backward pass instead of pushing forward: a function with
        # `jax.custom_vjp` has no forward mode.
        (column,) = jax.linear_transpose(shared_row, weights)(shared_row(weights))
        return column

    def _over_rows(self, function: Callable[[Any], Any]) -> Any:
        """A function of each row, its results stacked."""
        if self._mode == "unrolled":
            results = map(function, self._rows())
            return jax.tree.map(lambda *xs: jnp.stack(xs), *results)
        if self._mode == "switch":
            tasks = range(self._layout.num_tasks)
            return in_a_loop([lambda t=t: function(self._row(t)) for t in tasks])
        over_tasks = jax.vmap if self._mode == "vmap" else _mapped
        return over_tasks(lambda unit: function(self.pull(unit)))(self._units())

    def _rows(self) -> list[Any]:
        # A sum of many takes long to compile, and is no faster than a backward pass.
        few = self._layout.num_tasks <= MAX_UNROLLED
        if not (few and self.kept.here()):
            return self._computed_rows()
        if self.kept.rows is None:
            self.kept.rows = self._computed_rows()
        return self.kept.rows

    def _computed_rows(self) -> list[Any]:
        return [self._row(task) for task in range(self._layout.num_tasks)]

    def _sum(self, rows: list[Any], shared: jax.Array, unshared: Any) -> Any:
        unshared = shared if unshared is None else unshared

        def of_leaf(used: bool, *leaves: jax.Array) -> jax.Array:
            return linalg.weighted_sum_of(shared if used else unshared, leaves)

        return jax.tree.map(of_leaf, self.treedef.unflatten(self.shared), *rows)

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
        return "switch" if num_tasks <= _MAX_BRANCHES else "map"

    @property
    def _dtype(self) -> Any:
        return jnp.result_type(
            jnp.float32, *[param.dtype for param in self.param_types]
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stacked:
    """The Jacobian as arrays, each leaf ``[T, *param]``."""

    jacobian: Any
    shared: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """The weighted sum of the rows, without those of weight zero."""
        if unshared is not None:
            _check_heads(self.shared)
            return _select(self.shared, self.pull(weights), self.pull(unshared))
        return jax.tree.map(
            lambda rows: linalg.weighted_sum(weights, rows), self.jacobian
        )

    def stack(self) -> Any:
        """The Jacobian as it was given."""
        return self.jacobian

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of each row, all rows as a batch."""
        return jax.vmap(function)(self._shared_leaves())

    def gramian(self) -> jax.Array:
        """Inner products of the rows, leaf by leaf."""
        grams = [linalg.gram(leaf) for leaf in self._shared_leaves()]
        return sum(grams[1:], start=grams[0])

    def finite(self) -> jax.Array:
        """Which rows are finite, ``[T]``."""
        leaves = jax.tree.leaves(self.jacobian)
        finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
        return jnp.stack(finite).all(axis=0)

    def _shared_leaves(self) -> list[jax.Array]:
        leaves = zip(jax.tree.leaves(self.jacobian), self.shared, strict=True)
        return [leaf for leaf, used in leaves if used]


def _mapped(function: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    return functools.partial(jax.lax.map, function)


def _squared_norm(leaves: list[jax.Array]) -> jax.Array:
    squares = [linalg.gram(leaf[None])[0, 0] for leaf in leaves]
    return sum(squares[1:], start=squares[0])


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


def _check_heads(mask: tuple[bool, ...]) -> None:
    if all(mask):
        raise ValueError(
            "Every parameter is shared, so that there are no heads to weight in "
            "another way: say which are, task_gradients(..., shared=...)."
        )


def _select(mask: tuple[bool, ...], shared: Any, unshared: Any) -> Any:
    ours, treedef = jax.tree.flatten(shared)
    leaves = zip(mask, ours, jax.tree.leaves(unshared), strict=True)
    return treedef.unflatten([a if used else b for used, a, b in leaves])


def _check_params(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"The parameter{jax.tree_util.keystr(path[1:])} has dtype "
                f"{jnp.result_type(leaf)} and no derivative. Keep it out of the "
                "argument that argnums names; for nnx modules use "
                "dtp_jax.nnx.task_gradients."
            )
