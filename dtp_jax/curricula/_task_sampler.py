"""Drawing tasks over a whole training, by the weights of a balancer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import checked_balancer
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import missing_value, task_layout

from ._sampling import SampledTasks, Sampling, sample_tasks


class TaskSamplerState(NamedTuple):
    """State of a `task_sampler`."""

    weights: jax.Array  # [T], by which tasks are drawn; ones at the start
    losses: jax.Array  # [T], the last one of each task
    counts: jax.Array  # [T], int32, how often each was reported
    balancer: Any


class TaskSampler(NamedTuple):
    """What `task_sampler` returns: three pure functions."""

    init: Callable[[], TaskSamplerState]
    draw: Callable[..., SampledTasks]  # (state, key)
    observe: Callable[..., TaskSamplerState]  # (state, indices, losses=, kpis=)


def task_sampler(
    tasks: Any,
    balancer: optax.GradientTransformation,
    k: int,
    *,
    uniform: jax.typing.ArrayLike = 0.5,
    method: Sampling = "gumbel",
) -> TaskSampler:
    """Draws the tasks of each step by a balancer's weights, which follow what they do.

    For many tasks, environments or sources of data, of which a step takes k: what is
    drawn is loaded and trained, and its losses or KPIs are reported; those of tasks
    that were not drawn stay as they are. The three functions are pure and can be
    jitted; the state is saved and restored as a pytree::

        state = sampler.init()
        drawn = sampler.draw(state, key)          # indices [k], factors [k]
        ...                                       # load and train the drawn tasks
        state = sampler.observe(state, drawn.indices, kpis=found)

    A data pipeline on the host takes ``jax.device_get(drawn.indices)``; to load ahead,
    draw the tasks of later steps from the state of now. Draws are the priority, so that
    losses need no weights; for an unbiased estimate of the weighted sum multiply them
    by ``state.weights[drawn.indices] * drawn.factors``.

    A task that was never reported has the largest weight of all, and comes soon.

    Args:
        tasks: Names, an int T, or an example pytree, as for `dtp_jax.balance`: for the
            order of the tasks, and of what the balancer reads by name.
        balancer: Driven by losses or KPIs, such as ``balancers.focal(alpha=0.2)``:
            averages count reports, which are rare. With a KPI-driven one report KPIs,
            such as the success rate of an environment, with a loss-driven one losses,
            of which the last one of each task is kept.
        k: How many different tasks a step takes, from 1 to T.
        uniform: The share of draws that is uniform over the tasks, in [0, 1].
        method: As for `sample_tasks`.

    Returns:
        The functions ``init()``, ``draw(state, key)`` and ``observe(state, indices, *,
        losses=None, kpis=None, **extra_args)``, where losses and KPIs are ``[k]``, in
        the order of the indices; NaN and None say "not known".

    Raises:
        ValueError: If a number is out of range; from `observe`, if something has not
            the shape of the indices, or the balancer misses what it reads.

    Example:
        >>> from dtp_jax import balancers
        >>> sampler = task_sampler(3, balancers.focal(gamma=1.0), k=1, uniform=0.0)
        >>> state = sampler.init()
        >>> for task, kpi in enumerate([0.9, 0.1, 0.999]):
        ...     state = sampler.observe(state, jnp.array([task]), kpis=jnp.array([kpi]))
        >>> [round(weight, 4) for weight in state.weights.tolist()]
        [0.0105, 2.0723, 0.0]
        >>> sampler.draw(state, jax.random.key(0)).indices.tolist()
        [1]
    """
    layout = task_layout(tasks)
    rule = checked_balancer("balancer", balancer, layout)
    check_whole("k", k, low=1)
    if k > layout.num_tasks:
        raise ValueError(
            f"k must be at most the number of tasks, {layout.num_tasks}, got {k}."
        )
    check_scalar("uniform", uniform, low=0, high=1)

    def init() -> TaskSamplerState:
        ones = jnp.ones((layout.num_tasks,), layout.dtype)
        counts = jnp.zeros((layout.num_tasks,), jnp.int32)
        of_rule = rule.init(layout.full(0.0))
        return TaskSamplerState(ones, jnp.ones_like(ones), counts, of_rule)

    def draw(state: TaskSamplerState, key: jax.Array) -> SampledTasks:
        return sample_tasks(key, state.weights, k, method=method, uniform=uniform)

    def observe(
        state: TaskSamplerState,
        indices: jax.typing.ArrayLike,
        *,
        losses: Any = None,
        kpis: Any = None,
        **extra_args: Any,
    ) -> TaskSamplerState:
        places = jnp.asarray(indices)

        def spread(name: str, values: Any, rest: jax.Array) -> jax.Array:
            found = jnp.asarray(values, layout.dtype)
            if found.shape != places.shape or places.ndim != 1:
                raise ValueError(
                    f"{name} and indices must both be [k], one for each drawn task; "
                    f"got {list(found.shape)} and {list(places.shape)}."
                )
            return rest.at[places].set(found)

        unknown = jnp.full((layout.num_tasks,), missing_value(), layout.dtype)
        now = unknown if losses is None else spread("losses", losses, unknown)
        seen = jnp.isfinite(now)
        kept = jnp.where(seen, now, state.losses)
        if kpis is not None:
            observed = spread("kpis", kpis, unknown)
            seen |= jnp.isfinite(observed)
            extra_args = {**extra_args, "kpis": layout.tree(observed)}
        counts = count_up(state.counts, seen)

        known = counts > 0
        weights, of_rule = rule.update(
            layout.tree(known.astype(layout.dtype)),
            state.balancer,
            layout.tree(jnp.where(known, kept, 1)),
            **extra_args,
        )
        vector = jax.lax.stop_gradient(layout.vector("weights", weights))
        vector = jnp.maximum(jnp.where(known, vector, 0), 0)
        largest = jnp.max(vector)
        vector = jnp.where(known, vector, linalg.positive(largest))
        return TaskSamplerState(vector.astype(layout.dtype), kept, counts, of_rule)

    return TaskSampler(init, draw, observe)
