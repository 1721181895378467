"""The contracts: what a task is, what a balancer is, and how both are checked."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# A balancer is an optax transformation whose parameters are the losses and whose
# updates are the task weights: `init(losses)` and
# `update(preferences, state, losses, **extra_args) -> (weights, state)`.
Balancer = optax.GradientTransformationExtraArgs


# The weight of a task that is active but does not count. Zero would mean "not active"
# to the next link of a chain; from here a link may scale by 1e-8 without reaching it.
SMALLEST_WEIGHT = 1e-30


@dataclasses.dataclass(frozen=True)
class TaskLayout:
    """How T tasks lie in a pytree.

    The order of the tasks is always that of `jax.tree.leaves`.

    Attributes:
        treedef: The structure of the pytree.
        shapes: The shape of each leaf; its elements are tasks of their own.
        dtype: float64 if a leaf has it, else float32.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtype: Any

    @property
    def sizes(self) -> list[int]:
        """The number of tasks in each leaf."""
        return [int(np.prod(shape)) for shape in self.shapes]

    @property
    def num_tasks(self) -> int:
        """The number of tasks T."""
        return sum(self.sizes)

    @property
    def names(self) -> list[str]:
        """A name for each task: its path, and its index if its leaf holds several."""
        indices = self.treedef.unflatten(range(len(self.shapes)))
        names = []
        for path, leaf in jax.tree_util.tree_flatten_with_path(indices)[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if self.shapes[leaf] == ():
                names.append(name or "0")
            else:
                prefix = f"{name}/" if name else ""
                names += [f"{prefix}{i}" for i in range(self.sizes[leaf])]
        return names

    def position(self, name: str, task: str | int) -> int:
        """Finds a task.

        Args:
            name: What the user calls the argument, for the message.
            task: The name of a task, or its position.

        Returns:
            Its position in the order of `jax.tree.leaves`.

        Raises:
            ValueError: If there is no such task.
        """
        names = self.names
        if isinstance(task, str) and task in names:
            return names.index(task)
        if not isinstance(task, (str, bool)) and 0 <= task < len(names):
            return int(task)
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {task!r}.")

    def tree(self, vector: jax.Array) -> Any:
        """Turns a [T] vector into the pytree of the tasks."""
        pieces = jnp.split(vector, np.cumsum(self.sizes)[:-1].tolist())
        leaves = [p.reshape(s) for p, s in zip(pieces, self.shapes, strict=True)]
        return self.treedef.unflatten(leaves)

    def full(self, value: float) -> Any:
        """The pytree of the tasks filled with one value."""
        leaves = [jnp.full(shape, value, self.dtype) for shape in self.shapes]
        return self.treedef.unflatten(leaves)

    def vector(
        self, name: str, tree: Any, *, dtype: Any = None, or_vector: bool = False
    ) -> jax.Array:
        """Turns a pytree of the tasks into a [T] vector.

        Args:
            name: What the user calls the pytree, for the messages.
            tree: A pytree like the tasks, in which None stands for NaN, or
                for False or 0 where the dtype has no NaN.
            dtype: Of the answer; None for that of the layout.
            or_vector: Whether one array of T elements, in the order of
                `jax.tree.leaves`, will do for tasks that have names too.

        Returns:
            A [T] vector.

        Raises:
            ValueError: If the pytree does not fit, saying which task is missing or
                unknown.
        """
        dtype = self.dtype if dtype is None else dtype
        leaves = self._leaves(name, tree, or_vector=or_vector)
        missing = jnp.nan if jnp.issubdtype(dtype, jnp.floating) else 0
        arrays = [
            jnp.full(shape, missing, dtype) if leaf is None else leaf
            for leaf, shape in zip(leaves, self.shapes, strict=True)
        ]
        return jnp.concatenate([jnp.asarray(a, dtype).reshape(-1) for a in arrays])

    def check(self, name: str, tree: Any) -> None:
        """Checks that a pytree has this layout: its structure and its shapes.

        Args:
            name: What the user calls the pytree, for the messages.
            tree: The pytree to check.

        Raises:
            ValueError: If it does not fit, saying which task is missing or unknown.
        """
        self._leaves(name, tree, or_vector=False)

    def _leaves(self, name: str, tree: Any, *, or_vector: bool) -> list[Any]:
        one_array = jax.tree_util.treedef_is_leaf(self.treedef)
        numbers = isinstance(tree, (list, tuple)) and all(map(_is_array, tree))
        if or_vector and (numbers or _is_array(tree)):
            vector = jnp.asarray(tree)
            if vector.shape == (self.num_tasks,):
                return jax.tree.leaves(self.tree(vector))
        if one_array and isinstance(tree, (list, tuple)):
            # Tasks in one array: a sequence of numbers means the same.
            numbers = [jnp.nan if leaf is None else leaf for leaf in tree]
            tree = jnp.stack([jnp.asarray(number) for number in numbers])
        leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
        if treedef != self.treedef:
            raise ValueError(self._structure_message(name, tree, treedef))
        for leaf, shape, path in zip(leaves, self.shapes, self._paths(), strict=True):
            if leaf is not None and jnp.shape(leaf) != shape:
                raise ValueError(
                    f"{name}{path} has shape {list(jnp.shape(leaf))}, expected "
                    f"{list(shape)}: one number per task."
                )
        return leaves

    def _paths(self) -> list[str]:
        indices = self.treedef.unflatten(range(len(self.shapes)))
        paths = jax.tree_util.tree_flatten_with_path(indices)[0]
        return [jax.tree_util.keystr(path) for path, _ in paths]

    def _structure_message(self, name: str, tree: Any, treedef: Any) -> str:
        ours, theirs = self._paths(), _paths_of(tree)
        missing = [path for path in ours if path not in theirs]
        unknown = [path for path in theirs if path not in ours]
        if isinstance(tree, tuple) and len(tree) == 2 and name == "losses":
            detail = (
                "losses_fn returned a pair; for losses and something else say "
                "task_gradients(..., has_aux=True)"
            )
        elif "" in ours or "" in theirs:
            shape = f"one array of shape {list(self.shapes[0])}" if "" in ours else ""
            wanted = shape or f"entries {', '.join(ours)}"
            got = f"entries {', '.join(theirs)}" if "" in ours else _describe(tree)
            detail = f"expected {wanted}, got {got}"
        elif missing or unknown:
            parts = []
            if missing:
                parts.append(f"tasks without an entry: {', '.join(missing)}")
            if unknown:
                parts.append(f"entries of no task: {', '.join(unknown)}")
            detail = "; ".join(parts)
        else:
            detail = f"expected the structure {self.treedef}, got {treedef}"
        return (
            f"{name} does not match the tasks {', '.join(self.names)}: {detail}. Give "
            "one number per task, in a pytree like the losses."
        )


def task_layout(tasks: Any) -> TaskLayout:
    """Reads what a user gives as `tasks`.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.

    Returns:
        The layout of the tasks.

    Raises:
        ValueError: If there is no task, or `tasks` cannot be read.
    """
    if isinstance(tasks, str):
        raise ValueError(f"tasks must be a list of names, got one name: [{tasks!r}]?")
    if isinstance(tasks, (int, np.integer)):
        if isinstance(tasks, bool) or tasks < 1:
            raise ValueError(f"tasks must be at least 1 task, got {tasks!r}.")
        return TaskLayout(jax.tree.structure(0), ((int(tasks),),), jnp.float32)
    if isinstance(tasks, Collection) and _all_names(tasks):
        names = list(tasks)
        if len(set(names)) < len(names):
            raise ValueError(f"tasks must be different names, got {names}.")
        tasks = dict.fromkeys(names, 0.0)
    layout = layout_of(tasks)
    if layout.num_tasks == 0:
        raise ValueError(
            "tasks is empty. Give the names of the tasks, their number, or an example "
            "pytree of the losses."
        )
    for leaf in jax.tree.leaves(tasks):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                "tasks is an integer array. `inject_hyperparams` turns a number of "
                "tasks into one: add static_args=('tasks',), or give names."
            )
    return layout


