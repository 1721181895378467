"""Losses in the order of time: each waits until those before it are small."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number
from dtp_jax._core.layout import TaskLayout, layout_of
from dtp_jax._core.reads import read_losses


class CausalState(NamedTuple):
    """State of `causal`."""

    smallest: jax.Array  # [], the smallest weight of the last step
    rung: jax.Array  # [], int32, which of the tolerances holds


def causal(
    tolerance: jax.typing.ArrayLike | Sequence[float] = 1.0, *, threshold: float = 0.99
) -> Balancer:
    """Weights losses of successive times by how well the earlier ones are solved.

    For losses ``L_1 .. L_N`` in the order of time, ``[N]`` in one array::

        w_i = exp(-tolerance * (L_1 + .. + L_(i-1)))

    So the first counts in full, and a later one only when those before it are small: a
    network that solves an equation in time is kept from fitting the end while the start
    is wrong. Costs one forward and one backward pass, whatever N is.

    Several tolerances are a ladder. The first holds until the smallest weight exceeds
    `threshold`, then the next, to the last. The smallest weight is in the state, for
    the paper's rule to stop, when it exceeds the threshold at the last rung:
    ``optax.tree.get(opt_state, "smallest")``.

    Losses must be at least 0. Preferences multiply the weights. A loss that is masked,
    not finite or of a task that is not active counts as 0 for those after it.

    Args:
        tolerance: At least 0; 0 for equal weights. Or a ladder, a sequence of them.
        threshold: Of the smallest weight, in [0, 1]; for a ladder.

    Returns:
        A loss-driven balancer for tasks in one array, ``tasks=N`` or
        ``{"residuals": array}``: the names of a dict are sorted, ``t1, t10, t2``, which
        is not their order.

    Raises:
        ValueError: If a number is out of range, or the ladder is empty; from `init` and
            `update`, if the tasks are not the elements of one array; from `update`, if
            there are no losses.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = causal(tolerance=2.0), jnp.ones(3)
        >>> losses = jnp.array([0.5, 0.1, 3.0])
        >>> weights, _ = balancer.update(ones, balancer.init(ones), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]  # 1, exp(-1), exp(-1.2)
        [1.0, 0.3679, 0.3012]

    References:
        Wang, Sankaran & Perdikaris, "Respecting causality is all you need for training
        physics-informed neural networks", 2022, section 3 and algorithm 1, whose
        ladder is (0.01, 0.1, 1, 10, 100) and whose loss is the mean: the weights here
        sum to at most N, so that its rate is that of preferences ``1 / N``. Its initial
        condition is ``L_1``, or a loss with a link of its own.
    """
    ladder = tolerance if isinstance(tolerance, (list, tuple)) else [tolerance]
    if not ladder:
        raise ValueError("tolerance must be a number, or at least one, got none.")
    for rung in ladder:
        check_number("tolerance", rung, low=0)
    check_number("threshold", threshold, low=0, high=1)

    def init(params: Any) -> CausalState:
        layout = layout_of(params)
        _check_order(layout)
        return CausalState(jnp.zeros((), layout.dtype), jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: CausalState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, CausalState]:
        del extra_args
        layout, losses, preferences = read_losses("causal", updates, params)
        _check_order(layout)
        active = preferences > 0
        counted = jnp.where(active, jnp.maximum(losses, 0), 0)
        # Summing all but the last keeps the digits that taking the own loss off loses.
        start = jnp.zeros_like(counted[:1])
        before = jnp.concatenate([start, jnp.cumsum(counted[:-1])])
        before = jnp.minimum(before, jnp.finfo(before.dtype).max)
        rungs = jnp.stack([jnp.asarray(rung, layout.dtype) for rung in ladder])
        factors = jnp.exp(-rungs[state.rung] * before)
        smallest = jnp.min(jnp.where(active, factors, 1))
        climbs = (smallest > threshold) & jnp.any(active)
        rung = jnp.minimum(state.rung + climbs.astype(jnp.int32), len(ladder) - 1)
        weights = nonzero(preferences * factors, preferences)
        return layout.tree(weights), CausalState(smallest, rung)

    return transformation(init, update)


def _check_order(layout: TaskLayout) -> None:
    if len(layout.shapes) > 1 and layout.has_names:
        raise ValueError(
            f"causal takes losses in the order of time, but the tasks "
            f"{', '.join(layout.names)} are in the order of their names. Give them in "
            "one array: tasks=N, with losses of shape [N]."
        )
