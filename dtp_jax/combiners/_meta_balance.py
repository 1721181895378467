"""Auxiliary gradients of the primary one's size, tensor by tensor."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.layout import TaskLayout, task_layout
from dtp_jax.gradients import Shared, row_norms, shared_mask
from dtp_jax.links._combiner import Combined, Inputs, combiner

Strategy = Literal["both", "reduce", "enlarge"]


class MetaBalanceState(NamedTuple):
    """What `meta_balance` remembers."""

    norms: tuple[jax.Array, ...]  # of each shared parameter [T], running sums
    corrections: jax.Array  # [T], 1 - beta^k for k steps of the task


def meta_balance(
    tasks: Any,
    primary: str | int,
    *,
    relax: jax.typing.ArrayLike = 0.7,
    beta: jax.typing.ArrayLike = 0.9,
    strategy: Strategy = "both",
    shared: Shared | None = None,
    preferences: optax.GradientTransformation | None = None,
) -> Balancer:
    """Brings the auxiliary gradients to the size of the primary task's.

    In each parameter tensor on its own, with n_t the running average of the norm of
    the task's gradient there, and p the primary task::

        g_t <- relax * g_t * n_p / n_t + (1 - relax) * g_t

    and the update is their sum. An auxiliary task neither drowns the primary one in a
    layer, nor vanishes there. Strategies: "reduce" only scales down those with ``n_t >
    n_p``, "enlarge" only scales up those with ``n_t < n_p``, "both" does both.

    Preferences multiply the gradients after that. A task that is not active keeps its
    average. Where the primary task is not active, or its gradient zero so far, the
    others are left as they are. Parameters that are not shared get the sum of the
    gradients times the preferences.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        primary: The name of the primary task, or its position.
        relax: How near the sizes come, in [0, 1].
        beta: Of the running averages, in [0, 1).
        strategy: One of the above.
        shared: What `task_gradients` got as `shared`.
        preferences: A balancer that runs first, as in `balance`; None for ones.

    Returns:
        A combiner: a gradient transformation from the gradients of the tasks to one.

    Raises:
        ValueError: If a number is out of range, or there is no such task or strategy;
            from `update`, if the gradients share other parameters.

    Example:
        >>> tx = meta_balance(2, 0, relax=0.5)
        >>> rows, params = jnp.array([[3.0, 4.0], [0.0, 50.0]]), jnp.zeros(2)
        >>> updates, _ = tx.update(rows, tx.init(params), params)
        >>> updates.tolist()  # (3, 4) + 0.5 (0, 5) + 0.5 (0, 50)
        [3.0, 31.5]

    References:
        He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting
        Gradient Magnitudes of Auxiliary Tasks", WWW 2022, algorithm 1 and section 3.3;
        the strategy of the authors' code is "both".
    """
    layout = task_layout(tasks)
    place = layout.position("primary", primary)
    check_scalar("relax", relax, low=0, high=1)
    check_scalar("beta", beta, low=0, high=1, open_high=True)
    if strategy not in get_args(Strategy):
        names = get_args(Strategy)
        raise ValueError(f"strategy must be one of {names}, got {strategy!r}.")

    def init_memory(params: Any, layout: TaskLayout) -> MetaBalanceState:
        number = sum(shared_mask(shared, params))
        # Arrays of their own: a donated buffer may stand in one field only.
        zeros = [
            jnp.zeros((layout.num_tasks,), layout.dtype) for _ in range(number + 1)
        ]
        return MetaBalanceState(tuple(zeros[1:]), zeros[0])

    def rule(inputs: Inputs, memory: MetaBalanceState) -> Combined:
        active = inputs.preferences > 0

        def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
            moved = beta * old + (1 - beta) * new
            return jnp.where(active, moved, old).astype(old.dtype)

        corrections = averaged(memory.corrections, jnp.ones_like(memory.corrections))
        started = linalg.positive(corrections)
        norms, gradients = [], []
        for old, rows in zip(memory.norms, inputs.rows, strict=True):
            found = jnp.where(active, row_norms([rows]), 0)
            running = averaged(old, found.astype(old.dtype))
            norms.append(running)
            average = running / started
            target = jnp.where(active[place], average[place], 0)
            usable = (average > 0) & (target > 0)
            ratios = jnp.where(usable, target / jnp.where(usable, average, 1), 1)
            if strategy == "reduce":
                ratios = jnp.minimum(ratios, 1)
            if strategy == "enlarge":
                ratios = jnp.maximum(ratios, 1)
            scales = relax * ratios + (1 - relax)
            weights = jnp.where(active, inputs.preferences * scales, 0)
            gradients.append(linalg.weighted_sum(weights, rows))
        state = MetaBalanceState(tuple(norms), corrections)
        return Combined(gradients, state, inputs.preferences)

    return combiner(
        rule,
        tasks,
        preferences=preferences,
        init_memory=init_memory,
        shared=shared,
        remembers=True,
    )
