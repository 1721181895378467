"""Weights from the neural tangent kernel: equal rates of convergence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import control, linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import TaskLayout, layout_of
from dtp_jax._core.reads import read_losses, squared_norms_of
from dtp_jax.gradients import row_norms, shared_rows

# The smallest trace, relative to the largest.
_MIN_TRACE = 1e-30


class NtkState(NamedTuple):
    """State of `ntk`."""

    traces: jax.Array  # [T], zero where not known
    step: jax.Array  # [], int32, number of updates


def ntk(
    *,
    decay: jax.typing.ArrayLike = 0.0,
    refresh_every: jax.typing.ArrayLike = 1,
) -> Balancer:
    """Lets all tasks converge at similar rates, by the traces of their kernels.

    For physics-informed networks and other least squares. With ``tr_t`` the trace of
    the neural tangent kernel of task t, and the sum over the active tasks::

        w_t = sum(tr) / tr_t

    The trace is over the points of a task, ``tr_t = sum_j norm(dr_j / dparams)^2`` with
    its residuals ``r_j``. The gradient of the loss does not hold it, so there are two
    ways to use this balancer:

    * `update` gets the extra argument `residual_gradients`, a `TaskGradients` of a
      function that returns the residuals in place of the losses: a pytree like the
      tasks in which each entry has grown a last axis of points. This is the paper's
      rule. It costs one backward pass per point: a few points will do, and
      ``task_gradients(residuals_fn, gramian="vmap")`` runs them as one batch.
    * Without it, ``norm(g_t)^2 / L_t`` stands for the trace, for one backward pass per
      task. This is the rate at which the loss itself falls along its gradient, ``-dL/dt
      / L``. For a sum of squares it is ``4 r'Kr / r'r``: it weights the eigenvalues of
      the kernel by the residual as it is, where the trace takes their plain sum. With
      one point for each task the weights are those of the paper. Losses must be sums
      or means of squares.

    All gradients are those over the shared parameters (see `task_gradients`), and they
    are computed in the steps that refresh only, unless the step is under a `vmap` that
    maps the counter too. The weights are at least one and may be large: their size acts
    like a learning rate, `normalize_weights` after this fixes it. Preferences multiply
    them. A task whose trace is not known, because its gradients or its loss are zero or
    not finite, keeps its last one, and without one it counts as having the mean.

    Args:
        decay: The share of the old trace in its average, in [0, 1); 0 in the paper.
        refresh_every: The number of steps from one look at the gradients to the next;
            the authors' code takes 100.

    Returns:
        A balancer.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            gradients, or no losses where they are read, or the residuals do not match
            the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import task_gradients
        >>> def residuals_fn(params):
        ...     return {"a": 2.0 * params * jnp.ones(3), "b": params * jnp.ones(1)}
        >>> ones = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
        >>> gradients = task_gradients(residuals_fn)(jnp.array(1.0))
        >>> balancer = ntk()
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), ones, residual_gradients=gradients
        ... )
        >>> [round(weights[task].item(), 4) for task in "ab"]  # traces 12 and 1
        [1.0833, 13.0]

    References:
        Wang, Yu, Perdikaris, "When and why PINNs fail to train: A neural tangent kernel
        perspective", Journal of Computational Physics 2022, algorithm 1; on a fixed
        sequence of residual gradients the weights agree to rounding. The paper has as
        many points for each task; where their numbers differ, divide the residuals by
        the square root of theirs to compare means. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("decay", decay, low=0, high=1, open_high=True)
    check_whole("refresh_every", refresh_every, low=1)

    def init(params: Any) -> NtkState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        return NtkState(zeros, jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: NtkState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        residual_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, NtkState]:
        del extra_args
        if residual_gradients is None or params is not None:
            layout, losses, preferences = read_losses(
                "ntk", updates, params, instead="pass residual_gradients="
            )
        else:
            layout, losses = layout_of(updates), None
            preferences = layout.vector("preferences", updates)
        active = preferences > 0

        def refresh() -> jax.Array:
            if residual_gradients is not None:
                traces = _traces(residual_gradients, layout)
            else:
                traces = _rates(task_gradients, losses, preferences)
            traces = jax.lax.stop_gradient(traces)
            known = active & jnp.isfinite(traces) & (traces > 0)
            share = jnp.where(state.traces > 0, decay, 0)
            average = share * state.traces + (1 - share) * traces
            return jnp.where(known, average, state.traces).astype(layout.dtype)

        refreshes = state.step % refresh_every == 0
        traces = control.cond(refreshes, refresh, lambda: state.traces)
        step = next_step(state.step, refresh_every)
        weights = nonzero(preferences * _quotients(traces, active), preferences)
        return layout.tree(weights), NtkState(traces, step)

    return transformation(init, update)


def _quotients(traces: jax.Array, active: jax.Array) -> jax.Array:
    """The sum of the traces divided by each, where an unknown one is their mean."""
    known = active & (traces > 0)
    largest = jnp.max(jnp.where(known, traces, 0))
    # Relative to the largest, their sum stays finite.
    relative = jnp.where(known, traces / linalg.positive(largest), 0)
    relative = jnp.maximum(relative, jnp.where(known, _MIN_TRACE, 0))
    mean = jnp.sum(relative) / jnp.maximum(jnp.sum(known), 1)
    relative = jnp.where(known, relative, linalg.positive(mean))
    return jnp.sum(relative, where=active) / relative


def _rates(task_gradients: Any, losses: Any, preferences: jax.Array) -> jax.Array:
    """``norm(g)^2 / L``, zero where the loss is not positive."""
    squares = squared_norms_of(task_gradients, preferences, "ntk")
    positive = losses > 0
    rates = squares / jnp.where(positive, losses, 1)
    return jnp.where(positive, rates, 0)


def _traces(residual_gradients: Any, layout: TaskLayout) -> jax.Array:
    """The trace of the kernel of each task, from the gradients of its residuals."""
    squares = row_norms(shared_rows(residual_gradients)) ** 2
    found = layout_of(residual_gradients.losses)
    fits = found.treedef == layout.treedef
    if not fits or any(
        theirs[: len(ours)] != ours
        for theirs, ours in zip(found.shapes, layout.shapes, strict=True)
    ):
        raise ValueError(
            f"The residuals have the shapes {list(found.shapes)} and the structure "
            f"{found.treedef}, which do not match the tasks {', '.join(layout.names)}: "
            "return a pytree like the losses, with one more axis of points."
        )
    pieces = jax.tree.leaves(found.tree(squares))
    shaped = zip(pieces, layout.shapes, strict=True)
    sums = [piece.reshape(*shape, -1).sum(axis=-1) for piece, shape in shaped]
    return jnp.concatenate([piece.reshape(-1) for piece in sums])
