"""What a task is: how T tasks lie in a pytree."""

import collections
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .checks import check_number, check_real, check_static, index_of
from .probe import is_growing


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
        """A name for each task: its path, and its index if its leaf holds several.

        Where two tasks would have the same, as in ``{"a/b": ..., "a": {"b": ...}}``,
        their names are the paths as Python writes them, ``['a/b']`` and ``['a']['b']``.
        """
        names, paths = [], []
        for path, leaf in self._paths_and_indices():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            full = jax.tree_util.keystr(path)
            if self.shapes[leaf] == ():
                names.append(name or "0")
                paths.append(full)
            else:
                prefix = f"{name}/" if name else ""
                names += [f"{prefix}{i}" for i in range(self.sizes[leaf])]
                paths += [f"{full}[{i}]" for i in range(self.sizes[leaf])]
        counts = collections.Counter(names)
        return [
            path if counts[name] > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]

    @property
    def has_names(self) -> bool:
        """Whether the order of the tasks is more than that of a list or an array."""
        keys = [key for path, _ in self._paths_and_indices() for key in path]
        return not all(isinstance(key, jax.tree_util.SequenceKey) for key in keys)

    @property
    def template(self) -> str:
        """What the user writes for one number per task: ``{'a': ..., 'b': ...}``."""
        places = [_Place(shape) for shape in self.shapes]
        return repr(self.treedef.unflatten(places))

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
        check_static(name, task, "the name of the task")
        if isinstance(task, str) and task in names:
            return names.index(task)
        if 0 <= (place := index_of(task)) < len(names):
            return place
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
            tree: A pytree like the tasks, in which None stands for `missing_value`, or
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
        missing = missing_value() if jnp.issubdtype(dtype, jnp.floating) else 0
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
            for place, leaf in enumerate(tree):
                check_real(f"{name}[{place}]", leaf)
            numbers = [missing_value() if leaf is None else leaf for leaf in tree]
            tree = jnp.stack([jnp.asarray(number) for number in numbers])
        leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
        if treedef != self.treedef:
            raise ValueError(self._structure_message(name, tree, treedef))
        for leaf, shape, path in zip(leaves, self.shapes, self._paths(), strict=True):
            check_real(f"{name}{path}", leaf)
            if leaf is not None and jnp.shape(leaf) != shape:
                of_batch = name == "losses" and shape == ()
                hint = ", such as its mean over the batch" if of_batch else ""
                raise ValueError(
                    f"{name}{path} has shape {list(jnp.shape(leaf))}, expected "
                    f"{list(shape)}: one number per task{hint}."
                )
        return leaves

    def _paths(self) -> list[str]:
        return [jax.tree_util.keystr(path) for path, _ in self._paths_and_indices()]

    def _paths_and_indices(self) -> list[tuple[Any, int]]:
        indices = self.treedef.unflatten(range(len(self.shapes)))
        return jax.tree_util.tree_flatten_with_path(indices)[0]

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
            if name == "losses" and _is_array(tree) and np.shape(tree) == ():
                detail += ", as if they were summed; leave that to the link"
        elif missing or unknown:
            parts = []
            if missing:
                parts.append(f"tasks without an entry: {', '.join(missing)}")
            if unknown:
                parts.append(f"entries of no task: {', '.join(unknown)}")
            detail = "; ".join(parts)
            if isinstance(tree, (list, tuple)):
                detail += f". It is a {type(tree).__name__}; name the tasks in a dict"
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
    if isinstance(tasks, optax.GradientTransformation):
        raise ValueError(
            "tasks is an optax transformation. A balancer goes before the tasks, "
            "balance(balancer, tasks), and into a ready-made link by its name, "
            "dynamic_task_prioritization(tasks, balancer=balancer)."
        )
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


def missing_value() -> float:
    """What stands for a number that is not known: NaN, or infinity.

    Returns:
        NaN; infinity where `jax_debug_nans` would raise at it. Neither is finite.

    Example:
        >>> with jax.debug_nans(True):
        ...     missing_value()
        inf
    """
    config: Any = jax.config
    return jnp.inf if config.jax_debug_nans else jnp.nan


def per_task(
    name: str, value: Any, layout: TaskLayout, *, infinite: bool = False
) -> jax.Array:
    """Reads a hyperparameter that may differ from task to task.

    Args:
        name: What the user calls it, for the messages.
        value: A scalar or a pytree like the tasks. One [T] array or a list of numbers
            only for tasks that have no names: one array, or a list of scalars.
        layout: The layout of the tasks.
        infinite: Whether infinity counts as a number.

    Returns:
        A [T] vector.

    Raises:
        ValueError: If it is neither, or holds something else than finite numbers.
    """
    if is_growing():
        return jnp.zeros((layout.num_tasks,), layout.dtype)
    check_per_task(name, value, layout, infinite=infinite)
    if _is_array(value) and jnp.shape(value) == ():
        return jnp.full((layout.num_tasks,), value, layout.dtype)
    return layout.vector(name, value, or_vector=not layout.has_names)


def check_per_task(
    name: str, value: Any, layout: TaskLayout, *, infinite: bool = False
) -> None:
    """Checks what `per_task` reads, where the tasks are known before the first step.

    Args:
        name: What the user calls it, for the messages.
        value: As for `per_task`.
        layout: The layout of the tasks.
        infinite: As for `per_task`.

    Raises:
        ValueError: If `per_task` would.
    """
    if _is_array(value) and jnp.shape(value) == ():
        check_number(name, value, infinite=infinite)
        return
    # The order of a list is that in which its writer thinks of the tasks, but the tasks
    # of a dict are sorted by name: it would go to the wrong ones without a word.
    ordered = _is_array(value) or isinstance(value, (list, tuple))
    if layout.has_names and ordered and jax.tree.structure(value) != layout.treedef:
        raise ValueError(
            f"{name} must be one number for all tasks, or one for each by name, "
            f"{layout.template}; got {_describe(value)}, whose order may not be that "
            "of the tasks."
        )
    leaves = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is None)
    for path, leaf in leaves[0]:
        if not _is_array(leaf):
            hint = ""
            if callable(leaf):
                hint = (
                    " For a schedule give optax.inject_hyperparams one function from "
                    f"the step to a number or to {layout.template}."
                )
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be a number, got "
                f"{_describe(leaf)}.{hint}"
            )
        check_number(name + jax.tree_util.keystr(path), leaf, infinite=infinite)
    if layout.has_names:
        layout.check(name, value)


class _Place:
    """Stands for numbers that the user has to fill in."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __repr__(self) -> str:
        return f"<{list(self.shape)} numbers>" if self.shape else "..."


def _describe(leaf: Any) -> str:
    if _is_array(leaf):
        return f"one array of shape {list(jnp.shape(leaf))}"
    if isinstance(leaf, (list, tuple)):
        return f"a {type(leaf).__name__} of {len(leaf)}"
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
