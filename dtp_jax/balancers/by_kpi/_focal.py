"""Dynamic task prioritization: focal weights of averaged KPIs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import SMALLEST_WEIGHT, Balancer, transformation
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.reads import required
from dtp_jax.kpi import (
    KpiState,
    check_gamma,
    check_kpis,
    focal_weights,
    init_kpis,
    update_kpis,
)


class FocalState(NamedTuple):
    """State of `focal`."""

    kpis: KpiState  # mean [T] and count [T], in the order of the tasks


def focal(
    *,
    gamma: Any = 2.0,
    alpha: jax.typing.ArrayLike = 0.05,
    kpi_min: jax.typing.ArrayLike = 0.01,
    differentiate_kpis: bool = False,
) -> Balancer:
    """Prioritizes the tasks that do badly.

    Averages the KPIs of the steps, ``mean = alpha * kpi + (1 - alpha) * mean``, and
    multiplies each preference by ``-(1 - mean)**gamma * log(mean)``.

    `update` needs the extra argument `kpis`, a pytree like the tasks of values in
    [0, 1], higher is better; None or NaN means "not observed in this step". A task
    without any observation yet keeps its preference as its weight. The weight of an
    active task is never exactly zero, which would mean "not active" to the next link: a
    solved task gets 1e-30.

    Args:
        gamma: How fast a task is discounted as it does better, at least 0; a scalar or
            a pytree like the tasks. The paper's headline runs use 1.
        alpha: The weight of the new KPI in the average, in [0, 1], counted in
            observations. 0.05 is for KPIs of every batch; where they are rare, as of
            validation data, take 0.2 to 0.75, the paper's value for whole epochs.
        kpi_min: Bounds the weights where a KPI is near 0; in (0, 1).
        differentiate_kpis: Whether derivatives flow from the weights into the KPIs, for
            those who call `update` themselves; `balance` takes weights as constants.

    Returns:
        A balancer. Its weights are those of the paper, not normalized: chain
        `normalize_weights` after it for weights of a fixed sum.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            KPIs or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = focal(gamma=1.0)
        >>> losses = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
        >>> state = balancer.init(losses)
        >>> ones, kpis = {"a": 1.0, "b": 1.0}, {"a": 0.1, "b": 0.9}
        >>> weights, state = balancer.update(ones, state, losses, kpis=kpis)
        >>> round(weights["a"].item(), 4), round(weights["b"].item(), 4)
        (2.0723, 0.0105)

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        equations 3 and 4. Heads: ``balance(..., heads="weights")``.
    """
    check_gamma(gamma)
    check_scalar("alpha", alpha, low=0, high=1)
    check_scalar("kpi_min", kpi_min, low=0, high=1, open_low=True, open_high=True)

    def init(params: Any) -> FocalState:
        return FocalState(init_kpis(layout_of(params).vector("losses", params)))

    def update(
        updates: Any,
        state: FocalState,
        params: Any = None,
        *,
        kpis: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, FocalState]:
        del params, extra_args
        kpis = required(
            kpis,
            "kpis",
            "focal",
            "pass kpis={task: value in [0, 1], or None where not observed} to update",
        )
        layout = layout_of(updates)
        check_kpis(kpis, layout)
        observed = layout.vector("kpis", kpis)
        averaged = update_kpis(state.kpis, observed, alpha)
        used = averaged if differentiate_kpis else jax.lax.stop_gradient(averaged)
        preferences = layout.vector("preferences", updates)
        gammas = per_task("gamma", gamma, layout)
        priorities = focal_weights(used.mean, gammas, kpi_min=kpi_min)
        priorities = jnp.where(averaged.count > 0, priorities, 1)
        weights = jnp.maximum(preferences * priorities, SMALLEST_WEIGHT)
        return (
            layout.tree(jnp.where(preferences > 0, weights, 0)),
            FocalState(averaged),
        )

    return transformation(init, update)
