"""Gradient normalization: equal training rates through the norms of gradients."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import control, linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_optimizer, check_scalar, check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import layout_of
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import read_losses, squared_norms_of

Parametrization = Literal["weights", "softmax"]

# The square of a norm must stay in float32, since Adam takes it.
_LARGEST_NORM = 1e15
_LARGEST_RATIO = 1e30


class GradNormState(NamedTuple):
    """State of `grad_norm`."""

    parameters: jax.Array  # [T], the weights, or their logits
    first: jax.Array  # [T], losses of the first step; zero if there is none
    optimizer: Any  # the state of the inner optimizer
    step: jax.Array  # [], int32, number of updates


def grad_norm(
    *,
    alpha: jax.typing.ArrayLike = 1.5,
    optimizer: optax.GradientTransformation | None = None,
    parametrization: Parametrization = "weights",
    min_weight: jax.typing.ArrayLike = 1e-6,
    refresh_every: jax.typing.ArrayLike = 1,
) -> Balancer:
    """Lets all tasks train at similar rates, by the norms of their gradients.

    With the weighted norm ``G_t = w_t norm(g_t)`` of each task's gradient and its loss
    relative to its first one, both over the active tasks::

        ratio = L / L(0)
        target = mean(G) (ratio / mean(ratio))^alpha
        w <- optimizer(w, gradient = sign(G - target) norm(g))
        w <- T max(w, min_weight) / sum(max(w, min_weight))

    which is a step on ``sum(abs(G - target))`` with the target held fixed. The weights
    of a step are those before it, ones at first. With T = 1 the weight is one.

    The gradients are those over the shared parameters: choose the last layer that all
    tasks share, ``task_gradients(..., shared=lambda path: path.startswith("trunk/2"))``
    and the backward passes stop there. They cost one such pass per task, in the steps
    that refresh only, unless the step is under a `vmap` that maps the counter too.

    A task that joins later has its first active step as its start and a weight of one,
    and one that is not active keeps its own. Preferences multiply the weights. Losses
    must be at least 0: a ratio to nothing above zero is one, a negative ratio zero. A
    norm counts as 1e15 at most; a task whose norm is not finite is left out.

    Args:
        alpha: How strongly slow tasks are pulled along, at least 0; the paper uses 1.5
            for NYUv2 and 0.12 for its toy problem.
        optimizer: Moves the weights; Adam at a rate of 0.025 by default.
        parametrization: "weights", the paper; "softmax", where the optimizer moves the
            logits of ``w = T softmax(logits)``. The first takes steps of one size and
            cannot settle at a weight below its learning rate: use the second for
            gradients of very different lengths.
        min_weight: What keeps "weights" positive (the paper does not say), above 0.
        refresh_every: The number of steps from one move of the weights to the next.

    Returns:
        A balancer whose weights sum to T for preferences of one.

    Raises:
        TypeError: If `optimizer` is none of optax.
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            losses or no task gradients.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = grad_norm(optimizer=optax.sgd(0.1)), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
        >>> state = balancer.init(ones)
        >>> for _ in range(2):
        ...     weights, state = balancer.update(
        ...         ones, state, ones, task_gradients=gradients
        ...     )
        >>> [round(weight, 4) for weight in weights.tolist()]  # 2 (0.7, 1.1) / 1.8
        [0.7778, 1.2222]

    References:
        Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for
        Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018, equation 2 and
        algorithm 1; on a fixed sequence, with no weight at the floor, the weights agree
        to rounding. The authors published no code; others let weights turn negative,
        or use the softmax. What jaxpi calls ``scheme="grad_norm"`` is `equal_norms`.
        Heads: ``balance(..., heads="weights")``.
    """
    check_scalar("alpha", alpha, low=0)
    check_scalar("min_weight", min_weight, low=0, high=1, open_low=True)
    check_whole("refresh_every", refresh_every, low=1)
    if parametrization not in get_args(Parametrization):
        raise ValueError(
            f"parametrization must be one of {get_args(Parametrization)}, got "
            f"{parametrization!r}."
        )
    softmax = parametrization == "softmax"
    check_optimizer("optimizer", optimizer)
    inner = optax.adam(0.025) if optimizer is None else optimizer

    def init(params: Any) -> GradNormState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        start = jnp.zeros_like(zeros) if softmax else jnp.ones_like(zeros)
        # A copy for the optimizer: one that keeps it would share a donated buffer.
        optimizer = inner.init(jnp.copy(start))
        return GradNormState(start, zeros, optimizer, jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: GradNormState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, GradNormState]:
        del extra_args
        layout, losses, preferences = read_losses("grad_norm", updates, params)
        active = preferences > 0
        first = jnp.where(active & (state.first <= 0), losses, state.first)
        weights = _weights(state.parameters, active, softmax)

        def move() -> tuple[jax.Array, Any]:
            norms = jnp.sqrt(squared_norms_of(task_gradients, preferences, "grad_norm"))
            measured = active & jnp.isfinite(norms)
            norms = jnp.where(measured, jnp.minimum(norms, _LARGEST_NORM), 0)
            norms = norms.astype(layout.dtype)
            slope = _slope(weights, norms, losses, first, measured, alpha)
            if softmax:
                slope = weights * (slope - jnp.sum(weights * slope) / jnp.sum(active))
            slope = jnp.where(measured, slope, 0)
            step, new = inner.update(slope, state.optimizer, state.parameters)
            before = state.parameters if softmax else weights
            moved = jnp.asarray(optax.apply_updates(before, step))
            if not softmax:
                moved = jnp.where(measured, jnp.maximum(moved, min_weight), weights)
                moved = _weights(moved, active, softmax)
            kept = measured if softmax else active
            return jnp.where(kept, moved, state.parameters), new

        def keep() -> tuple[jax.Array, Any]:
            return state.parameters, state.optimizer

        refreshes = state.step % refresh_every == 0
        parameters, new = control.cond(refreshes, move, keep)
        step = next_step(state.step, refresh_every)
        weights = nonzero(preferences * weights, preferences)
        return layout.tree(weights), GradNormState(parameters, first, new, step)

    return transformation(init, update)


def _weights(parameters: jax.Array, active: jax.Array, softmax: bool) -> jax.Array:
    """Weights of the active tasks, which sum to their number; zero for the others."""
    num_active = jnp.sum(active)
    if softmax:
        shares = softmax_over(active, parameters)
        return jnp.where(active, num_active * shares, 0)
    kept = jnp.where(active, parameters, 0)
    total = jnp.sum(kept)
    return kept * (num_active / linalg.positive(total))


def _slope(
    weights: jax.Array,
    norms: jax.Array,
    losses: jax.Array,
    first: jax.Array,
    measured: jax.Array,
    alpha: jax.typing.ArrayLike,
) -> jax.Array:
    """The derivative of the distance to the target with respect to the weights."""
    known = first > 0
    ratios = jnp.where(known, losses / jnp.where(known, first, 1), 1)
    ratios = jnp.clip(ratios, 0, _LARGEST_RATIO)
    count = jnp.maximum(jnp.sum(measured), 1)
    mean = jnp.sum(ratios, where=measured) / count
    # Where all losses are zero, none is slower than the others.
    slowness = jnp.where(mean > 0, ratios / linalg.positive(mean), 1)
    target = jnp.sum(weights * norms) / count * slowness**alpha
    return jnp.sign(weights * norms - target) * norms
