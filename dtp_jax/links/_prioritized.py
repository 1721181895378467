"""The balancer of the headline method: one state, whatever the settings."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import curricula
from dtp_jax._core import linalg
from dtp_jax._core.balancer import (
    SMALLEST_WEIGHT,
    Balancer,
    nonzero,
    transformation,
)
from dtp_jax._core.checks import known_number
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import TaskLayout, layout_of, missing_value, per_task
from dtp_jax._core.reads import required
from dtp_jax.balancers.on_weights._normalize_weights import Total
from dtp_jax.curricula._stages import blend, ramp, timetable
from dtp_jax.kpi import KpiState, focal_weights, init_kpis, update_kpis
from dtp_jax.metrics._relative import check_range, unclipped

# A task at the reference of its range would have the weight zero; see
# `dtp_jax.metrics.relative`.
_CAP = 0.99


class PrioritizationState(NamedTuple):
    """State of `dynamic_task_prioritization`, in ``[T]`` vectors."""

    step: jax.Array  # [], int32, number of updates so far
    active_steps: jax.Array  # [T], int32, in which the task was active since it joined
    kpis: KpiState  # mean [T] and count [T]
    lowest: jax.Array  # [T], the smallest KPI that came, inf before the first
    highest: jax.Array  # [T], the largest, -inf before the first
    at_end: jax.Array  # [T], int32, observations in a row at 0 or at the largest value
    balancer: Any  # the state of the conflict-aware balancer


class Settings(NamedTuple):
    """What `dynamic_task_prioritization` was given; see there."""

    gamma: Any
    alpha: Any
    kpi_min: Any
    warmup_steps: Any
    stages: curricula.Schedule | None
    ramp_steps: Any
    kpi_range: Mapping[Any, Any] | None
    normalize: Total | None
    floor: Any


def prioritized(
    layout: TaskLayout, settings: Settings, last: Balancer | None
) -> Balancer:
    """Focal weights, then warm-up, normalization, floor, `last`, and the ramp.

    Args:
        layout: The layout of the tasks.
        settings: The arguments of `dynamic_task_prioritization`.
        last: A balancer that has the last word, or None.

    Returns:
        A balancer that reads the extra argument `kpis`, mapped by `unclipped` where
        there is a range.
    """
    ranged = np.array([name in _ranges(settings, layout) for name in layout.names])

    def init(params: Any) -> PrioritizationState:
        shape = (layout_of(params).num_tasks,)
        # Each field has an array of its own, or donating the state fails.
        return PrioritizationState(
            step=jnp.zeros((), jnp.int32),
            active_steps=jnp.zeros(shape, jnp.int32),
            kpis=init_kpis(jnp.zeros(shape, layout.dtype)),
            lowest=jnp.full(shape, jnp.inf, layout.dtype),
            highest=jnp.full(shape, -jnp.inf, layout.dtype),
            at_end=jnp.zeros(shape, jnp.int32),
            balancer=optax.EmptyState() if last is None else last.init(params),
        )

    def update(
        updates: Any,
        state: PrioritizationState,
        params: Any = None,
        *,
        kpis: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, PrioritizationState]:
        found = layout_of(updates)
        how = "pass kpis={task: value in [0, 1], or None where not observed} to update"
        observed = found.vector(
            "kpis", required(kpis, "kpis", "dynamic_task_prioritization", how)
        )
        known = jnp.isfinite(observed)
        largest = jnp.where(ranged, _CAP, 1)
        inside = jnp.clip(jnp.where(known, observed, 0), 0, largest)
        averaged = jax.lax.stop_gradient(
            update_kpis(
                state.kpis, jnp.where(known, inside, missing_value()), settings.alpha
            )
        )
        seen = jnp.where(ranged, inside, observed)
        ends = (inside <= 0) | (inside >= largest)
        stood = jnp.where(ends, count_up(state.at_end), 0)

        preferences = found.vector("preferences", updates)
        steps, started, entrance = state.active_steps, None, 1.0
        if settings.stages is not None:
            table = timetable(settings.stages, found)
            stage = table.stage(state.step)
            present = jnp.asarray(table.active)[stage]
            preferences = jnp.where(present, preferences, 0)
            # A task that left and comes back has joined anew.
            steps = jnp.where(present, steps, 0)
            second = table.second_stage()
            started = -1 if second is None else state.step - second
            entrance = table.entrance(
                state.step, settings.ramp_steps, preferences.dtype
            )
        active = preferences > 0

        gammas = per_task("gamma", settings.gamma, found)
        focal = focal_weights(averaged.mean, gammas, kpi_min=settings.kpi_min)
        focal = preferences * jnp.where(averaged.count > 0, focal, 1)
        since = steps - settings.warmup_steps
        since = since if started is None else jnp.minimum(since, started)
        share = ramp(since, settings.ramp_steps, preferences.dtype)
        weights = nonzero(blend(preferences, focal, share), preferences)
        weights, scale = _normalized(weights, active, settings)
        weights = _floored(weights, active, settings.floor)
        last_state = state.balancer
        if last is not None:
            given, last_state = last.update(
                found.tree(weights), last_state, params, **extra_args
            )
            weights = found.vector("weights", given)
        weights = weights * scale * entrance
        new = PrioritizationState(
            step=count_up(state.step),
            active_steps=count_up(steps, active),
            kpis=averaged,
            lowest=jnp.where(known, jnp.minimum(state.lowest, seen), state.lowest),
            highest=jnp.where(known, jnp.maximum(state.highest, seen), state.highest),
            at_end=jnp.where(known, stood, state.at_end),
            balancer=last_state,
        )
        return found.tree(jnp.where(active, weights, 0)), new

    return transformation(init, update)


def mapped_kpis(kpis: Any, settings: Settings, layout: TaskLayout) -> Any:
    """Maps the KPIs of tasks that have a range to the share of the way through it.

    Args:
        kpis: What the step supplied.
        settings: The arguments of `dynamic_task_prioritization`.
        layout: The layout of the tasks.

    Returns:
        A pytree like the tasks; where no task of a leaf has a range it is as it came.

    Raises:
        ValueError: If the KPIs do not match the tasks.
    """
    ranges = _ranges(settings, layout)
    if kpis is None or not ranges:
        return kpis
    layout.check("kpis", kpis)
    raw = layout.vector("kpis", kpis)
    pairs = zip(raw, [ranges.get(name) for name in layout.names], strict=True)
    mapped = [kpi if ends is None else unclipped(kpi, *ends) for kpi, ends in pairs]
    tree = layout.tree(jnp.stack(mapped).astype(layout.dtype))
    if jax.tree_util.treedef_is_leaf(layout.treedef):
        return tree
    # What has no range stays as it came, so that numbers out of [0, 1] are an error.
    leaves = jax.tree.leaves(kpis, is_leaf=lambda leaf: leaf is None)
    names, found = iter(layout.names), []
    for leaf, new, size in zip(
        leaves, jax.tree.leaves(tree), layout.sizes, strict=True
    ):
        has_range = [next(names) in ranges for _ in range(size)]
        found.append(new if any(has_range) else leaf)
    return layout.treedef.unflatten(found)


def check_ranges(kpi_range: Any, layout: TaskLayout) -> None:
    """Checks the ranges of KPIs against the tasks.

    Args:
        kpi_range: As for `dynamic_task_prioritization`.
        layout: The layout of the tasks.

    Raises:
        ValueError: If it is no dict, names an unknown task, or a range is no pair of
            different finite numbers.
    """
    if not isinstance(kpi_range, Mapping):
        raise ValueError(
            "kpi_range must be a dict from tasks to (chance, reference), what guessing "
            f"scores and what a good result is; got {kpi_range!r}."
        )
    for task, ends in kpi_range.items():
        layout.position("kpi_range", task)
        if not isinstance(ends, (tuple, list)) or len(ends) != 2:
            raise ValueError(
                f"kpi_range[{task!r}] must be a pair (chance, reference), got {ends!r}."
            )
        check_range(f"kpi_range[{task!r}]", *ends)


def state_from_version_0_1(old: Any, new: Any) -> Any:
    """Takes a state of the link that version 0.1 made over into one of today.

    Steps, averaged KPIs and the state of a conflict-aware balancer go along; what the
    old state did not hold starts anew.

    Args:
        old: The state of `dynamic_task_prioritization` in version 0.1, the first of the
            optimizer's chain, restored with that version's structure.
        new: ``dynamic_task_prioritization(...).init(params)`` of today.

    Returns:
        The state of today, to be put in the place of `new`.

    Raises:
        ValueError: If `old` holds no KPIs, or of other tasks.

    Example:
        >>> import dtp_jax
        >>> from dtp_jax import balance, balancers, curricula
        >>> focal = curricula.warm_up(balancers.focal(alpha=0.75), 100)
        >>> old = balance(optax.chain(focal), ["a", "b"]).init(None)  # as in 0.1
        >>> new = dtp_jax.dynamic_task_prioritization(["a", "b"]).init(None)
        >>> state = state_from_version_0_1(old, new)
        >>> type(state.balancer).__name__, state.balancer.kpis.mean.shape
        ('PrioritizationState', (2,))
    """
    kpis = optax.tree.get(old, "kpis")
    if kpis is None or jnp.shape(kpis.mean) != new.balancer.kpis.mean.shape:
        raise ValueError(
            "The old state holds no KPIs of these tasks: give the state of the link, "
            "not of the whole optimizer, and a new one made for the same tasks."
        )
    active_steps = optax.tree.get(old, "active_steps")
    step = optax.tree.get(old.balancer[0], "step")
    links = old.balancer[1:]
    last = [link for link in links if not isinstance(link, optax.EmptyState)]
    state = new.balancer._replace(
        step=jnp.max(active_steps) if step is None else step,
        active_steps=active_steps,
        kpis=KpiState(*kpis),
        balancer=last[-1] if last else new.balancer.balancer,
    )
    return new._replace(task_weights=old.task_weights, balancer=state)


def _ranges(settings: Settings, layout: TaskLayout) -> dict[str, Any]:
    names = layout.names
    given = settings.kpi_range or {}
    return {names[layout.position("kpi_range", task)]: given[task] for task in given}


def _normalized(
    weights: jax.Array, active: jax.Array, settings: Settings
) -> tuple[jax.Array, Any]:
    """Weights of mean one, and what the answer is to be multiplied by.

    Rules of conflicting gradients are defined for preferences of one. Some, as `mgda`,
    grow without bound as all preferences shrink, so that these always have mean one.
    """
    count = jnp.maximum(jnp.sum(active), 1)
    mean = jnp.sum(weights) / count
    scaled = weights / linalg.positive(mean)
    scaled = jnp.where(active, jnp.maximum(scaled, SMALLEST_WEIGHT), 0)
    scales = {None: mean, "sum_to_T": 1, "sum_to_1": 1 / count}
    return scaled, scales[settings.normalize]


def _floored(weights: jax.Array, active: jax.Array, floor: Any) -> jax.Array:
    """Weights of mean one mixed with one, so that the sum is kept."""
    return jnp.where(active, floor + (1 - floor) * weights, 0)


def check_normalize(normalize: Any, floor: Any) -> None:
    """Checks what the weights sum to, and that there is a sum for a floor.

    Args:
        normalize: As for `dynamic_task_prioritization`.
        floor: As for `dynamic_task_prioritization`.

    Raises:
        ValueError: If `normalize` is unknown, or a floor is given without it.
    """
    if normalize is not None and normalize not in get_args(Total):
        raise ValueError(
            f"normalize must be None, 'sum_to_T' or 'sum_to_1', got {normalize!r}."
        )
    if normalize is None and known_number(floor):
        raise ValueError(
            "floor mixes the weights with their mean, which normalize=None leaves to "
            'shrink with them: use normalize="sum_to_T", or optax.chain('
            "balancers.focal(), balancers.floor(...)) for weights of a least size."
        )
