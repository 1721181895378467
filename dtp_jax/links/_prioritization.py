"""The ready-made method: focal weights with warm-up, stages and a seam for others."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from dtp_jax import curricula
from dtp_jax._core.balancer import Balancer, checked_balancer, link
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.layout import check_per_task, task_layout
from dtp_jax.balancers.on_weights._normalize_weights import Total
from dtp_jax.kpi import check_gamma

from ._balance import BalanceState, balance
from ._prioritized import (
    Settings,
    check_normalize,
    check_ranges,
    mapped_kpis,
    prioritized,
)


def dynamic_task_prioritization(
    tasks: Any,
    *,
    gamma: Any = 2.0,
    alpha: jax.typing.ArrayLike = 0.05,
    kpi_min: jax.typing.ArrayLike = 0.01,
    warmup_steps: jax.typing.ArrayLike = 100,
    stages: curricula.Schedule | None = None,
    ramp_steps: jax.typing.ArrayLike = 400,
    kpi_range: Mapping[Any, tuple[Any, Any]] | None = None,
    normalize: Total | None = "sum_to_T",
    floor: jax.typing.ArrayLike = 0.0,
    balancer: optax.GradientTransformation | None = None,
    guard: bool = False,
) -> Balancer:
    """Dynamic Task Prioritization: tasks that do badly lead, those that do well wait.

    Every task has a KPI in [0, 1], **higher is better**, averaged with momentum, ``mean
    = alpha * kpi + (1 - alpha) * mean``, and the weight ``-(1 - mean)**gamma *
    log(mean)``. Put the link first in a chain and pass the KPIs of the step::

        tx = optax.chain(dynamic_task_prioritization(["a", "b"]), optax.adam(1e-3))
        updates, state = tx.update(task_gradients, state, params, kpis=kpis)

    A step costs what a fixed weighted sum of the losses costs. The weights are made in
    this order: focal, warm-up, normalize, floor, `balancer`, ramp.

    The weights sum to the number of active tasks, so that they say how tasks share the
    gradient and leave its size alone. The paper's own weights shrink as the tasks
    improve and jump when a KPI falls; Adam, whose second moment remembers hundreds of
    steps, then takes steps that are too small for long and some that are far too large.
    ``normalize=None, gamma=1.0, alpha=0.75`` are the paper's weights as they are; with
    them, and with tasks that join, a shorter memory helps, ``optax.adam(rate,
    b2=0.95)``. docs/dtp.md has what was measured.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        gamma: How fast a task is discounted as it does better, at least 0; a scalar, or
            a pytree like the tasks. A dial: 0 to 1 for the best average, 2 and more for
            the worst task. The paper's headline runs use 1, which won its ablation.
        alpha: The weight of the new KPI in the average, in [0, 1], counted in
            observations: a step without a KPI does not count. 0.05 is for KPIs of every
            batch. Where they are rare, as of validation data or sampled tasks, take 0.2
            to 0.75, the paper's value, which belongs to KPIs of whole epochs.
        kpi_min: Bounds the weights where a KPI is near 0; in (0, 1). The paper gives no
            value; 0.01 bounds them by 4.6.
        warmup_steps: For so many steps since it became active a task has weight 1 while
            its KPI averages: the KPI of an untrained network says nothing.
        stages: From a step on, the active tasks: ``{0: ["a"], 1000: ["a", "b"]}``. A
            task that is not active has weight zero and no influence. In the first stage
            all weights are 1; focal weights start with the second. Hard tasks first is
            the better order. None: all tasks are active and focal from the start.
        ramp_steps: Over how many steps a task that joins in a later stage comes in, its
            weight multiplied last by ``min(1, (s + 1) / ramp_steps)``, s the steps
            since it became active; and over how many a task that leaves its warm-up, or
            the first stage, moves in even steps from weight 1 to its focal weight,
            before both are normalized: as focal weights of good tasks are small, most
            of the way comes last. 0 for at once. With the defaults weights are focal
            after 500 steps: shorten both for a short training.
        kpi_range: For some or all tasks, ``{task: (chance, reference)}``: what guessing
            scores, and what a good result is, such as that of a network of its own.
            The KPI becomes ``(kpi - chance) / (reference - chance)``, at least 0 and at
            most 0.99, and need not lie in [0, 1] itself; with ``reference < chance``
            lower is better. Tasks are compared by their KPIs, so their scales decide;
            `dtp_jax.metrics.relative` is the same as a function.
        normalize: "sum_to_T", scaled so that the weights sum to the number of active
            tasks; "sum_to_1"; None, the paper's weights as they are. Tasks that are all
            solved get equal weights.
        floor: In [0, 1], the share of equal weights in the mix ``floor * m + (1 -
            floor) * w``, with m the mean weight of the active tasks: the sum is kept,
            and 1 gives equal weights. (`balancers.floor` is another thing, ``max(w,
            m)`` with a number m, which lets the sum grow.)
        balancer: A conflict-aware balancer that takes the focal weights as its
            preferences, scaled to mean 1 whatever `normalize` is, since its rule is
            defined for preferences of one. Its weights are multiplied by what
            `normalize` makes of that mean: 1, 1/T, or for None the mean itself.
        guard: Whether a step whose gradient is not finite is taken again without the
            tasks at fault; see `balance`.

    Returns:
        A gradient transformation; see `balance` for what its `update` takes and what
        its state holds. The structure of the state depends on the tasks and `balancer`
        only: a run may be resumed with other settings.
        `dtp_jax.links.state_from_version_0_1` converts older states.

    Raises:
        ValueError: If an argument is out of range or names an unknown task; from
            `update`, if there are no KPIs or something does not match the tasks.

    Example:
        Both tasks are warm, and ``-log(0.5) / 4 = 0.1733``, ``-log(0.9) / 100 =
        0.00105`` are scaled to the sum 2:

        >>> import jax.numpy as jnp
        >>> from dtp_jax import task_gradients
        >>> losses_fn = lambda w: {"a": (w - 1.0) ** 2, "b": (w + 1.0) ** 2}
        >>> tx = dynamic_task_prioritization(["a", "b"], warmup_steps=0, ramp_steps=0)
        >>> params = jnp.array(0.0)
        >>> kpis = {"a": 0.5, "b": 0.9}
        >>> gradients = task_gradients(losses_fn)(params)
        >>> updates, state = tx.update(gradients, tx.init(params), params, kpis=kpis)
        >>> round(state.task_weights["a"].item(), 4), round(updates.item(), 4)
        (1.9879, -3.9517)

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018. Not
        in the paper: normalization, floor, ranges, stages, ramps and the warm-up.
    """
    layout = task_layout(tasks)
    check_gamma(gamma)
    check_per_task("gamma", gamma, layout)
    check_scalar("alpha", alpha, low=0, high=1)
    check_scalar("kpi_min", kpi_min, low=0, high=1, open_low=True, open_high=True)
    check_whole("warmup_steps", warmup_steps)
    check_whole("ramp_steps", ramp_steps)
    check_scalar("floor", floor, low=0, high=1)
    check_normalize(normalize, floor)
    if stages is not None:
        curricula.check_stages(stages, layout)
    if kpi_range is not None:
        check_ranges(kpi_range, layout)
    last = None if balancer is None else checked_balancer("balancer", balancer, layout)
    settings = Settings(
        gamma=gamma,
        alpha=alpha,
        kpi_min=kpi_min,
        warmup_steps=warmup_steps,
        stages=stages,
        ramp_steps=ramp_steps,
        kpi_range=kpi_range,
        normalize=normalize,
        floor=floor,
    )
    balanced = balance(prioritized(layout, settings, last), tasks, guard=guard)

    def update(
        updates: Any,
        state: BalanceState,
        params: Any = None,
        *,
        kpis: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        # Before anything looks whether they lie in [0, 1].
        kpis = mapped_kpis(kpis, settings, layout)
        return balanced.update(updates, state, params, kpis=kpis, **extra_args)

    return link(balanced.init, update)
