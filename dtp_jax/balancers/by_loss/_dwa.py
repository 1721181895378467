"""Dynamic weight average."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_choice, check_scalar
from dtp_jax._core.layout import layout_of
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import read_losses

# Far beyond where a softmax saturates, and far from where float32 overflows.
_LARGEST_LOGIT = 1e30


class DwaState(NamedTuple):
    """State of `dwa`."""

    last: jax.Array  # [T], losses one step ago; zero if there is none
    before_last: jax.Array  # [T], losses two steps ago; zero if there is none


def dwa_weights(
    last: jax.Array,
    before_last: jax.Array,
    preferences: jax.Array,
    *,
    temperature: jax.typing.ArrayLike = 2.0,
) -> jax.Array:
    """The rule of `dwa`, from two losses of each task to the weights.

    Args:
        last: ``[T]``, the losses one step ago.
        before_last: ``[T]``, the losses two steps ago.
        preferences: ``[T]``, at least 0.
        temperature: See `dwa`.

    Returns:
        ``[T]``, zero where there is no preference.

    Example:
        >>> import jax.numpy as jnp
        >>> ones = jnp.ones(2)
        >>> weights = dwa_weights(jnp.array([1.0, 0.5]), ones, ones, temperature=0.5)
        >>> [round(weight, 4) for weight in weights.tolist()]  # 2 softmax(2, 1)
        [1.4621, 0.5379]
    """
    active = preferences > 0
    falls = before_last > 0
    rates = jnp.where(falls, last / jnp.where(falls, before_last, 1), 1)
    # The rate of a loss that was nearly zero may overflow.
    logits = jnp.clip(rates / temperature, 0, _LARGEST_LOGIT)
    shares = softmax_over(active, logits)
    return nonzero(preferences * jnp.sum(active) * shares, preferences)


def dwa(*, temperature: jax.typing.ArrayLike = 2.0, lag: Literal[0, 1] = 1) -> Balancer:
    """Prioritizes the tasks whose loss falls the slowest.

    Computes ``w = T softmax(r / temperature)``, where ``r = L(t-1) / L(t-2)`` is the
    rate of descent of each loss in its last two steps; the loss of the current step is
    only remembered. The softmax and T count the active tasks, and preferences multiply
    the weights.

    A rate that is not known yet counts as one, so that the first two steps have equal
    weights of one, and a task that joins later starts as one that stands still. Losses
    must be at least 0: a rate with nothing above zero to fall from counts as one, a
    negative rate as zero.

    Losses of single batches are noisy. The paper compares averages over epochs, which
    ``average_losses(dwa(lag=0), k)`` does for epochs of k steps.

    Args:
        temperature: The larger, the more even the weights; positive.
        lag: 1 as above. With 0 the rate is ``L(t) / L(t-1)``, for weights that are used
            after the losses they come from: those of the next epoch.

    Returns:
        A loss-driven balancer whose weights sum to T for preferences of one. Instead of
        zero, which would mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: If `temperature` is not positive or `lag` neither 0 nor 1; from
            `update`, if there are no losses.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = dwa(temperature=0.5), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for losses in [[2.0, 4.0], [2.0, 2.0], [1.0, 1.0]]:
        ...     weights, state = balancer.update(ones, state, jnp.array(losses))
        >>> [round(weight, 4) for weight in weights.tolist()]  # rates 1 and 0.5
        [1.4621, 0.5379]

    References:
        Liu, Johns, Davison, "End-To-End Multi-Task Learning With Attention", CVPR 2019,
        equation 7, and the authors' code, which agree: on a fixed sequence the weights
        are the same to rounding. The guards for zero losses are ours. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("temperature", temperature, low=0, open_low=True, infinite=True)
    check_choice("lag", lag, (0, 1))

    def init(params: Any) -> DwaState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        # Arrays of their own: a donated buffer may stand in one field only.
        return DwaState(zeros, jnp.copy(zeros))

    def update(
        updates: Any, state: DwaState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, DwaState]:
        del extra_args
        layout, losses, preferences = read_losses("dwa", updates, params)
        active = preferences > 0
        # `inject_hyperparams` traces the lag along with the temperature.
        last = jnp.where(lag == 1, state.last, losses)
        before_last = jnp.where(lag == 1, state.before_last, state.last)
        weights = dwa_weights(last, before_last, preferences, temperature=temperature)
        new = DwaState(
            jnp.where(active, losses, state.last),
            jnp.where(active, state.last, state.before_last),
        )
        return layout.tree(weights), new

    return transformation(init, update)
