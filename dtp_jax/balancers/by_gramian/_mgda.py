"""The multiple-gradient descent algorithm."""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, gramian_weighting, transformation
from dtp_jax._core.linalg import correlation, positive, subproblem
from dtp_jax._core.reads import read_losses, required
from dtp_jax.solvers import min_norm_point

Normalization = Literal["l2", "loss", "loss+"]
_BY_LOSS = ("loss", "loss+")

# The smallest divisor of a gradient, relative to the largest.
_MIN_DIVISOR = 1e-12


def mgda_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    losses: jax.Array | None = None,
    normalization: Normalization | None = None,
) -> jax.Array:
    """The rule of `mgda`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        losses: ``[T]``, read by the normalizations "loss" and "loss+" only. A task
            whose loss is not finite counts as one without a preference.
        normalization: See `mgda`.

    Returns:
        ``[T]``, at least 0, with ``sum_t p_t w_t = 1``; all zero if no task has a
        preference.

    Raises:
        ValueError: If `normalization` is unknown or needs losses.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])
        >>> [round(weight, 4) for weight in mgda_weights(gramian).tolist()]
        [0.2, 0.8]
        >>> preferences = jnp.array([2.0, 1.0])
        >>> weights = mgda_weights(gramian, preferences)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.25, 0.5]
    """
    _check_normalization(normalization)
    gramian, preferences = subproblem(gramian, preferences)
    if normalization in ("l2", "loss+"):
        gramian, _ = correlation(gramian)
    if normalization in _BY_LOSS:
        how = "pass it as an array [T]"
        losses = jnp.asarray(required(losses, "losses", "mgda_weights", how))
        losses = jax.lax.stop_gradient(losses.astype(preferences.dtype))
        preferences = jnp.where(jnp.isfinite(losses), preferences, 0)
        divisors = _divisors(losses, preferences > 0)
    else:
        divisors = jnp.ones_like(preferences)
    # The weights `a / p` of gradients `g / c` are `a / (p c)` in terms of `g`, which
    # solve the problem with preferences `p c`.
    return divisors * min_norm_point(gramian, preferences * divisors).weights


def mgda(*, normalization: Normalization | None = None) -> Balancer:
    """Descends along the shortest vector in the convex hull of the task gradients.

    Computes ``a = argmin norm(sum_t a_t g_t)`` over ``a >= 0`` with ``sum_t a_t = 1``,
    exactly. The step ``d`` has ``<g_t, d> >= norm(d)^2`` for every task: none gets
    worse to first order, and ``d`` is zero where none can improve without another
    getting worse. Short gradients get large weights; a zero gradient gets all weight.

    Preferences ``p`` divide the gradients, and the weights are ``a / p``. So a task of
    larger preference has a larger weight, and ``sum_t p_t w_t = 1``. Where all
    preferences are small, as those of `focal` are for good KPIs, the weights are large:
    chain `normalize_weights` after it to fix their sum.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        normalization: What each gradient is divided by before ``a`` is computed, to be
            used with the losses as they are: None for nothing; "l2", its norm; "loss",
            its loss; "loss+", both. The authors' code offers them, the paper does not.
            Losses below 1e-12 of the largest, also negative ones, count as that.

    Returns:
        A balancer whose weights lie on the simplex for preferences of one. Instead of
        zero, which would mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: If `normalization` is unknown; from `update`, if there are no task
            gradients, or no losses for a normalization that needs them.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = mgda(), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.2, 0.8]

    References:
        Desideri, "Multiple-gradient descent algorithm (MGDA) for multiobjective
        optimization", Comptes Rendus Mathematique 350, 2012. Sener & Koltun,
        "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, equation 3.
        Heads: ``balance(..., heads="preferences")``, unscaled gradients, is the paper's
        algorithm 2; ``heads="weights"`` is the authors' code.
    """
    _check_normalization(normalization)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        losses = None
        if normalization in _BY_LOSS:
            name = f"mgda({normalization=})"
            layout, losses, preferences = read_losses(name, updates, params)
            updates = layout.tree(preferences)
        rule = functools.partial(
            mgda_weights, losses=losses, normalization=normalization
        )
        balancer = gramian_weighting("mgda", rule)
        return balancer.update(updates, state, params, **extra_args)

    return transformation(lambda params: optax.EmptyState(), update)


def _divisors(losses: jax.Array, active: jax.Array) -> jax.Array:
    """What the losses divide by, up to a factor: from 1 to 1e12."""
    largest = jnp.max(jnp.where(active, losses, 0))
    relative = losses / positive(largest)
    divisors = jnp.where(active, jnp.maximum(relative, _MIN_DIVISOR), 1)
    # Only ratios matter, and preferences may be too small for factors less than one.
    return divisors / jnp.min(divisors)


def _check_normalization(normalization: Any) -> None:
    choices = (None, *get_args(Normalization))
    if normalization not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"normalization must be one of {names}, got {normalization!r}."
        )
