"""Drawing the tasks of a step."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from dtp_jax import gumbel
from dtp_jax._core import linalg
from dtp_jax._core.checks import check_scalar, check_whole, known_number

Sampling = Literal["gumbel", "systematic"]


class SampledTasks(NamedTuple):
    """The tasks drawn for a step."""

    indices: jax.Array  # [k], int32, which tasks
    factors: jax.Array  # [k], by which to multiply their weights


def sample_tasks(
    key: jax.Array,
    weights: jax.typing.ArrayLike,
    k: int,
    *,
    method: Sampling = "gumbel",
    uniform: jax.typing.ArrayLike = 0.0,
) -> SampledTasks:
    """Draws k of T tasks by priority, so that many can be trained a few at a time.

    The tasks are different, and the more likely the larger their weight. The factors
    make up for the tasks left out: the expectation of ``sum_i factors[i]
    weights[indices[i]] g[indices[i]]`` is ``sum_t weights[t] g[t]``, whatever g. Train
    on the drawn tasks only; the others then cost no forward and no backward pass. For
    weights that need no gradient, that is KPI- or loss-driven ones.

    With `uniform` the tasks are drawn by the mixture ``(1 - uniform) * w / sum(w) +
    uniform / n`` instead, n the number of tasks of positive weight, so that none is
    forgotten for long. The factors are those of the mixture, and the expectation above
    stays. Where the draw itself is meant to be the priority, as in docs/many_tasks.md,
    leave out both weights and factors.

    "gumbel" draws one after the other without replacement (Gumbel top-k). With kappa
    the (k+1)-th largest perturbed log-weight, -inf for k = T, the factor is ``1 / (1 -
    exp(-exp(log w - kappa)))``. "systematic" includes each task with a probability of
    exactly ``min(1, c w)``, where c makes them sum to k, and has the inverse
    probability as factor. Its variance is lower; some pairs of tasks may be unlikely to
    meet, which a random order of the tasks in each draw evens out.

    Args:
        key: A PRNG key. The same key decides the same on every device.
        weights: ``[T]``, finite and at least 0, of any scale. A task of weight zero is
            drawn only if there are not k others, and then has the factor zero.
        k: How many tasks to draw, from 1 to T.
        method: "gumbel" or "systematic".
        uniform: The share of the draws that is uniform over the tasks of positive
            weight, in [0, 1]. Tasks of weight zero stay undrawn.

    Returns:
        Indices ``[k]`` and factors ``[k]``, at least 1 (or 0 as said above).

    Raises:
        ValueError: If k is not from 1 to T, the weights are not one array, `method` is
            unknown, or `uniform` is out of range.

    Example:
        >>> import jax
        >>> drawn = sample_tasks(jax.random.key(0), jnp.array([3.0, 1.0, 2.0]), 3)
        >>> sorted(drawn.indices.tolist()), drawn.factors.tolist()
        ([0, 1, 2], [1.0, 1.0, 1.0])

    References:
        Kool, van Hoof, Welling, "Estimating Gradients for Discrete Random Variables by
        Sampling without Replacement", ICLR 2020; Vieira, "Estimating means in a finite
        universe", 2017; Madow, "On the theory of systematic sampling", 1949.
    """
    weights = jnp.asarray(weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must have shape [T], got {list(weights.shape)}.")
    num_tasks = weights.shape[0]
    check_whole("k", k, low=1)
    if k > num_tasks:
        raise ValueError(
            f"k must be at most the number of tasks, {num_tasks}, got {k}."
        )
    check_scalar("uniform", uniform, low=0, high=1)
    if method not in get_args(Sampling):
        raise ValueError(f"method must be one of {get_args(Sampling)}, got {method!r}.")
    weights = weights.astype(jnp.promote_types(jnp.float32, weights.dtype))
    weights = jnp.where(weights > 0, weights, 0)
    weights = _mixed(weights, uniform)
    draw = _draw_gumbel if method == "gumbel" else _draw_systematic
    indices, probabilities = draw(key, weights, k)
    drawn = weights[indices] > 0
    factors = jnp.where(drawn, 1 / jnp.where(drawn, probabilities, 1), 0)
    return SampledTasks(indices.astype(jnp.int32), factors)


def _mixed(weights: jax.Array, uniform: jax.typing.ArrayLike) -> jax.Array:
    """The weights, in part replaced by equal ones of the same sum."""
    if known_number(uniform) == 0:
        return weights
    positive = weights > 0
    # Divided before they are summed, large weights do not overflow.
    count = jnp.maximum(jnp.sum(positive), 1)
    mean = jnp.sum(weights / count)
    return jnp.where(positive, (1 - uniform) * weights + uniform * mean, 0)


def _draw_gumbel(
    key: jax.Array, weights: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    log_weights = jnp.log(weights)
    perturbed = gumbel.perturbed_logits(key, log_weights)
    largest, order = jax.lax.top_k(perturbed, min(k + 1, weights.shape[0]))
    indices = order[:k]
    kappa = largest[k] if k < weights.shape[0] else -jnp.inf
    return indices, -jnp.expm1(-jnp.exp(log_weights[indices] - kappa))


def _draw_systematic(
    key: jax.Array, weights: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    num_tasks = weights.shape[0]
    order_key, start_key = jax.random.split(key)
    order = jax.random.permutation(order_key, num_tasks)
    probabilities = _inclusion_probabilities(weights, k)
    ends = jnp.cumsum(probabilities[order])
    # One point in each unit interval; rounding must not push the last beyond the end.
    start = jax.random.uniform(start_key, (), ends.dtype)
    points = (start + jnp.arange(k)) * (ends[-1] / k)
    places = jnp.searchsorted(ends, points, side="right")
    # No probability exceeds one, so the places differ, up to rounding.
    steps = jnp.arange(k)
    places = jax.lax.cummax(places - steps) + steps
    indices = order[jnp.minimum(places, num_tasks - k + steps)]
    return indices, probabilities[indices]


def _inclusion_probabilities(weights: jax.Array, k: int) -> jax.Array:
    """``min(1, c w)`` with the c for which they sum to k."""
    num_tasks = weights.shape[0]
    order = jnp.argsort(-weights)
    largest = weights[order[0]]
    ordered = weights[order] / linalg.positive(largest)
    # If the j largest are certain, the others share k - j in proportion. The right j is
    # the smallest for which none of the others exceeds one.
    rest = jnp.cumsum(ordered[::-1])[::-1]
    certain = jnp.arange(num_tasks)
    left = jnp.maximum(k - certain, 0)
    fits = ordered * left <= rest
    j = jnp.argmax(fits)
    scale = left[j] / linalg.positive(rest[j])
    found = jnp.where(certain < j, 1.0, jnp.minimum(ordered * scale, 1.0))
    return jnp.zeros_like(weights).at[order].set(found)