def layout_of(losses: Any) -> TaskLayout:
    """The layout of a pytree of losses, weights or preferences.

    Args:
        losses: A pytree of scalars or arrays, or of their shapes and dtypes.

    Returns:
        The layout, in float64 if a leaf has this dtype, else in float32.

    Raises:
        ValueError: If a leaf is not a number or an array.
    """
    if hasattr(losses, "gramian"):
        raise ValueError(
            "A balancer works on task weights, but got the TaskGradients: wrap it, "
            "optax.chain(dtp_jax.balance(balancer, tasks), ...)."
        )
    leaves, treedef = jax.tree.flatten(losses)
    for leaf in leaves:
        if not (_is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)):
            raise ValueError(
                f"Expected numbers or arrays, one per task, got {type(leaf).__name__}: "
                f"{leaf!r}."
            )
    dtypes = [getattr(leaf, "dtype", None) for leaf in leaves]
    double = any(dtype == jnp.float64 for dtype in dtypes if dtype is not None)
    shapes = tuple(tuple(int(n) for n in np.shape(leaf)) for leaf in leaves)
    return TaskLayout(treedef, shapes, jnp.float64 if double else jnp.float32)


def per_task(name: str, value: Any, layout: TaskLayout) -> jax.Array:
    """Reads a hyperparameter that may differ from task to task.

    Args:
        name: What the user calls it, for the messages.
        value: A scalar, a pytree like the tasks, or one [T] array.
        layout: The layout of the tasks.

    Returns:
        A [T] vector.

    Raises:
        ValueError: If it is neither.
    """
    if _is_array(value) and jnp.shape(value) == ():
        return jnp.full((layout.num_tasks,), value, layout.dtype)
    return layout.vector(name, value, or_vector=True)


