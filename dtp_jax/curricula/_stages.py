"""Tasks that join and leave from stage to stage."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax._core.balancer import Balancer, checked_balancer, transformation
from dtp_jax._core.layout import TaskLayout, layout_of

# From a step on, the names (or positions) of the active tasks.
Schedule = Mapping[int, Sequence[str | int]]


class StagesState(NamedTuple):
    """State of `stages`."""

    step: jax.Array  # [], int32, number of updates so far
    balancer: Any  # the state of the wrapped balancer


def stages(schedule: Schedule, balancer: optax.GradientTransformation) -> Balancer:
    """Trains in stages: tasks join, or leave, at given steps.

    A task that is not active has weight exactly zero and no influence on the others. In
    the first stage the weights are the preferences (ones, unless chained); from the
    second stage on they are those of the balancer, whose state learns from the start. A
    schedule of one stage never comes to that.

    Args:
        schedule: From a step on, the active tasks: ``{0: ["a"], 1000: ["a", "b"]}``,
            steps increasing from 0. Tasks are named by their path in the pytree of the
            losses, or by their position in the order of `jax.tree.leaves`.
        balancer: The balancer to wrap.

    Returns:
        A balancer.

    Raises:
        ValueError: If the steps do not increase from 0, a stage has no task, or names
            an unknown one (from `init`, which sees the tasks).

    Example:
        >>> import jax.numpy as jnp, optax
        >>> balancer = stages({0: [0], 1: [0, 1]}, optax.scale(5.0))
        >>> ones = jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> weights, state = balancer.update(ones, state, ones)
        >>> weights.tolist()
        [1.0, 0.0]
        >>> weights, state = balancer.update(ones, state, ones)
        >>> weights.tolist()
        [5.0, 5.0]
    """
    first_steps, members = _checked_schedule(schedule)
    balancer = checked_balancer("balancer", balancer)

    def init(params: Any) -> StagesState:
        _active_table(members, layout_of(params))
        return StagesState(jnp.zeros((), jnp.int32), balancer.init(params))

    def update(
        updates: Any, state: StagesState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, StagesState]:
        layout = layout_of(updates)
        stage = jnp.searchsorted(first_steps, state.step, side="right") - 1
        active = jnp.asarray(_active_table(members, layout))[stage]
        preferences = jnp.where(active, layout.vector("preferences", updates), 0)
        weights, balancer_state = balancer.update(
            layout.tree(preferences), state.balancer, params, **extra_args
        )
        weights = jnp.where(stage == 0, preferences, layout.vector("weights", weights))
        # A balancer that remembers, such as `optax.ema`, must not revive a task.
        weights = jnp.where(preferences > 0, weights, 0)
        step = jnp.asarray(optax.safe_increment(state.step))
        return layout.tree(weights), StagesState(step, balancer_state)

    return transformation(init, update)


def check_stages(schedule: Schedule, layout: TaskLayout) -> None:
    """Checks a schedule of stages against the tasks.

    Args:
        schedule: As for `stages`.
        layout: The layout of the tasks.

    Raises:
        ValueError: If the schedule is wrong or names an unknown task.
    """
    _, members = _checked_schedule(schedule)
    _active_table(members, layout)


def _checked_schedule(
    schedule: Schedule,
) -> tuple[np.ndarray, list[Sequence[str | int]]]:
    if not isinstance(schedule, Mapping) or not schedule:
        raise ValueError(
            "stages must be a dict from first steps to lists of tasks, such as "
            f"{{0: ['a'], 1000: ['a', 'b']}}; got {schedule!r}."
        )
    steps = list(schedule)
    whole = all(isinstance(s, (int, np.integer)) and 0 <= s < 2**31 for s in steps)
    if not whole or steps[0] != 0 or steps != sorted(steps):
        raise ValueError(
            "The steps of stages must be whole numbers that start at 0 and increase, "
            f"got {steps}."
        )
    for step, names in schedule.items():
        listed = isinstance(names, Collection) and not isinstance(names, str)
        if not listed or not len(names):
            raise ValueError(
                f"stages[{step}] must be a list of at least one task, got {names!r}."
            )
    return np.array(steps, np.int32), list(schedule.values())


def _active_table(members: list[Sequence[str | int]], layout: TaskLayout) -> np.ndarray:
    names = layout.names
    table = np.zeros((len(members), layout.num_tasks), bool)
    for stage, tasks in enumerate(members):
        for task in tasks:
            if isinstance(task, str) and task in names:
                table[stage, names.index(task)] = True
            elif isinstance(task, (int, np.integer)) and 0 <= task < layout.num_tasks:
                table[stage, task] = True
            else:
                raise ValueError(
                    f"stages names the unknown task {task!r}. The tasks are "
                    f"{', '.join(names)}."
                )
    return table
