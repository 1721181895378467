"""Learning rate annealing: weights from the sizes of single gradient entries."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core import control
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import layout_of
from dtp_jax._core.reads import required_gradients
from dtp_jax.gradients import of_each_row

Statistic = Literal["max", "mean"]

_LARGEST_RATIO = 1e30


class LrAnnealingState(NamedTuple):
    """State of `lr_annealing`."""

    weights: jax.Array  # [T], before preferences
    step: jax.Array  # [], int32, number of updates


def lr_annealing(
    primary: str | int,
    *,
    alpha: jax.typing.ArrayLike = 0.9,
    statistic: Statistic = "max",
    refresh_every: jax.typing.ArrayLike = 1,
) -> Balancer:
    """Brings the gradients of all tasks to the size of that of the primary one.

    For physics-informed networks, where the residual of the equation is the primary
    task. Its weight is one, and those of the others follow::

        w_t <- (1 - alpha) * w_t + alpha * max(abs(g_primary)) / mean(abs(g_t))

    from ones on, where maximum and mean go over all entries of the gradient over the
    shared parameters (see `task_gradients`; for a network without heads these are all).
    The weights of a step have already seen its gradients. Preferences multiply the
    weights.

    The gradients cost one backward pass per task and the memory of all of them, in the
    steps that refresh only, unless the step is under a `vmap` that maps the counter
    too. A weight stays as it is where the gradient of its task is zero, and where it or
    that of the primary task is not finite or not active. A quotient counts as 1e30 at
    most: nothing else bounds these weights, so chain `clip_weights` where that matters.

    Args:
        primary: The task that the others are compared with: its name, or its position
            in the order of `jax.tree.leaves`. A position needs
            ``static_args=("primary",)`` under `optax.inject_hyperparams`.
        alpha: The weight of the new quotient, in [0, 1].
        statistic: Of the primary gradient: "max" as in the paper; "mean", for weights
            that do not grow with the number of parameters.
        refresh_every: The number of steps from one look at the gradients to the next;
            the authors' code takes 10.

    Returns:
        A balancer that reads task gradients, not losses. Instead of zero, which would
        mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: If a hyperparameter is out of range or `primary` is no task; from
            `update`, if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = lr_annealing(0, alpha=0.5), jnp.ones(2)
        >>> rows = jnp.array([[6.0, -2.0], [0.5, 1.5]])
        >>> gradients = TaskGradients.from_stacked(rows)
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients
        ... )
        >>> weights.tolist()  # 0.5 + 0.5 * 6 / 1
        [1.0, 3.5]

    References:
        Wang, Teng, Perdikaris, "Understanding and mitigating gradient flow pathologies
        in physics-informed neural networks", SIAM Journal on Scientific Computing 2021,
        algorithm 1; on a fixed sequence the weights agree to rounding. The authors'
        code differs: there 0.9 is the share of the old weight (``alpha=0.1``), the
        denominator is the gradient of the weighted loss, and the mean is that of the
        means of the weight matrices, without biases. What jaxpi, their later code, does
        by default is `equal_norms`. Heads: ``balance(..., heads="weights")``.
    """
    check_scalar("alpha", alpha, low=0, high=1)
    check_whole("refresh_every", refresh_every, low=1)
    if statistic not in get_args(Statistic):
        raise ValueError(
            f"statistic must be one of {get_args(Statistic)}, got {statistic!r}."
        )

    def init(params: Any) -> LrAnnealingState:
        layout = layout_of(params)
        layout.position("primary", primary)
        ones = jnp.ones((layout.num_tasks,), layout.dtype)
        return LrAnnealingState(ones, jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: LrAnnealingState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, LrAnnealingState]:
        del params, extra_args
        gradients = required_gradients(task_gradients, "lr_annealing")
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        active = preferences > 0
        first = layout.position("primary", primary)

        def refresh() -> jax.Array:
            statistics = of_each_row(gradients, _statistics)
            means, largest = jax.lax.stop_gradient(statistics)
            size = (means if statistic == "mean" else largest)[first]
            usable = active & active[first] & jnp.isfinite(size)
            usable &= jnp.isfinite(means) & (means > 0)
            quotients = size / jnp.where(usable, means, 1)
            quotients = jnp.minimum(quotients, _LARGEST_RATIO)
            moved = (1 - alpha) * state.weights + alpha * quotients
            moved = jnp.where(usable, moved, state.weights).astype(layout.dtype)
            return moved.at[first].set(1)

        refreshes = state.step % refresh_every == 0
        weights = control.cond(refreshes, refresh, lambda: state.weights)
        step = next_step(state.step, refresh_every)
        used = nonzero(preferences * weights, preferences)
        return layout.tree(used), LrAnnealingState(weights, step)

    return transformation(init, update)


def _statistics(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Mean and largest absolute entry of a gradient."""
    sizes = [jnp.abs(leaf) for leaf in leaves]
    sizes = [leaf.astype(jnp.promote_types(jnp.float32, leaf.dtype)) for leaf in sizes]
    largest = jnp.max(jnp.stack([jnp.max(leaf, initial=0) for leaf in sizes]))
    # Divided before they are added, large entries have a finite mean.
    share = 1 / sum(leaf.size for leaf in sizes)
    return jnp.sum(jnp.stack([jnp.sum(leaf * share) for leaf in sizes])), largest