def transformation(init: Callable[..., Any], update: Callable[..., Any]) -> Balancer:
    """Builds a balancer; the one place that meets the types of optax.

    Args:
        init: From the losses (or parameters) to the state.
        update: From updates, state, params and extra arguments to updates and state.

    Returns:
        The transformation.
    """
    return optax.GradientTransformationExtraArgs(init, update)


def stateless_weighting(
    rule: Callable[[jax.Array], jax.Array],
) -> Balancer:
    """A balancer that maps the [T] vector of preferences to the [T] weights.

    Args:
        rule: A pure function from and to a [T] vector. It need not look after inactive
            tasks: their weights are set to zero afterwards.

    Returns:
        A balancer without state.
    """

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        weights = rule(preferences)
        return layout.tree(jnp.where(preferences > 0, weights, 0)), state

    return transformation(lambda params: optax.EmptyState(), update)


def gramian_weighting(
    name: str, rule: Callable[[jax.Array, jax.Array], jax.Array]
) -> Balancer:
    """A balancer that maps the Gramian and the preferences to the weights.

    Args:
        name: The name of the balancer, for the messages.
        rule: A pure function from ``[T, T]`` and ``[T]`` to ``[T]``. A task with the
            preference zero must not influence the others: its rows and columns of the
            Gramian are zero, and so is its own weight afterwards. A weight of zero of
            an active task becomes `SMALLEST_WEIGHT`.

    Returns:
        A balancer without state that reads the extra argument `task_gradients`.
    """

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        gramian = gramian_of(task_gradients, preferences, name)
        return layout.tree(nonzero(rule(gramian, preferences), preferences)), state

    return transformation(lambda params: optax.EmptyState(), update)


def loss_weighting(
    name: str, rule: Callable[[jax.Array, jax.Array, TaskLayout], jax.Array]
) -> Balancer:
    """A balancer that maps the losses and the preferences to the weights.

    Args:
        name: The name of the balancer, for the messages.
        rule: A pure function from losses ``[T]``, preferences ``[T]`` and the layout of
            the tasks, with which `per_task` reads hyperparameters, to weights ``[T]``.
            A task that is not active has the preference zero and the loss zero, and
            must not influence the others; its own weight becomes zero afterwards. A
            weight of zero of an active task becomes `SMALLEST_WEIGHT`.

    Returns:
        A balancer without state that reads the losses. A task whose loss is not finite
        counts as not active, and no derivative flows through the losses.
    """

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        layout, losses, preferences = read_losses(name, updates, params)
        losses = jnp.where(preferences > 0, losses, 0)
        weights = rule(losses, preferences, layout)
        return layout.tree(nonzero(weights, preferences)), state

    return transformation(lambda params: optax.EmptyState(), update)


def read_losses(
    name: str, updates: Any, params: Any
) -> tuple[TaskLayout, jax.Array, jax.Array]:
    """What the `update` of a loss-driven balancer got.

    Args:
        name: The name of the balancer, for the messages.
        updates: The preferences, as `update` got them.
        params: The losses, as `update` got them.

    Returns:
        The layout of the tasks; the losses ``[T]``, through which no derivative flows;
        and the preferences ``[T]``, zero where a loss is not finite.

    Raises:
        ValueError: If there are no losses, or they do not fit the preferences.
    """
    how = (
        "pass a TaskGradients, losses= next to stacked gradients, or the losses as the "
        "third argument of a balancer's own update"
    )
    params = required(params, "losses", name, how)
    layout = layout_of(updates)
    losses = jax.lax.stop_gradient(layout.vector("losses", params))
    preferences = layout.vector("preferences", updates)
    return layout, losses, jnp.where(jnp.isfinite(losses), preferences, 0)


