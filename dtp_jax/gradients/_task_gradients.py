"""Gradients of several losses at once, computed only as far as a method needs them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core.layout import TaskLayout, layout_of

from ._guard import NoGradient, refuse_maps
from ._inputs import check_params, real_rows, split_aux
from ._linearized import GramianMode, Linearized, LinearMap
from ._seal import new_seal, unbroken, visibly
from ._shards import AxisName, Shards
from ._shared import Shared, shared_mask
from ._spread import references
from ._stacked import Stacked, check_stacked


@jax.tree_util.register_pytree_node_class
class TaskGradients(NoGradient):
    """The gradients of T losses, not computed until they are needed.

    A registered pytree of the losses and the linear map from a change of the parameters
    to the change of the losses. It may be passed through `jax.jit`, `jax.lax.cond` and
    `jax.lax.scan`; under `jax.vmap`, make and use it inside the mapped function.

    Its leaves are no gradients: `jax.tree.map` and `optax.tree.norm` of it have no
    meaning. Arithmetic on the leaves is an error, and where only a value shows it, all
    that it returns is NaN; what leaves some numbers as they are, such as a cast or
    `optax.zero_nans`, goes unnoticed. Compute with what `combine` or `stack` returns.
    """

    def __init__(self, losses: Any, linear_map: Any) -> None:
        """Use `task_gradients` or `TaskGradients.from_stacked` instead."""
        self._losses = losses
        self._map: LinearMap = linear_map
        self._seal: Any = new_seal()

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
            ValueError: If the first axes differ, or are not as long as there are tasks,
                or gradients are complex.

        Example:
            >>> import jax.numpy as jnp
            >>> gradients = TaskGradients.from_stacked({"w": jnp.eye(2)})
            >>> gradients.combine(jnp.array([3.0, 4.0]))["w"].tolist()
            [3.0, 4.0]
        """
        stacked = real_rows(stacked)
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
        return cls(losses, Stacked(stacked, mask))

    @property
    def losses(self) -> Any:
        """The losses, a pytree of scalars or arrays; None if they are not known."""
        return visibly(self._seal, self._losses)

    @losses.setter
    def losses(self, losses: Any) -> None:
        self._losses = losses

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
        self.untouched()
        layout = self._layout
        shared = layout.vector("weights", weights, or_vector=True)
        if unshared_weights is None:
            return visibly(self._seal, self._map.pull(shared))
        name = "unshared_weights"
        unshared = layout.vector(name, unshared_weights, or_vector=True)
        return visibly(self._seal, self._map.pull(shared, unshared))

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
        return visibly(self._seal, self._map.gramian())

    def squared_norms(self) -> jax.Array:
        """The diagonal of the Gramian, without the rest of it.

        Costs a backward pass per task, as the Gramian does, and no products.

        Returns:
            ``[T]`` in float32 or better, of the gradients over the shared parameters.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> task_gradients(losses_fn)(jnp.array(1.0)).squared_norms().tolist()
            [4.0, 9.0]
        """
        return visibly(self._seal, self._map.squared_norms())

    def products(self, vector: Any) -> jax.Array:
        """Inner products of the gradients with a vector, over all parameters.

        Costs a forward derivative of the losses, whatever the number of tasks.

        Args:
            vector: A pytree like the parameters, such as what `combine` returns.

        Returns:
            ``[T]``.

        Example:
            >>> import jax.numpy as jnp
            >>> losses_fn = lambda w: {"a": w**2, "b": 3.0 * w}
            >>> task_gradients(losses_fn)(jnp.array(1.0)).products(2.0).tolist()
            [4.0, 6.0]
        """
        ones = jnp.ones((self.num_tasks,), self._layout.dtype)
        return visibly(self._seal, self._map.products(ones, vector))

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
        return visibly(self._seal, self._map.stack())

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
        if rows is None and isinstance(self._map, Stacked):
            return self
        rows = self._map.stack() if rows is None else real_rows(rows)
        # The seal goes along: what was scaled before stays known.
        children = self._losses, Stacked(rows, self.shared), self._seal
        return self.tree_unflatten(None, children)

    @property
    def treedef(self) -> Any:
        """The structure of the parameters, a `PyTreeDef`."""
        return self._map.treedef

    @property
    def shared(self) -> tuple[bool, ...]:
        """Which parameters are shared, in the order of `jax.tree.leaves`."""
        if isinstance(self._map, (Linearized, Stacked)):
            return self._map.shared
        # Other maps take the Gramian over something else than parameters.
        return (True,) * self.treedef.num_leaves

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
        if isinstance(self._map, Stacked):
            check_stacked(self._map.jacobian, params, self.num_tasks)

    def untouched(self) -> jax.Array:
        """Whether no transformation took this for a pytree of gradients.

        Returns:
            A boolean that is False if the leaves were scaled, as a schedule can.

        Raises:
            ValueError: If arithmetic was done on the leaves, such as by `optax.scale`
                in a chain before the balancing link.
        """
        return unbroken(self._seal)

    def tree_flatten(self) -> tuple[tuple[Any, Any, Any], None]:
        """For `jax.tree_util`."""
        refuse_maps()
        # A map over the leaves, such as a clip, would act on the linear map. The seal
        # does not stand it.
        return (self._losses, self._map, self._seal), None

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
        dtype = self._map.dtype
        if self._losses is None:
            num_tasks = jax.tree.leaves(self._map)[0].shape[0]
            return layout_of(jax.ShapeDtypeStruct((num_tasks,), dtype))
        layout = layout_of(self._losses)
        return dataclasses.replace(layout, dtype=jnp.promote_types(layout.dtype, dtype))


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
            are those of a device's own part. `.losses` are their means over the axis
            then, and all gradients are those of these means: `.combine` averages one
            gradient, `.gramian`, `.stack` and `.squared_norms` those of all tasks. It
            does not matter what ``check_vma`` is. Average the KPIs yourself,
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
