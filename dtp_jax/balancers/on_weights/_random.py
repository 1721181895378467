"""Random loss weighting."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import layout_of
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import required

Total = Literal["sum_to_T", "sum_to_1"]

# Folded into the key, so that several links of a chain may share it.
_STREAM = 0x524C57


class RandomState(NamedTuple):
    """State of `random` with a seed."""

    step: jax.Array  # [], int32, number of updates so far


def random(
    *, total: Total = "sum_to_T", seed: jax.typing.ArrayLike | None = None
) -> Balancer:
    """Draws new weights in every step, whatever the losses.

    Computes ``w = p * n * softmax(z)`` with independent standard normal ``z``, where n
    is the number of active tasks, or 1. On average over the steps every task has the
    same weight; the authors found this noise hard to beat, so it is a baseline for the
    others. It reads no losses.

    Nothing is global. Either `update` gets the extra argument `key`, a new one in each
    step, or the factory gets a `seed`: then the state counts the steps, so a restored
    run goes on with the draws of the uninterrupted one. The same key, or the same seed
    and step, draws the same weights on every device. The draws go to the active tasks
    in the order of `jax.tree.leaves`: a task that is not active takes none.

    Args:
        total: What the weights sum to for preferences of one: "sum_to_T", the number
            of active tasks, for updates of the size of the plain sum; "sum_to_1" as in
            the paper.
        seed: For those who supply no key; one that is supplied is not read then.

    Returns:
        A balancer.

    Raises:
        ValueError: If `total` is unknown or `seed` is a negative number or a float;
            from `update`, if there is neither a seed nor a key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> balancer, ones = random(), jnp.ones(3)
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, ones, key=jax.random.key(0))
        >>> round(jnp.sum(weights).item(), 4)
        3.0

    References:
        Lin, Ye, Zhang, Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus
        Test for Multi-Task Learning", TMLR 2022 (RLW, algorithm 2, normal
        distribution). Their code sums to 1; it also passes uniform and Dirichlet draws
        through the softmax, and switches tasks on and off at random, for which there is
        `curricula.sample_tasks`. Heads: ``balance(..., heads="weights")``.
    """
    if total not in get_args(Total):
        raise ValueError(f"total must be 'sum_to_T' or 'sum_to_1', got {total!r}.")
    check_whole("seed", seed)

    def init(params: Any) -> Any:
        del params
        if seed is None:
            return optax.EmptyState()
        return RandomState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params, extra
        if seed is None:
            how = "pass a new PRNG key in each step, key=..., or say random(seed=0)"
            key = required(key, "key", "random", how)
        else:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            state = RandomState(next_step(state.step))
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        active = preferences > 0
        shares = softmax_over(active, _draw(key, active, preferences.dtype))
        size = jnp.sum(active) if total == "sum_to_T" else 1
        return layout.tree(nonzero(preferences * size * shares, preferences)), state

    return transformation(init, update)


def _draw(key: jax.Array, active: jax.Array, dtype: Any) -> jax.Array:
    """A standard normal number for each active task, as if there were no others."""
    stream = jax.random.fold_in(key, _STREAM)
    places = jnp.cumsum(active) - 1

    def one(place: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(stream, place), (), dtype)

    return jax.vmap(one)(places)
