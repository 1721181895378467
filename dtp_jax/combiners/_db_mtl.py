"""Dual balancing: logarithms of the losses, gradients of equal length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import TaskLayout, task_layout
from dtp_jax._core.reads import required
from dtp_jax.gradients import Shared, row_norms
from dtp_jax.links._combiner import Combined, Inputs, combiner, memory_of_rows, weighted


class DbMtlState(NamedTuple):
    """What `db_mtl` remembers."""

    averages: Any  # [T, *param] of each shared parameter, the averaged gradients
    steps: jax.Array  # [T], int32, in how many steps each task was active


def sum_of_equal_norms(
    leaves: list[jax.Array], preferences: jax.Array
) -> list[jax.Array]:
    """The sum of gradients that are all scaled to the length of the longest.

    Args:
        leaves: The gradients of each parameter, ``[T, *param]``.
        preferences: ``[T]``, factors of the scaled gradients; those of preference zero
            do not count.

    Returns:
        The combined gradient of each parameter. A zero gradient adds nothing.

    Example:
        >>> rows = jnp.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
        >>> sum_of_equal_norms([rows], jnp.ones(3))[0].tolist()
        [3.0, 9.0]
    """
    norms = jnp.where(preferences > 0, row_norms(leaves), 0)
    factors = preferences / linalg.positive(norms)
    # Times the largest last: its ratio to a tiny norm may overflow.
    largest = jnp.max(norms)
    return [largest * linalg.weighted_sum(factors, rows) for rows in leaves]


def db_mtl(
    tasks: Any,
    *,
    beta: jax.typing.ArrayLike = 0.9,
    beta_sigma: jax.typing.ArrayLike = 0.0,
    eps: jax.typing.ArrayLike = 1e-8,
    shared: Shared | None = None,
    preferences: optax.GradientTransformation | None = None,
) -> Balancer:
    """Balances the losses by their logarithms and the gradients by their lengths.

    Takes the gradients of ``log(L_t + eps)``, averages them over the steps, scales each
    to the length of the longest and adds them up. In step k, counted from 1::

        b = beta / k**beta_sigma
        u_t = b * u_t + (1 - b) * g_t / (L_t + eps)
        d = sum_t max_s norm(u_s) / norm(u_t) * u_t

    with u_t zero at the start. Losses must be at least 0; a negative one counts as 0.
    The length of d is that of the longest, which a loss near zero makes very long:
    `optax.clip_by_global_norm` belongs after it.

    Preferences multiply the gradients of equal length. A task that is not active keeps
    its average, and k counts the steps in which a task was active. Parameters that are
    not shared get the gradient of ``sum_t p_t log(L_t + eps)``, as in the paper.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        beta: The weight of the past in the average, in [0, 1).
        beta_sigma: How fast that falls, at least 0; 0 for not at all.
        eps: Added to the losses, greater than 0.
        shared: What `task_gradients` got as `shared`: only gradients of these
            parameters are averaged, which takes T times their memory. A predicate needs
            ``static_args=("shared",)`` under `optax.inject_hyperparams`.
        preferences: A balancer that runs first, as in `balance`; None for ones.

    Returns:
        A combiner: a gradient transformation from the gradients of the tasks to one.

    Raises:
        ValueError: If a number is out of range; from `update`, if there are no losses,
            or the gradients share other parameters.

    Example:
        >>> from dtp_jax import task_gradients
        >>> losses_fn = lambda w: {"a": w[0] ** 2, "b": 10.0 * w[1]}
        >>> tx = db_mtl(["a", "b"], beta=0.0)
        >>> params = jnp.ones(2)  # the gradients of the logarithms are (2, 0), (0, 1)
        >>> updates, _ = tx.update(task_gradients(losses_fn)(params), tx.init(params))
        >>> [round(update, 4) for update in updates.tolist()]
        [2.0, 2.0]

    References:
        Lin et al., "Dual-Balancing for Multi-Task Learning", 2023 (arXiv 2308.12029),
        algorithm 1. The defaults are those of the authors' code in LibMTL, which adds
        1e-8 to the norms, too.
    """
    layout = task_layout(tasks)
    check_scalar("beta", beta, low=0, high=1, open_high=True)
    check_scalar("beta_sigma", beta_sigma, low=0)
    check_scalar("eps", eps, low=0, open_low=True)

    def init_memory(params: Any, layout: TaskLayout) -> DbMtlState:
        steps = jnp.zeros((layout.num_tasks,), jnp.int32)
        return DbMtlState(memory_of_rows(layout, shared, params), steps)

    def rule(inputs: Inputs, memory: DbMtlState) -> Combined:
        how = "pass a TaskGradients, or losses= next to stacked gradients"
        losses = required(inputs.losses, "losses", "db_mtl", how)
        inverse = 1 / (jnp.maximum(losses, 0) + eps)
        active = inputs.preferences > 0
        steps = count_up(memory.steps, active)
        counts = jnp.maximum(steps, 1).astype(layout.dtype)
        rates = jnp.where(active, 1 - beta / counts**beta_sigma, 0)
        old, treedef = jax.tree.flatten(memory.averages)
        averages = [
            u + weighted(rates, weighted(inverse, rows) - u)
            for u, rows in zip(old, inputs.rows, strict=True)
        ]
        gradients = sum_of_equal_norms(averages, inputs.preferences)
        state = DbMtlState(treedef.unflatten(averages), steps)
        return Combined(gradients, state, inputs.preferences * inverse)

    return combiner(
        rule,
        tasks,
        preferences=preferences,
        init_memory=init_memory,
        shared=shared,
        remembers=True,
    )
