"""Relative loss balancing with random lookback."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import layout_of
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import read_losses, required

# Far beyond where a softmax saturates, and far from where float32 overflows.
_LARGEST_LOGIT = 1e30

# Folded into the key, so that several links of a chain may share it.
_STREAM = 0x52654C6F


class RelobraloState(NamedTuple):
    """State of `relobralo`."""

    weights: jax.Array  # [T], of the last step, before preferences
    first: jax.Array  # [T], losses of the first step; zero if there is none
    last: jax.Array  # [T], losses of the last step; zero if there is none
    step: jax.Array  # [], int32, number of updates, for draws from a seed


def relobralo(
    *,
    alpha: jax.typing.ArrayLike = 0.999,
    temperature: jax.typing.ArrayLike = 0.1,
    rho: jax.typing.ArrayLike = 0.9999,
    seed: jax.typing.ArrayLike | None = None,
) -> Balancer:
    """Prioritizes the tasks whose loss has fallen the least, sometimes since the start.

    With T active tasks, softmax and sums over them, and ``r`` drawn as 1 with the
    probability `rho`, else 0, one number for all tasks::

        balance(t, t') = T * softmax(L(t) / (temperature * L(t')))
        history = r * w(t-1) + (1 - r) * balance(t, 0)
        w(t) = alpha * history + (1 - alpha) * balance(t, t-1)

    The weights start at one. A task that joins later has made no progress in its first
    step, ``L(t) / L(t') = 1``, and from then on compares with that step. Where tasks
    come or go, ``w(t-1)`` is scaled to sum to the T of now. Preferences multiply the
    weights. Losses must be at least 0: without anything above zero to compare with, a
    ratio counts as one, and a negative ratio counts as zero.

    Either `update` gets the extra argument `key`, a new one in each step, or the
    factory a `seed`; both decide the same on every device.

    Args:
        alpha: The share of the history, in [0, 1].
        temperature: The larger, the more even the weights; positive.
        rho: How likely the history is that of the last step, in [0, 1]; 1 never looks
            back to the start.
        seed: For those who supply no key: the draws then follow the step counter.

    Returns:
        A loss-driven balancer whose weights sum to T for preferences of one. Instead of
        zero, which would mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            losses, or neither a seed nor a key.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = relobralo(alpha=0.5, temperature=1.0, rho=1.0, seed=0)
        >>> ones = jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for losses in [[2.0, 4.0], [2.0, 2.0]]:
        ...     weights, state = balancer.update(ones, state, jnp.array(losses))
        >>> [round(weight, 4) for weight in weights.tolist()]  # 1/2 + softmax(1, 0.5)
        [1.1225, 0.8775]

    References:
        Bischof, Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep
        Learning", 2021 (Computer Methods in Applied Mechanics and Engineering 2025),
        equation 11. The defaults are those of its Burgers problem; its Helmholtz
        problem takes 0.99, 1e-5 and 0.99, the authors' code 0.999, 1 and 1. On a fixed
        sequence and equal draws the weights agree to rounding, but for the first step,
        where their code compares with losses of one. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("alpha", alpha, low=0, high=1)
    check_scalar("temperature", temperature, low=0, open_low=True, infinite=True)
    check_scalar("rho", rho, low=0, high=1)
    check_whole("seed", seed)

    def init(params: Any) -> RelobraloState:
        layout = layout_of(params)
        ones = jnp.ones((layout.num_tasks,), layout.dtype)
        zeros = jnp.zeros_like(ones)
        # Arrays of their own: a donated buffer may stand in one field only.
        return RelobraloState(ones, zeros, jnp.copy(zeros), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: RelobraloState,
        params: Any = None,
        *,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, RelobraloState]:
        del extra_args
        layout, losses, preferences = read_losses("relobralo", updates, params)
        if seed is None:
            how = "pass a new PRNG key in each step, key=..., or say relobralo(seed=0)"
            key = required(key, "key", "relobralo", how)
        else:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, _STREAM)
        active = preferences > 0
        num_active = jnp.sum(active)

        def balanced(reference: jax.Array) -> jax.Array:
            known = reference > 0
            ratio = jnp.where(known, losses / jnp.where(known, reference, 1), 1)
            # The ratio to a loss that was nearly zero may overflow.
            logits = jnp.clip(ratio / temperature, 0, _LARGEST_LOGIT)
            return num_active * softmax_over(active, logits)

        total = jnp.sum(state.weights, where=active)
        scaled = state.weights * (num_active / linalg.positive(total))
        scaled = jnp.where(total > 0, scaled, 1)
        keep = jax.random.bernoulli(key, rho)
        history = jnp.where(keep, scaled, balanced(state.first))
        weights = alpha * history + (1 - alpha) * balanced(state.last)
        new = RelobraloState(
            jnp.where(active, weights, state.weights),
            jnp.where(active & (state.first <= 0), losses, state.first),
            jnp.where(active, losses, state.last),
            next_step(state.step),
        )
        return layout.tree(nonzero(preferences * weights, preferences)), new

    return transformation(init, update)
