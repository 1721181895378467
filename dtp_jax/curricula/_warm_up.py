"""Curricula: which tasks take part, and from when on a balancer decides."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import gumbel
from dtp_jax._core.balancer import Balancer, checked_balancer, nonzero, transformation
from dtp_jax._core.checks import check_whole
from dtp_jax._core.layout import TaskLayout, layout_of

# From a step on, the names (or positions) of the active tasks.
Schedule = Mapping[int, Sequence[str | int]]


Sampling = Literal["gumbel", "systematic"]


class SampledTasks(NamedTuple):
    """The tasks drawn for a step."""

    indices: jax.Array  # [k], int32, which tasks
    factors: jax.Array  # [k], by which to multiply their weights


class StagesState(NamedTuple):
    """State of `stages`."""

    step: jax.Array  # [], int32, number of updates so far
    balancer: Any  # the state of the wrapped balancer


class WarmUpState(NamedTuple):
    """State of `warm_up`."""

    active_steps: jax.Array  # [T], int32
    balancer: Any  # the state of the wrapped balancer


class EveryKState(NamedTuple):
    """State of `every_k`."""

    step: jax.Array  # [], int32, number of updates so far
    weights: jax.Array  # [T], those of the last refresh
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


def warm_up(
    balancer: optax.GradientTransformation, num_steps: jax.typing.ArrayLike
) -> Balancer:
    """Lets each task train with its preference as weight for its first steps.

    A KPI of an untrained network says nothing, so for the first `num_steps` steps in
    which a task is active (has a positive preference) its weight is its preference. The
    balancer's state learns meanwhile.

    Args:
        balancer: The balancer to wrap.
        num_steps: The number of steps, counted for each task on its own, at least 0.

    Returns:
        A balancer.

    Raises:
        ValueError: If `num_steps` is a negative number or a float.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> balancer = warm_up(optax.scale(5.0), 1)
        >>> state = balancer.init(jnp.ones(2))
        >>> weights, state = balancer.update(jnp.array([1.0, 0.0]), state)
        >>> weights.tolist()
        [1.0, 0.0]
        >>> weights, state = balancer.update(jnp.array([1.0, 1.0]), state)
        >>> weights.tolist()
        [5.0, 1.0]
    """
    check_whole("num_steps", num_steps)
    balancer = checked_balancer("balancer", balancer)

    def init(params: Any) -> WarmUpState:
        active_steps = jnp.zeros((layout_of(params).num_tasks,), jnp.int32)
        return WarmUpState(active_steps, balancer.init(params))

    def update(
        updates: Any, state: WarmUpState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WarmUpState]:
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        weights, balancer_state = balancer.update(
            updates, state.balancer, params, **extra_args
        )
        weights = layout.vector("weights", weights)
        steps, active = state.active_steps, preferences > 0
        weights = jnp.where(active & (steps < num_steps), preferences, weights)
        steps = jnp.where(active, optax.safe_increment(steps), steps)
        return layout.tree(weights), WarmUpState(steps, balancer_state)

    return transformation(init, update)


def every_k(
    balancer: optax.GradientTransformation, k: jax.typing.ArrayLike
) -> Balancer:
    """Asks a balancer for weights on every k-th step, and keeps them in between.

    The balancer runs on steps 0, k, 2k and so on, in a `jax.lax.cond`: the Gramian, and
    the T backward passes that it takes, are computed on these steps only. In between a
    step costs what a fixed weighted sum costs. The weights are then those of the last
    refresh, whatever the preferences are now, with two exceptions: a task that is not
    active now has weight zero, and one that was not active at the refresh has its
    preference as its weight until the next.

    What the balancer remembers, such as averages of KPIs, learns at the refreshes only.
    Keep cheap balancers with a memory outside: ``optax.chain(focal(), every_k(mgda(),
    10))``.

    Under `jax.vmap` with a state of its own for each element the `cond` becomes a
    select that computes both: right, but it saves nothing.

    Args:
        balancer: The balancer to wrap.
        k: The number of steps from one refresh to the next, at least 1. With 1 the
            balancer decides every step.

    Returns:
        A balancer.

    Raises:
        ValueError: If `k` is a float or less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> from dtp_jax.balancers import mgda
        >>> balancer, ones = every_k(mgda(), 2), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for scale in (1.0, 2.0, 2.0):
        ...     rows = jnp.array([[1.0, 0.0], [0.0, scale]])
        ...     gradients = TaskGradients.from_stacked(rows)
        ...     weights, state = balancer.update(ones, state, task_gradients=gradients)
        ...     print([round(weight, 4) for weight in weights.tolist()])
        [0.5, 0.5]
        [0.5, 0.5]
        [0.8, 0.2]
    """
    check_whole("k", k, low=1)
    balancer = checked_balancer("balancer", balancer)

    def init(params: Any) -> EveryKState:
        layout = layout_of(params)
        weights = jnp.zeros((layout.num_tasks,), layout.dtype)
        return EveryKState(jnp.zeros((), jnp.int32), weights, balancer.init(params))

    def update(
        updates: Any, state: EveryKState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, EveryKState]:
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)

        def refresh() -> tuple[jax.Array, Any]:
            found, balancer_state = balancer.update(
                updates, state.balancer, params, **extra_args
            )
            # From here on a weight of zero means "not active at the refresh".
            weights = nonzero(layout.vector("weights", found), preferences)
            return weights.astype(state.weights.dtype), balancer_state

        stored, balancer_state = jax.lax.cond(
            state.step % k == 0, refresh, lambda: (state.weights, state.balancer)
        )
        weights = jnp.where(stored == 0, preferences, stored)
        weights = jnp.where(preferences > 0, weights, 0)
        step = jnp.asarray(optax.safe_increment(state.step))
        return layout.tree(weights), EveryKState(step, stored, balancer_state)

    return transformation(init, update)


def sample_tasks(
    key: jax.Array,
    weights: jax.typing.ArrayLike,
    k: int,
    *,
    method: Sampling = "gumbel",
) -> SampledTasks:
    """Draws k of T tasks by priority, so that many can be trained a few at a time.

    The tasks are different, and the more likely the larger their weight. The factors
    make up for the tasks left out: the expectation of ``sum_i factors[i]
    weights[indices[i]] g[indices[i]]`` is ``sum_t weights[t] g[t]``, whatever g. Train
    on the drawn tasks only; the others then cost no forward and no backward pass. For
    weights that need no gradient, that is KPI- or loss-driven ones.

    "gumbel" draws one after the other without replacement (Gumbel top-k). With kappa
    the (k+1)-th largest perturbed log-weight, -inf for k = T, the factor is ``1 / (1 -
    exp(-exp(log w - kappa)))``. "systematic" includes each task with a probability of
    exactly ``min(1, c w)``, where c makes them sum to k, and has the inverse
    probability as factor. Its variance is lower; some pairs of tasks may be unlikely to
    meet, which a random order of the tasks in each draw evens out.

    Args:
        key: A PRNG key. The same key decides the same on every device.
        weights: ``[T]``, finite and at least 0, of any scale. A task of weight zero is
            drawn only if there are not k others, and then has the factor zero.
        k: How many tasks to draw, from 1 to T.
        method: "gumbel" or "systematic".

    Returns:
        Indices ``[k]`` and factors ``[k]``, at least 1 (or 0 as said above).

    Raises:
        ValueError: If k is not from 1 to T, the weights are not one array, or `method`
            is unknown.

    Example:
        >>> import jax
        >>> drawn = sample_tasks(jax.random.key(0), jnp.array([3.0, 1.0, 2.0]), 3)
        >>> sorted(drawn.indices.tolist()), drawn.factors.tolist()
        ([0, 1, 2], [1.0, 1.0, 1.0])

    References:
        Kool, van Hoof, Welling, "Estimating Gradients for Discrete Random Variables by
        Sampling without Replacement", ICLR 2020; Vieira, "Estimating means in a finite
        universe", 2017; Madow, "On the theory of systematic sampling", 1949.
    """
    weights = jnp.asarray(weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must have shape [T], got {list(weights.shape)}.")
    num_tasks = weights.shape[0]
    check_whole("k", k, low=1)
    if k > num_tasks:
        raise ValueError(
            f"k must be at most the number of tasks, {num_tasks}, got {k}."
        )
    if method not in get_args(Sampling):
        raise ValueError(f"method must be one of {get_args(Sampling)}, got {method!r}.")
    weights = weights.astype(jnp.promote_types(jnp.float32, weights.dtype))
    weights = jnp.where(weights > 0, weights, 0)
    draw = _draw_gumbel if method == "gumbel" else _draw_systematic
    indices, probabilities = draw(key, weights, k)
    drawn = weights[indices] > 0
    factors = jnp.where(drawn, 1 / jnp.where(drawn, probabilities, 1), 0)
    return SampledTasks(indices.astype(jnp.int32), factors)


def _draw_gumbel(
    key: jax.Array, weights: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    log_weights = jnp.log(weights)
    perturbed = gumbel.perturbed_logits(key, log_weights)
    largest, order = jax.lax.top_k(perturbed, min(k + 1, weights.shape[0]))
    indices = order[:k]
    kappa = largest[k] if k < weights.shape[0] else -jnp.inf
    return indices, -jnp.expm1(-jnp.exp(log_weights[indices] - kappa))


def _draw_systematic(
    key: jax.Array, weights: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    num_tasks = weights.shape[0]
    order_key, start_key = jax.random.split(key)
    order = jax.random.permutation(order_key, num_tasks)
    probabilities = _inclusion_probabilities(weights, k)
    ends = jnp.cumsum(probabilities[order])
    # One point in each unit interval; rounding must not push the last beyond the end.
    start = jax.random.uniform(start_key, (), ends.dtype)
    points = (start + jnp.arange(k)) * (ends[-1] / k)
    places = jnp.searchsorted(ends, points, side="right")
    # No probability exceeds one, so the places differ, up to rounding.
    steps = jnp.arange(k)
    places = jax.lax.cummax(places - steps) + steps
    indices = order[jnp.minimum(places, num_tasks - k + steps)]
    return indices, probabilities[indices]


def _inclusion_probabilities(weights: jax.Array, k: int) -> jax.Array:
    """``min(1, c w)`` with the c for which they sum to k."""
    num_tasks = weights.shape[0]
    order = jnp.argsort(-weights)
    largest = weights[order[0]]
    ordered = weights[order] / jnp.where(largest > 0, largest, 1)
    # If the j largest are certain, the others share k - j in proportion. The right j is
    # the smallest for which none of the others exceeds one.
    rest = jnp.cumsum(ordered[::-1])[::-1]
    certain = jnp.arange(num_tasks)
    left = jnp.maximum(k - certain, 0)
    fits = ordered * left <= rest
    j = jnp.argmax(fits)
    scale = left[j] / jnp.where(rest[j] > 0, rest[j], 1)
    found = jnp.where(certain < j, 1.0, jnp.minimum(ordered * scale, 1.0))
    return jnp.zeros_like(weights).at[order].set(found)


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
