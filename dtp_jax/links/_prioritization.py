"""The ready-made method: focal weights with warm-up, stages and a seam for others."""

from typing import Any, get_args

import jax
import optax

from dtp_jax import balancers, curricula
from dtp_jax._core.balancer import Balancer, checked_balancer
from dtp_jax._core.checks import check_whole
from dtp_jax._core.layout import check_per_task, task_layout
from dtp_jax.balancers.on_weights._normalize_weights import Total
from dtp_jax.links._balance import balance


def dynamic_task_prioritization(
    tasks: Any,
    *,
    gamma: Any = 2.0,
    alpha: jax.typing.ArrayLike = 0.75,
    kpi_min: jax.typing.ArrayLike = 0.01,
    warmup_steps: jax.typing.ArrayLike = 100,
    stages: curricula.Schedule | None = None,
    normalize: Total | None = None,
    balancer: optax.GradientTransformation | None = None,
) -> Balancer:
    """Dynamic Task Prioritization: tasks that do badly lead, those that do well wait.

    Every task has a KPI in [0, 1], averaged with momentum, ``mean = alpha * kpi + (1 -
    alpha) * mean``, and the weight ``-(1 - mean)**gamma * log(mean)``. Put the link
    first in a chain and pass the KPIs of the step::

        tx = optax.chain(dynamic_task_prioritization(["a", "b"]), optax.adam(1e-3))
        updates, state = tx.update(task_gradients, state, params, kpis=kpis)

    A step costs what a fixed weighted sum of the losses costs. The paper's weights
    scale the gradient as a whole, too: they shrink as the tasks improve and jump when a
    KPI drops. Adam divides by the size of past gradients and then takes steps that are
    far too large. With Adam and the like, and with plain SGD at a tuned learning rate,
    use ``normalize="sum_to_T"``. KPIs of small batches are noisy: a smaller `alpha`
    averages over more of them.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        gamma: How fast a task is discounted as it does better, at least 0; a scalar or
            a pytree like the tasks. The default 2 is the usual focal value;
            the paper's headline runs use 1, which won its ablation.
        alpha: The weight of the new KPI in the average, in [0, 1].
        kpi_min: Bounds the weights where a KPI is near 0; in (0, 1). The paper gives no
            value; 0.01 bounds them by 4.6.
        warmup_steps: For so many steps since it became active a task has weight 1 while
            its KPI averages: the KPI of an untrained network says nothing.
        stages: From a step on, the active tasks: ``{0: ["a"], 1000: ["a", "b"]}``. A
            task that is not active has weight zero and no influence. In the first stage
            all weights are 1; focal weights start with the second. None: all tasks are
            active and focal from the start.
        normalize: None, the paper's weights as they are; "sum_to_T", scaled so that
            they sum to the number of active tasks; "sum_to_1". Tasks that are all
            solved then get equal weights.
        balancer: A conflict-aware balancer that takes the focal weights as its
            preferences and has the last word.

    Returns:
        A gradient transformation; see `balance` for what its `update` takes and what
        its state holds.

    Raises:
        ValueError: If an argument is out of range or names an unknown task; from
            `update`, if there are no KPIs or something does not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import task_gradients
        >>> losses_fn = lambda w: {"a": (w - 1.0) ** 2, "b": (w + 1.0) ** 2}
        >>> tx = dynamic_task_prioritization(["a", "b"], warmup_steps=0)
        >>> params = jnp.array(0.0)
        >>> kpis = {"a": 0.5, "b": 0.9}
        >>> gradients = task_gradients(losses_fn)(params)
        >>> updates, state = tx.update(gradients, tx.init(params), params, kpis=kpis)
        >>> round(state.task_weights["a"].item(), 4), round(updates.item(), 4)
        (0.1733, -0.3445)

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018. Not
        in the paper: the stages and the warm-up, which are common advice for focal
        weights of tasks that start badly.
    """
    layout = task_layout(tasks)
    check_whole("warmup_steps", warmup_steps)
    if normalize is not None and normalize not in get_args(Total):
        raise ValueError(
            f"normalize must be None, 'sum_to_T' or 'sum_to_1', got {normalize!r}."
        )
    if stages is not None:
        curricula.check_stages(stages, layout)
    first = balancers.focal(gamma=gamma, alpha=alpha, kpi_min=kpi_min)
    check_per_task("gamma", gamma, layout)
    first = curricula.warm_up(first, warmup_steps)
    if stages is not None:
        first = curricula.stages(stages, first)
    chained = [first]
    if normalize is not None:
        chained.append(balancers.normalize_weights(normalize))
    if balancer is not None:
        chained.append(checked_balancer("balancer", balancer, layout))
    return balance(optax.chain(*chained), tasks)
