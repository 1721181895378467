"""The core: averaged key performance indicators and the weights made from them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax._core.checks import check_number, check_real
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import TaskLayout, layout_of, per_task, task_layout

__all__ = [
    "KpiState",
    "check_gamma",
    "check_kpis",
    "combine_losses",
    "focal_weights",
    "init_kpis",
    "update_kpis",
]

# Metrics computed in low precision may leave [0, 1] by rounding; more is a mistake.
_ROUNDING = 1e-6


class KpiState(NamedTuple):
    """The averaged KPI of each task, a pytree like the tasks."""

    mean: Any  # in [0, 1], float32; 0 as long as nothing was observed
    count: Any  # int32, the number of observations


def init_kpis(tasks: Any) -> KpiState:
    """The state before any observation.

    Args:
        tasks: Names, for KPIs given as ``{name: scalar}``; an int T, for one [T] array;
            or an example pytree.

    Returns:
        Means and counts of zero, pytrees like the tasks.

    Raises:
        ValueError: If there is no task.

    Example:
        >>> init_kpis(["left", "right"]).mean
        {'left': Array(0., dtype=float32), 'right': Array(0., dtype=float32)}
    """
    layout = task_layout(tasks)
    count = jnp.zeros((layout.num_tasks,), jnp.int32)
    return KpiState(layout.full(0.0), layout.tree(count))


def update_kpis(
    state: KpiState,
    kpis: Any,
    alpha: jax.typing.ArrayLike = 0.75,
    *,
    mask: Any = None,
) -> KpiState:
    """Averages the KPIs of one step into the state.

    Computes ``mean = alpha * kpi + (1 - alpha) * mean`` for every task observed in this
    step, and ``mean = kpi`` for its first observation, so that the average has no bias
    towards a start value. The mean of a task that was not observed stays.

    Args:
        state: The state of `init_kpis` or of the last step.
        kpis: A pytree like the tasks, in [0, 1], higher is better. None or NaN (or an
            infinite value) means "not observed". JAX arrays are clipped to [0, 1].
        alpha: The weight of the new value, in [0, 1]. 1 keeps no memory.
        mask: Booleans, a pytree like the tasks: False means "not observed" too.

    Returns:
        The new state.

    Raises:
        ValueError: If the KPIs do not match the tasks, a KPI given as a number or in a
            NumPy array is outside of [0, 1], or `alpha` is.

    Example:
        >>> state = update_kpis(init_kpis(["a", "b"]), {"a": 0.5, "b": 0.1})
        >>> state = update_kpis(state, {"a": 0.9, "b": None})
        >>> round(state.mean["a"].item(), 4), round(state.mean["b"].item(), 4)
        (0.8, 0.1)

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        section 3.1; alpha = 0.75 in appendix B.1.
    """
    check_number("alpha", alpha, low=0, high=1)
    layout = layout_of(state.mean)
    check_kpis(kpis, layout)
    new = layout.vector("kpis", kpis)
    observed = jnp.isfinite(new)
    if mask is not None:
        observed &= layout.vector("mask", mask, dtype=bool)
    new = _clip(jnp.where(observed, new, 0), 0.0, 1.0)
    old = layout.vector("state.mean", state.mean)
    count = layout.vector("state.count", state.count, dtype=jnp.int32)
    alpha = jnp.asarray(alpha, old.dtype)
    averaged = jnp.where(count == 0, new, alpha * new + (1 - alpha) * old)
    mean = jnp.where(observed, averaged, old)
    return KpiState(layout.tree(mean), layout.tree(count_up(count, observed)))


def focal_weights(
    kpis: Any, gamma: Any = 2.0, *, kpi_min: jax.typing.ArrayLike = 0.01
) -> Any:
    """How much each task counts: much where its KPI is low, nothing where it is one.

    Computes ``-(1 - k)**gamma * log(k)`` with ``k = clip(kpi, kpi_min, 1)``, in float32
    or better. An ordinary differentiable function: value and derivatives with respect
    to the KPIs and gamma are finite on all of [0, 1] for every ``gamma >= 0``. Below
    `kpi_min` it is constant; at 1 the derivative is that from the left.

    Args:
        kpis: A pytree of KPIs in [0, 1], leaves of any shape.
        gamma: How fast a task is discounted as it does better, at least 0: a scalar, a
            pytree like `kpis`, or what broadcasts against `kpis` if that is one array.
            0 leaves ``-log(k)``. The default 2 is the usual one of focal losses; the
            paper's own ablation found 1 better.
        kpi_min: Bounds the weights where the KPI is near 0, where the logarithm
            diverges; in (0, 1). The paper gives no value: 0.01 is our choice, which
            bounds the weights by 4.6.

    Returns:
        A pytree like `kpis` of weights in [0, -log(kpi_min)].

    Raises:
        ValueError: If gamma is a negative number, has another structure than the KPIs,
            or a KPI or `kpi_min` given as a Python number is out of range.

    Example:
        ``-(1 - 0.5)**2 * log(0.5) = 0.25 * 0.6931``:

        >>> weights = focal_weights({"easy": 1.0, "hard": 0.5})
        >>> weights["easy"].item(), round(weights["hard"].item(), 5)
        (0.0, 0.17329)

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        equations 3 and 4; its table 2 compares gamma = 1 and 2.
    """
    check_number("kpi_min", kpi_min, low=0, high=1, open_low=True, open_high=True)
    leaves, treedef = jax.tree.flatten(kpis)
    for leaf in leaves:
        _check_kpi("kpis", leaf)
    gammas = _gamma_leaves(kpis, leaves, treedef, gamma)
    weights = [_focal(leaf, g, kpi_min) for leaf, g in zip(leaves, gammas, strict=True)]
    return treedef.unflatten(weights)


def combine_losses(
    losses: Any, weights: Any, *, differentiate_weights: bool = False
) -> jax.Array:
    """The weighted sum of the losses, ``sum_t weights[t] * losses[t]``.

    For training loops without optax. The weights are constants by default. With
    ``differentiate_weights=True`` and weights made from a differentiable KPI, the
    gradient has both terms of the paper's product rule, ``sum_t w_t dL_t + L_t dw_t``;
    near a KPI of zero the second grows like ``L_t / kpi``.

    Args:
        losses: A pytree of losses.
        weights: A pytree like the losses, or ``[T]``. A loss of weight zero is left
            out, even if it is not finite.
        differentiate_weights: Whether derivatives flow through the weights.

    Returns:
        A scalar in float32 or better.

    Raises:
        ValueError: If the weights do not match the losses.

    Example:
        >>> combine_losses({"a": 2.0, "b": 3.0}, {"a": 1.0, "b": 0.5}).item()
        3.5

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        equations 1 and 5.
    """
    layout = layout_of(losses)
    loss = layout.vector("losses", losses)
    weight = layout.vector("weights", weights, or_vector=True)
    if not differentiate_weights:
        weight = jax.lax.stop_gradient(weight)
    # With differentiable weights a weight of exactly zero (a solved task) still has a
    # derivative, so only losses that are not finite are left out.
    used = jnp.isfinite(loss) | (weight != 0)
    return jnp.sum(jnp.where(used, weight * jnp.where(used, loss, 0), 0))


def _focal(
    kpi: jax.Array, gamma: jax.Array, kpi_min: jax.typing.ArrayLike
) -> jax.Array:
    kpi = jnp.asarray(kpi, jnp.promote_types(jnp.float32, jnp.result_type(kpi)))
    kpi = _clip(kpi, jnp.asarray(kpi_min, kpi.dtype), 1.0)
    # Written out: a gamma of fewer axes is meant, whatever jax_numpy_rank_promotion.
    kpi, gamma = jnp.broadcast_arrays(kpi, gamma.astype(kpi.dtype))
    unsolved = kpi < 1
    # (1 - k)**gamma in logs, on a safe input where k = 1: 0**gamma, with 0**0 = 1.
    log_rest = jnp.log1p(-jnp.where(unsolved, kpi, 0))
    at_one = (gamma == 0).astype(kpi.dtype)
    power = jnp.where(unsolved, jnp.exp(gamma * log_rest), at_one)
    # Subtracting from zero gives 0.0 at k = 1, where a negation would give -0.0.
    return 0.0 - power * jnp.log(kpi)


def _gamma_leaves(kpis: Any, leaves: Any, treedef: Any, gamma: Any) -> list[Any]:
    check_gamma(gamma)
    if jax.tree_util.all_leaves([gamma]) and jnp.ndim(gamma) == 0:
        return [jnp.asarray(gamma)] * len(leaves)
    if jax.tree.structure(gamma) == treedef:
        return [jnp.asarray(value) for value in jax.tree.leaves(gamma)]
    layout = layout_of(kpis)
    return jax.tree.leaves(layout.tree(per_task("gamma", gamma, layout)))


def check_gamma(gamma: Any) -> None:
    """Checks what can be checked of gamma without the tasks.

    Args:
        gamma: As for `focal_weights`.

    Raises:
        ValueError: If it is negative, or a function.
    """
    if callable(gamma):
        raise ValueError(
            "gamma is a function. For a schedule use optax.inject_hyperparams("
            "dynamic_task_prioritization)(tasks, gamma=schedule)."
        )
    for value in jax.tree.leaves(gamma):
        check_number("gamma", value, low=0)


def check_kpis(kpis: Any, layout: TaskLayout) -> None:
    """Checks KPIs against the tasks, and the range of those given as numbers.

    Args:
        kpis: As for `update_kpis`.
        layout: The layout of the tasks.

    Raises:
        ValueError: If they do not match, or a Python number or a number in a NumPy
            array is outside of [0, 1].
    """
    layout.check("kpis", kpis)
    leaves = jax.tree_util.tree_flatten_with_path(kpis)[0]
    for path, leaf in leaves:
        # A JAX array is not read, which would wait for the device: the state of
        # `dynamic_task_prioritization` keeps what came, for `diagnostics`.
        if isinstance(leaf, (int, float, np.ndarray, np.generic)):
            for number in np.ravel(leaf).tolist():
                if math.isfinite(number):
                    _check_kpi(f"kpis{jax.tree_util.keystr(path)}", number)


def _check_kpi(name: str, value: Any) -> None:
    check_real(name, value)
    if isinstance(value, (int, float)) and not -_ROUNDING <= value <= 1 + _ROUNDING:
        raise ValueError(
            f"{name} must be in [0, 1], got {value!r}. Divide percentages by 100; "
            "dtp_jax.metrics maps other measures to [0, 1]."
        )


def _clip(x: jax.Array, low: jax.typing.ArrayLike, high: float) -> jax.Array:
    # `jnp.clip` halves the derivative exactly on a bound; here it is that from inside.
    return jnp.where(x < low, low, jnp.where(x > high, high, x)).astype(x.dtype)
