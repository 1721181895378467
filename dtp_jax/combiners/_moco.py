"""Multi-objective gradient correction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import TaskLayout, task_layout
from dtp_jax.gradients import Shared
from dtp_jax.links._combiner import Combined, Inputs, combiner, memory_of_rows, weighted

# The smallest preference, relative to the largest, that still counts for less.
_MIN_PREFERENCE = 1e-6

# Rows with longer entries are measured by the longest; longer steps end in a corner.
_LONG = 1e12
_LARGEST_RATE = 1e18


class MocoState(NamedTuple):
    """What `moco` remembers."""

    tracked: Any  # [T, *param] of each shared parameter, the tracked gradients
    weights: jax.Array  # [T], a task that is not active keeps its last one
    steps: jax.Array  # [T], int32, in how many steps each task was active


def moco_weights(
    gramian: jax.Array,
    weights: jax.Array,
    preferences: jax.Array,
    *,
    gamma: jax.typing.ArrayLike,
    rho: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    """One step of `moco` towards the weights of the shortest vector.

    Args:
        gramian: ``[T, T]``, the inner products of the tracked gradients.
        weights: ``[T]``, the weights before, at least 0.
        preferences: ``[T]``, greater than 0 for the tasks that take part.
        gamma: The length of the step.
        rho: The regularization.

    Returns:
        ``[T]``, on the simplex of the tasks that take part, zero for the others.

    Example:
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])
        >>> half = jnp.full(2, 0.5)
        >>> weights = moco_weights(gramian, half, jnp.ones(2), gamma=0.2)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.35, 0.65]
    """
    active = preferences > 0
    inverse = jnp.where(active, 1 / jnp.where(active, preferences, 1), 0)
    matrix = (gramian * inverse[:, None]) * inverse[None, :]
    # As if the others were absent. Who joins alone, or after a long time, may have
    # nothing to start from.
    kept = jnp.where(active, jnp.maximum(weights, 0), 0)
    total = jnp.sum(kept)
    ones = active.astype(weights.dtype)
    equal = ones / jnp.maximum(jnp.sum(ones), 1)
    start = jnp.where(total > 0, kept / linalg.positive(total), equal)
    slope = jnp.matmul(matrix, start, precision="highest") + rho * start
    target = start - gamma * slope
    # The projection only depends on differences. What is more than one below the
    # largest becomes zero, and so does a task that is not active.
    largest = jnp.max(target, where=active, initial=-jnp.finfo(target.dtype).max)
    shifted = jnp.where(active, jnp.clip(target - largest, -2, 0), -2)
    found = optax.projections.projection_simplex(shifted)
    return jnp.where(active, found, 0).astype(weights.dtype)


def moco(
    tasks: Any,
    *,
    beta: jax.typing.ArrayLike = 0.5,
    beta_sigma: jax.typing.ArrayLike = 0.5,
    gamma: jax.typing.ArrayLike = 0.1,
    gamma_sigma: jax.typing.ArrayLike = 0.5,
    rho: jax.typing.ArrayLike = 0.0,
    shared: Shared | None = None,
    preferences: optax.GradientTransformation | None = None,
) -> Balancer:
    """Descends along a short combination of gradients tracked over the steps.

    The shortest vector in the hull of noisy gradients is biased. This tracks the
    gradient of each task, moves the weights one step towards those of the shortest
    vector, and combines what was tracked. In step k, counted from 1::

        y_t = y_t + beta / k**beta_sigma * (g_t - y_t)
        w = project(w - gamma / k**gamma_sigma * (Y Y' + rho I) w)
        d = sum_t w_t y_t

    with the projection onto the simplex, y_t zero and w equal at the start. For
    gradients that stay the same it comes to the answer of `balancers.mgda`.

    The step gamma is absolute: for gradients longer than ``gamma**-0.5`` or so the
    weights jump between tasks. `clip_each_task` before it bounds them.

    Preferences divide the tracked gradients, relative to the largest preference: ``Y Y'
    / (q q')`` and ``d = sum_t w_t y_t / q_t``. A task that is not active keeps what was
    tracked; k counts the steps in which a task was active for its y, and the most of
    these for w, so that a task that joins late is soon tracked. Parameters that are not
    shared get the sum of the gradients times the preferences.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        beta: The weight of the new gradient in what is tracked, in [0, 1].
        beta_sigma: How fast that falls, at least 0.
        gamma: The step of the weights, at least 0.
        gamma_sigma: How fast that falls, at least 0.
        rho: Pulls the weights together, at least 0.
        shared: What `task_gradients` got as `shared`: only these parameters are
            tracked, which takes T times their memory. A predicate needs
            ``static_args=("shared",)`` under `optax.inject_hyperparams`.
        preferences: A balancer that runs first, as in `balance`; None for ones.

    Returns:
        A combiner: a gradient transformation from the gradients of the tasks to one.

    Raises:
        ValueError: If a number is out of range; from `update`, if the gradients share
            other parameters.

    Example:
        >>> tx = moco(2, beta=1.0, gamma=0.2)
        >>> rows, params = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.zeros(2)
        >>> updates, state = tx.update(rows, tx.init(params), params)
        >>> [round(weight, 4) for weight in state.memory.weights.tolist()]
        [0.35, 0.65]
        >>> [round(update, 4) for update in updates.tolist()]
        [0.7, 0.65]

    References:
        Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A
        Provably Convergent Approach", ICLR 2023, algorithm 1. There the parameters move
        by y and w of before the step; as in the authors' code, these are the ones of
        after it. That code doubles the slope. The defaults are LibMTL's, which takes a
        softmax for the projection and scales each gradient to the length of its loss.
    """
    layout = task_layout(tasks)
    check_scalar("beta", beta, low=0, high=1)
    numbers = {"beta_sigma": beta_sigma, "gamma": gamma, "gamma_sigma": gamma_sigma}
    for name, value in {**numbers, "rho": rho}.items():
        check_scalar(name, value, low=0)

    def init_memory(params: Any, layout: TaskLayout) -> MocoState:
        num_tasks = layout.num_tasks
        return MocoState(
            memory_of_rows(layout, shared, params),
            jnp.full((num_tasks,), 1 / num_tasks, layout.dtype),
            jnp.zeros((num_tasks,), jnp.int32),
        )

    def rule(inputs: Inputs, memory: MocoState) -> Combined:
        active = inputs.preferences > 0
        steps = count_up(memory.steps, active)
        counts = jnp.maximum(steps, 1).astype(layout.dtype)
        rates = jnp.where(active, beta / counts**beta_sigma, 0)
        old, treedef = jax.tree.flatten(memory.tracked)
        tracked = [
            weighted(1 - rates, y) + weighted(rates, rows)
            for y, rows in zip(old, inputs.rows, strict=True)
        ]

        largest = jnp.max(inputs.preferences)
        relative = inputs.preferences / linalg.positive(largest)
        relative = jnp.where(active, jnp.maximum(relative, _MIN_PREFERENCE), 0)
        # The inner products of long rows overflow: measured in other units.
        size = jnp.max(jnp.stack([jnp.max(jnp.abs(y), initial=0) for y in tracked]))
        unit = jnp.where(size > _LONG, size, 1).astype(layout.dtype)
        grams = [linalg.gram(y / unit.astype(y.dtype)) for y in tracked]
        gramian = sum(grams, start=jnp.zeros((), layout.dtype)).astype(layout.dtype)
        rate = jnp.asarray(gamma / jnp.max(counts) ** gamma_sigma * unit * unit)
        rates = {"gamma": jnp.minimum(rate, _LARGEST_RATE), "rho": rho / unit / unit}
        found = moco_weights(gramian, memory.weights, relative, **rates)
        scaled = jnp.where(active, found / jnp.where(active, relative, 1), 0)
        gradients = [linalg.weighted_sum(scaled, y) for y in tracked]
        weights = jnp.where(active, found, memory.weights)
        state = MocoState(treedef.unflatten(tracked), weights, steps)
        return Combined(gradients, state, inputs.preferences)

    return combiner(
        rule,
        tasks,
        preferences=preferences,
        init_memory=init_memory,
        shared=shared,
        remembers=True,
    )