def nonzero(weights: jax.Array, preferences: jax.Array) -> jax.Array:
    """Weights that say which tasks are active to the next link of a chain.

    Args:
        weights: ``[T]``, of any sign.
        preferences: ``[T]``.

    Returns:
        ``[T]``: zero for a task without a preference; for an active one its weight, or
        `SMALLEST_WEIGHT` where that is zero or smaller.
    """
    # A weight may be negative on purpose, but zero would mean "not active".
    vanished = jnp.abs(weights) < SMALLEST_WEIGHT
    weights = jnp.where(vanished, SMALLEST_WEIGHT, weights)
    return jnp.where(preferences > 0, weights, 0)


def checked_balancer(name: str, balancer: Any) -> optax.GradientTransformationExtraArgs:
    """Checks that something is a balancer and lets it take extra arguments.

    Args:
        name: The argument it was given as, for the message.
        balancer: An optax transformation.

    Returns:
        The balancer.

    Raises:
        TypeError: If it is no transformation, such as a factory that was not called.
    """
    if not isinstance(balancer, optax.GradientTransformation):
        hint = ""
        if callable(balancer):
            called = getattr(balancer, "__name__", "balancer")
            hint = f" It is a function: call it, as in {called}()."
        raise TypeError(
            f"{name} must be a balancer (an optax gradient transformation on the task "
            f"weights), got {type(balancer).__name__}.{hint}"
        )
    return optax.with_extra_args_support(balancer)


def required(value: Any, name: str, method: str, how: str) -> Any:
    """Returns an extra argument, or says how to supply it.

    Args:
        value: What the step supplied, None for nothing.
        name: The name of the extra argument.
        method: The method that needs it.
        how: How the user supplies it.

    Returns:
        The value.

    Raises:
        ValueError: If it is None.
    """
    if value is None:
        raise ValueError(
            f"{method} needs `{name}`, which this step did not supply: {how}."
        )
    return value


def gramian_of(task_gradients: Any, preferences: jax.Array, method: str) -> jax.Array:
    """The [T, T] Gramian that a gradient-driven balancer reads.

    Args:
        task_gradients: What the step supplied as the extra argument.
        preferences: ``[T]``.
        method: The name of the balancer, for the messages.

    Returns:
        The Gramian, through which no derivative flows. The rows and columns of tasks
        that are not active are zero, whatever their gradients hold.

    Raises:
        ValueError: If there are no task gradients, or of another number of tasks.
    """
    gradients = _gradients_of(task_gradients, preferences, method)
    active = preferences > 0
    gramian = gradients.gramian()
    gramian = jnp.where(active[:, None] & active[None, :], gramian, 0)
    return jax.lax.stop_gradient(gramian)


def squared_norms_of(
    task_gradients: Any, preferences: jax.Array, method: str
) -> jax.Array:
    """The diagonal of what `gramian_of` returns, without the cost of the rest.

    Args:
        task_gradients: What the step supplied as the extra argument.
        preferences: ``[T]``.
        method: The name of the balancer, for the messages.

    Returns:
        ``[T]``, zero for tasks that are not active; no derivative flows through it.

    Raises:
        ValueError: As `gramian_of` does.
    """
    gradients = _gradients_of(task_gradients, preferences, method)
    squares = jnp.where(preferences > 0, gradients.squared_norms(), 0)
    return jax.lax.stop_gradient(squares)


def _gradients_of(task_gradients: Any, preferences: jax.Array, method: str) -> Any:
    how = "wrap the balancer in dtp_jax.balance, or pass task_gradients= to update"
    gradients = required(task_gradients, "task_gradients", method, how)
    if gradients.num_tasks != preferences.size:
        raise ValueError(
            f"{method} got {preferences.size} preferences for {gradients.num_tasks} "
            "task gradients. `optax.masked` cannot hide tasks from it: use "
            "curricula.stages or the extra argument task_mask instead."
        )
    return gradients


def _describe(leaf: Any) -> str:
    if _is_array(leaf):
        return f"one array of shape {list(jnp.shape(leaf))}"
    return f"{type(leaf).__name__} {leaf!r}"


def _all_names(tasks: Collection[Any]) -> bool:
    if isinstance(tasks, (dict, jax.Array, np.ndarray)) or hasattr(tasks, "_fields"):
        return False
    return len(tasks) > 0 and all(isinstance(task, str) for task in tasks)


def _is_array(value: Any) -> bool:
    return isinstance(value, (int, float, np.ndarray, np.generic, jax.Array))


def _paths_of(tree: Any) -> Sequence[str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)[0]
    return [jax.tree_util.keystr(path) for path, _ in leaves]
