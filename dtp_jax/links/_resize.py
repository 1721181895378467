"""States for other tasks."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import default_registry

from dtp_jax._core.layout import TaskLayout
from dtp_jax._core.probe import probing


class _Slot(NamedTuple):
    """A part of a state: one array, or a pytree of one number per task."""

    name: str
    value: Any
    axes: tuple[int, ...]  # of the tasks, in an array; none if it is not of tasks
    of_tasks: bool  # whether it is a pytree of the tasks


def resize_tasks(
    old_link: optax.GradientTransformation,
    state: Any,
    new_link: optax.GradientTransformation,
    params: Any,
    *,
    renamed: Mapping[str, str] | None = None,
) -> Any:
    """Takes a state over to other tasks, keeping what is known of those that stay.

    Both transformations are the same but for their tasks: a link, or a whole optimizer
    that holds one. A task that joins starts as in a new state, as one that was masked
    in all steps so far; a task that leaves takes what was known of it along. What is
    not of single tasks, such as the moments of Adam and counts of steps, stays.

    Where the tasks lie in a state follows from `init`, which is asked, without
    computing anything, what it would make for one task more.

    Args:
        old_link: The transformation that the state is of.
        state: Its state.
        new_link: The transformation for the other tasks.
        params: The parameters, the same for both.
        renamed: New names of tasks by their old ones, ``{"old": "new"}``.

    Returns:
        A state of `new_link`.

    Raises:
        ValueError: If the state is not of `old_link`, the two differ in more than the
            tasks, there is not one link in each, or `renamed` names no task.

    Example:
        >>> from dtp_jax import balance, balancers
        >>> old, new = (
        ...     optax.chain(balance(balancers.focal(), tasks), optax.adam(1e-3))
        ...     for tasks in (["a", "b"], ["b", "c"])
        ... )
        >>> state = old.init(jnp.zeros(3))
        >>> weights = {"a": jnp.array(5.0), "b": jnp.array(7.0)}
        >>> state = (state[0]._replace(task_weights=weights), *state[1:])
        >>> found = resize_tasks(old, state, new, jnp.zeros(3))
        >>> {name: w.item() for name, w in found[0].task_weights.items()}
        {'b': 7.0, 'c': 1.0}
    """
    ours, old_template, old_grown = _probed("old_link", old_link, params)
    theirs, new_template, new_grown = _probed("new_link", new_link, params)
    if jax.tree.structure(state) != jax.tree.structure(old_template):
        raise ValueError(
            f"The state is not one of old_link, whose tasks are "
            f"{', '.join(ours.names)}: its structure is {jax.tree.structure(state)}."
        )
    names = dict.fromkeys(ours.names)
    given = {} if renamed is None else dict(renamed)
    unknown = [old for old in given if old not in names]
    unknown += [new for new in given.values() if new not in theirs.names]
    if unknown:
        raise ValueError(f"renamed names no task: {', '.join(unknown)}.")
    now = [given.get(name, name) for name in names]
    stay = [
        (now.index(name), at) for at, name in enumerate(theirs.names) if name in now
    ]
    moves = np.array(stay, int).reshape(-1, 2).T

    start = new_link.init(params)
    old = list(_slots(state, old_template, old_grown, ours))
    new = list(_slots(start, new_template, new_grown, theirs))
    if len(old) != len(new):
        raise ValueError(
            "old_link and new_link differ in more than their tasks: their states have "
            f"{len(old)} and {len(new)} parts."
        )
    parts = [_moved(*pair, moves, ours, theirs) for pair in zip(old, new, strict=True)]
    leaves = [leaf for part in parts for leaf in jax.tree.leaves(part)]
    return jax.tree.structure(start).unflatten(leaves)


def _probed(name: str, link: Any, params: Any) -> tuple[TaskLayout, Any, Any]:
    """The layout of the tasks, and the shapes of a state for them and for one more."""
    # A function of its own each time, or JAX would remember what it found before.
    with probing(grow=False) as probe:
        template = jax.eval_shape(lambda params: link.init(params), params)
    if len(probe.layouts) != 1:
        raise ValueError(
            f"{name} must hold one link that knows its tasks, such as dtp_jax.balance, "
            f"dynamic_task_prioritization or a combiner, got {len(probe.layouts)}."
        )
    with probing(grow=True):
        grown = jax.eval_shape(lambda params: link.init(params), params)
    return probe.layouts[0], template, grown


def _slots(
    state: Any, template: Any, grown: Any, layout: TaskLayout, name: str = ""
) -> Iterator[_Slot]:
    """The parts of a state, by what its `init` makes for one task more."""
    structure, other = jax.tree.structure(template), jax.tree.structure(grown)
    if structure == other:
        leaves = jax.tree_util.tree_flatten_with_path(template)[0]
        values = jax.tree.leaves(state), jax.tree.leaves(grown)
        for (path, one), value, more in zip(leaves, *values, strict=True):
            full = name + jax.tree_util.keystr(path)
            if jnp.shape(value) != one.shape:
                raise ValueError(
                    f"The state{full} has shape {list(jnp.shape(value))}, but one of "
                    f"the tasks {', '.join(layout.names)} has {list(one.shape)}."
                )
            sizes = enumerate(zip(one.shape, more.shape, strict=True))
            axes = tuple(axis for axis, (size, larger) in sizes if size != larger)
            yield _Slot(full, value, axes, False)
    elif structure == layout.treedef:
        yield _Slot(name, value=state, axes=(), of_tasks=True)
    else:
        levels = [_children(node) for node in (state, template, grown)]
        for number, (value, one, more) in enumerate(zip(*levels, strict=True)):
            yield from _slots(value, one, more, layout, f"{name}[{number}]")


def _children(node: Any) -> list[Any]:
    flattened: Any = default_registry.flatten_one_level(node)
    return list(flattened[0])


def _moved(
    old: _Slot, new: _Slot, moves: np.ndarray, ours: TaskLayout, theirs: TaskLayout
) -> Any:
    """The new part with the numbers of the tasks that stay."""
    if old.of_tasks or new.of_tasks:
        before = ours.vector(old.name, old.value, or_vector=True)
        after = theirs.vector(new.name, new.value, or_vector=True)
        after = after.at[moves[1]].set(before[moves[0]].astype(after.dtype))
        return theirs.tree(after) if new.of_tasks else after
    before, after = jnp.asarray(old.value), jnp.asarray(new.value)
    shapes = [list(x.shape) for x in (before, after)]
    others = [
        [size for axis, size in enumerate(shape) if axis not in old.axes]
        for shape in shapes
    ]
    if old.axes != new.axes or others[0] != others[1]:
        raise ValueError(
            f"old_link and new_link differ in more than their tasks: {old.name} has "
            f"shape {shapes[0]}, {new.name} {shapes[1]}."
        )
    if not old.axes:
        return old.value
    of, to = (_index(places, old.axes, after.ndim) for places in moves)
    found = after.at[to].set(before[of].astype(after.dtype))
    return jax.device_put(found, after.sharding) if after.committed else found


def _index(places: np.ndarray, axes: tuple[int, ...], ndim: int) -> tuple[Any, ...]:
    """An index of places on the axes of tasks, each with each, and all on others."""
    crossed = iter(np.ix_(*[places] * len(axes)))
    return tuple(next(crossed) if axis in axes else slice(None) for axis in range(ndim))
