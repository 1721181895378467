"""The gradients of several losses, computed only as far as a method needs them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core.layout import TaskLayout, layout_of

from ._guard import NoGradient, refuse_maps
from ._inputs import real_rows
from ._linearized import Linearized, LinearMap
from ._seal import new_seal, unbroken, visibly
from ._shared import Shared, shared_mask
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

    def __repr__(self) -> str:
        """The names of the tasks, and what is known of their gradients."""
        # What JAX builds on the way may hold anything in place of losses.
        try:
            names = self._layout.names
        except (AttributeError, IndexError, TypeError, ValueError):
            return "TaskGradients(of a structure, not of losses)"
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        held = isinstance(self._map, Stacked)
        known = "gradients are held" if held else "no gradient is computed yet"
        return f"TaskGradients({len(names)} tasks: {shown}; {known})"

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
            >>> from dtp_jax import task_gradients
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
            >>> from dtp_jax import task_gradients
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
            >>> from dtp_jax import task_gradients
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
            >>> from dtp_jax import task_gradients
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
            >>> from dtp_jax import task_gradients
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
            >>> from dtp_jax import task_gradients
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
