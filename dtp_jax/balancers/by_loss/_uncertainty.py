"""Homoscedastic uncertainty: weights from learned noise of each task."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, transformation
from dtp_jax._core.checks import check_optimizer, check_scalar
from dtp_jax._core.layout import TaskLayout, layout_of, per_task
from dtp_jax._core.reads import read_losses

Kind = Literal["regression", "classification", "laplace"]

# The loss counts `a exp(-s) L`, the regularizer has the slope `b`.
_DATA_FACTOR = {"regression": 0.5, "classification": 1.0, "laplace": 1.0}
_REGULARIZER_SLOPE = {"regression": 0.5, "classification": 0.5, "laplace": 1.0}


class UncertaintyState(NamedTuple):
    """State of `uncertainty`."""

    log_variances: jax.Array  # [T]
    optimizer: Any  # the state of the inner optimizer


def uncertainty(
    *,
    kind: Any = "regression",
    optimizer: optax.GradientTransformation | None = None,
    positive: bool = False,
    init_value: Any = 0.0,
    bound: float = 10.0,
) -> Balancer:
    """Weights each task by the inverse of its learned noise.

    Each task has a log-variance ``s``, which lives in the state of this balancer and
    follows the gradient of the task's likelihood. The model's parameters see a weighted
    sum of the losses and nothing else::

        kind              objective in s                    weight
        regression        exp(-s) L / 2 + s / 2             exp(-s) / 2
        classification    exp(-s) L + s / 2                 exp(-s)
        laplace           exp(-s) L + s                     exp(-s)

    where L is a squared error, a cross-entropy and an absolute error; for "laplace" s
    is the log-scale. For a constant loss s settles at log L, log 2L and log L. The
    weights of a step use the log-variances before the step, as in joint training.

    Losses must be at least 0. The log-variances stay within ``[-bound, bound]``, so a
    loss of zero has the weight ``exp(bound)`` at most. A task that is not active keeps
    its log-variance. For log-variances among your own parameters there are
    `dtp_jax.losses.uncertainty_regression` and its siblings.

    Args:
        kind: One of the above for all tasks, or a pytree of them like the tasks.
        optimizer: Moves the log-variances; Adam at a rate of 0.01 by default (our
            choice, the paper trains them with the parameters' SGD). No weight decay.
        positive: Replaces the regularizer by ``log(1 + exp(s))``, which keeps the
            objective positive. With kind "regression" this is the form of Liebel and
            Koerner; the optimum is ``exp(s) = (L + sqrt(L^2 + 8 L)) / 4``.
        init_value: The log-variances at the start; a scalar or a pytree like the tasks.
            The paper reports the same end for -2 to 5.
        bound: Largest absolute log-variance (not in the paper).

    Returns:
        A loss-driven balancer.

    Raises:
        TypeError: If `optimizer` is none of optax.
        ValueError: If `kind` is unknown or does not match the tasks, `bound` is not
            positive, or from `update`, if there are no losses.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> balancer = uncertainty(kind="classification", optimizer=optax.sgd(0.5))
        >>> losses = {"a": jnp.array(2.0), "b": jnp.array(0.5)}
        >>> state = balancer.init(losses)
        >>> ones = {"a": 1.0, "b": 1.0}
        >>> _, state = balancer.update(ones, state, losses)
        >>> state.log_variances.tolist()  # 0.5 (L - 1 / 2)
        [0.75, 0.0]

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, equations 7 and 10 (their published notebook doubles the regression
        objective: the same optimum at twice the learning rate); Liebel and Koerner,
        "Auxiliary Tasks in Multi-task Learning", 2018. Heads:
        ``balance(..., heads="weights")``.
    """
    kinds = jax.tree.leaves(kind)
    for name in kinds:
        if name not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {name!r}.")
    check_scalar("bound", bound, low=0, open_low=True, infinite=True)
    check_optimizer("optimizer", optimizer)
    inner = optax.adam(1e-2) if optimizer is None else optimizer

    def init(params: Any) -> UncertaintyState:
        layout = layout_of(params)
        _check_kinds(kind, layout)
        start = per_task("init_value", init_value, layout)
        # Copies: an array of the caller, or one that the optimizer keeps, would be
        # donated with the state.
        return UncertaintyState(jnp.copy(start), inner.init(jnp.copy(start)))

    def update(
        updates: Any, state: UncertaintyState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, UncertaintyState]:
        del extra_args
        layout, losses, preferences = read_losses("uncertainty", updates, params)
        names = _check_kinds(kind, layout)
        factor = jnp.array([_DATA_FACTOR[name] for name in names], layout.dtype)
        slope = jnp.array([_REGULARIZER_SLOPE[name] for name in names], layout.dtype)
        s = state.log_variances
        weights = factor * jnp.exp(-s)

        # Beyond exp(bound) the optimum lies outside of the interval anyway, and the
        # square of a huge gradient would stay in the memory of Adam for ever.
        loss = jnp.clip(losses, 0, jnp.exp(bound))
        pull = jax.nn.sigmoid(s) if positive else slope
        active = preferences > 0
        gradient = jnp.where(active, pull - weights * loss, 0)
        step, inner_state = inner.update(gradient, state.optimizer, s)
        moved = jnp.clip(jnp.asarray(optax.apply_updates(s, step)), -bound, bound)
        # Momentum would move the log-variance of a task that is not active.
        new = UncertaintyState(jnp.where(active, moved, s), inner_state)
        return layout.tree(jnp.where(active, preferences * weights, 0)), new

    return transformation(init, update)


def _check_kinds(kind: Any, layout: TaskLayout) -> list[str]:
    if isinstance(kind, str):
        return [kind] * layout.num_tasks
    if jax.tree.structure(kind) != layout.treedef or set(layout.shapes) != {()}:
        raise ValueError(
            f"kind must be one string, or one for each of the tasks "
            f"{', '.join(layout.names)} in a pytree like them; got {kind!r}."
        )
    return jax.tree.leaves(kind)
