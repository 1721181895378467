"""Robust multi-task learning with excess risks."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import SMALLEST_WEIGHT, Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.layout import layout_of
from dtp_jax._core.linalg import positive
from dtp_jax._core.reads import required_gradients, squared_norms_of
from dtp_jax.gradients import (
    Shared,
    shared_mask,
    shared_rows,
    type_of,
    zero_rows,
)

# The logarithm of a weight moves by no more than this in a step, which takes any weight
# from one end of its range to the other.
_LARGEST_MOVE = 1e4


class ExcessMtlState(NamedTuple):
    """State of `excess_mtl`."""

    log_weights: jax.Array  # [T], of weights that sum to 1 over the active tasks
    baselines: jax.Array  # [T], the first excess risk; zero where there is none yet
    squares: Any  # sums of squared gradients: [T], or a list of [T, *param]


def excess_mtl(
    params: Any = None,
    *,
    shared: Shared | None = None,
    step_size: jax.typing.ArrayLike = 0.01,
) -> Balancer:
    """Raises the weights of the tasks that are furthest from convergence.

    How far a task is, its excess risk, is the loss that a step of Newton's method would
    save, up to a factor, with the Hessian of AdaGrad: from the gradient g and the sum S
    of all squared gradients so far, over the shared parameters k::

        e = sum_k g_k^2 / sqrt(S_k)             if `params` are given
        e = norm(g)^2 / sqrt(sum norm(g)^2)     if not

    A noisy task has a large loss, but no large excess risk. Weights on the simplex
    follow, ``w_t <- w_t exp(step_size e_t / b_t)``, then divided by their sum, with the
    baseline b the first excess risk of the task. So the first step leaves them uniform,
    unless a gradient is zero: its task starts ``exp(-step_size)`` below the others.

    The paper's rule is the first, whose state is as large as the stacked gradients, in
    float32. The second, ours, takes one number per task. Both give the same weights for
    a single parameter, and where all gradients of a task are multiples of one.

    Preferences multiply the weights. A task that is not active, or whose gradient is
    not finite, takes no part, and its state stays. A zero gradient has no excess risk
    and makes no baseline. Weights stay above 1e-30, so that each can come back.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        params: The parameters of the model, or their `jax.ShapeDtypeStruct`, for the
            paper's rule. Only shapes, dtypes and shardings are read, since `init` sees
            none.
        shared: Which of the parameters are shared, as for `dtp_jax.task_gradients`.
        step_size: The rate of the weights, at least 0.

    Returns:
        A balancer whose weights are the preferences times weights of sum 1.

    Raises:
        TypeError: If `params` holds anything but arrays.
        ValueError: If `step_size` is negative or `shared` does not fit; from `update`,
            if there are no task gradients, or others than of `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = excess_mtl(step_size=1.0), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for gradients in (jnp.array([[3.0], [5.0]]), jnp.array([[4.0], [0.0]])):
        ...     gradients = TaskGradients.from_stacked(gradients)
        ...     weights, state = balancer.update(ones, state, task_gradients=gradients)
        >>> round(jnp.log(weights[0] / weights[1]).item(), 4)  # 4^2 / 5 over 3^2 / 3
        1.0667

    References:
        He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, equations
        6, 7 and 9. The authors' code adds 1e-7 to S, which is not needed, and scales
        the weights to the sum T; it and LibMTL have the step size 0.01. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("step_size", step_size, low=0)
    leaves = None
    if params is not None:
        mask = shared_mask(shared, params)
        pairs = zip(jax.tree.leaves(params), mask, strict=True)
        used = [leaf for leaf, is_used in pairs if is_used]
        for leaf in used:
            if not hasattr(leaf, "dtype"):
                raise TypeError(
                    "params must hold the arrays of the model, or their "
                    f"jax.ShapeDtypeStruct, got {type(leaf).__name__}."
                )
        leaves = list(map(type_of, used))
    elif shared is not None:
        raise ValueError("shared says which of params are shared: give params, too.")

    def init(losses: Any) -> ExcessMtlState:
        layout = layout_of(losses)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        uniform = jnp.full_like(zeros, -math.log(layout.num_tasks))
        if leaves is None:
            # An array of its own: a donated buffer may stand in one field only.
            return ExcessMtlState(uniform, zeros, jnp.copy(zeros))
        squares = [zero_rows(layout.num_tasks, leaf) for leaf in leaves]
        return ExcessMtlState(uniform, zeros, squares)

    def update(
        updates: Any,
        state: ExcessMtlState,
        losses: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, ExcessMtlState]:
        del losses, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        if leaves is None:
            squared = [squared_norms_of(task_gradients, preferences, "excess_mtl")]
        else:
            given = required_gradients(task_gradients, "excess_mtl")
            squared = _squared_rows(given, state.squares)
        sums = jax.tree.leaves(state.squares)
        totals = [x + y.astype(x.dtype) for x, y in zip(sums, squared, strict=True)]
        excess = jnp.sum(jnp.stack(list(map(_excess_risks, squared, totals))), axis=0)
        excess = excess.astype(layout.dtype)
        active = (preferences > 0) & jnp.isfinite(excess)

        def only_active(new: jax.Array, old: jax.Array) -> jax.Array:
            column = active.reshape(-1, *[1] * (new.ndim - 1))
            return jnp.where(column, new, old)

        # On its first step a task counts as much as any other does on its own.
        baselines = jnp.where(state.baselines > 0, state.baselines, excess)
        ratios = jnp.where(excess > 0, excess / jnp.where(excess > 0, baselines, 1), 0)
        moves = jnp.minimum(step_size * ratios, _LARGEST_MOVE)
        moved = state.log_weights + jnp.where(active, moves, 0)
        # Over nothing it would be minus infinity, on its way to zero times infinity.
        moved -= jax.nn.logsumexp(moved, where=active | ~jnp.any(active))
        moved = jnp.maximum(moved, math.log(SMALLEST_WEIGHT))
        weights = jnp.where(active, preferences * jnp.exp(moved), 0)
        totals = list(map(only_active, totals, sums))
        squares = jax.tree.structure(state.squares).unflatten(totals)
        moved = only_active(moved.astype(layout.dtype), state.log_weights)
        baselines = only_active(baselines, state.baselines)
        new = ExcessMtlState(moved, baselines, squares)
        return layout.tree(nonzero(weights, preferences)), new

    return transformation(init, update)


def _squared_rows(task_gradients: Any, like: list[jax.Array]) -> list[jax.Array]:
    rows = jax.lax.stop_gradient(shared_rows(task_gradients))
    found, expected = [x.shape for x in rows], [x.shape for x in like]
    if found != expected:
        raise ValueError(
            "excess_mtl was made for shared parameters whose stacked gradients have "
            f"the shapes {expected}, but got {found}: give it the same params and "
            "shared as task_gradients."
        )
    return [jnp.square(x.astype(y.dtype)) for x, y in zip(rows, like, strict=True)]


def _excess_risks(squared: jax.Array, totals: jax.Array) -> jax.Array:
    # A sum that holds the square itself is zero only where the square is.
    roots = jnp.sqrt(positive(totals))
    return jnp.sum(squared / roots, axis=tuple(range(1, squared.ndim)))
