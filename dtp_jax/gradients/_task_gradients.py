"""Gradients of several losses at once, computed only as far as a method needs them."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax._core import linalg
from dtp_jax._core.layout import TaskLayout, layout_of

from ._guard import NoGradient, refuse_maps
from ._linearized import GramianMode, Linearized, LinearMap, split_aux
from ._shared import Shared, shared_mask
from ._stacked import Stacked, check_stacked

# A number that no scaling or clipping leaves as it is; see `TaskGradients`.
_SEAL = 77


@jax.tree_util.register_pytree_node_class
class TaskGradients(NoGradient):
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
        return cls(losses, Stacked(jax.tree.map(jnp.asarray, stacked), mask))

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
        if rows is None and isinstance(self._map, Stacked):
            return self
        linear_map = Stacked(self.stack() if rows is None else rows, self.shared)
        # The seal goes along: what was scaled before stays known.
        return self.tree_unflatten(None, (self.losses, linear_map, self._seal))

    @property
    def shared(self) -> tuple[bool, ...]:
        """Which parameters are shared, in the order of `jax.tree.leaves`."""
        if isinstance(self._map, (Linearized, Stacked)):
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
        if isinstance(self._map, Stacked):
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
        refuse_maps()
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
        linear_map = Linearized(
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


def _squared_norm(leaves: list[jax.Array]) -> jax.Array:
    squares = [linalg.gram(leaf[None])[0, 0] for leaf in leaves]
    return sum(squares[1:], start=squares[0])


def _check_params(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"The parameter{jax.tree_util.keystr(path[1:])} has dtype "
                f"{jnp.result_type(leaf)} and no derivative. Keep it out of the "
                "argument that argnums names; for nnx modules use "
                "dtp_jax.nnx.task_gradients."
            )
