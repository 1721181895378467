"""Aligned-MTL: independent components of the gradients, all of one size."""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting

Scale = Literal["min", "median", "rmse"]


def aligned_mtl_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    scale: Scale = "min",
) -> jax.Array:
    """The rule of `aligned_mtl`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        scale: See `aligned_mtl`.

    Returns:
        ``[T]`` of any sign; zero for a task without a preference.

    Raises:
        ValueError: If the shapes do not fit or `scale` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])
        >>> [round(weight, 4) for weight in aligned_mtl_weights(gramian).tolist()]
        [0.5, 1.0]
    """
    _check_scale(scale)
    gramian, preferences = linalg.subproblem(gramian, preferences)
    largest = jnp.max(jnp.diagonal(gramian))
    gramian = gramian / linalg.positive(largest)
    vectors, values = jax.lax.linalg.eigh(gramian, symmetrize_input=False)
    num_active = jnp.sum(preferences > 0)
    tolerance = num_active * jnp.finfo(values.dtype).eps * jnp.max(values)
    kept = values > tolerance
    rank = jnp.sum(kept)
    # The eigenvalues ascend, and those that are kept come last.
    if scale == "rmse":
        size = jnp.sum(jnp.where(kept, values, 0)) / jnp.maximum(rank, 1)
    else:
        place = 0 if scale == "min" else jnp.maximum(rank - 1, 0) // 2
        size = values[jnp.minimum(values.size - rank + place, values.size - 1)]
    factors = jnp.sqrt(size / jnp.where(kept, values, 1))
    factors = jnp.where(kept, factors, 0)
    parts = jnp.matmul(preferences, vectors, precision="highest") * factors
    weights = jnp.matmul(vectors, parts, precision="highest")
    weights = jnp.where(largest > 0, weights, preferences)
    return jnp.where(preferences > 0, weights, 0)


def aligned_mtl(*, scale: Scale = "min") -> Balancer:
    """Gives all independent components of the gradients the same size.

    Computes ``w = B p`` with ``B = sqrt(s) V diag(1 / sqrt(lambda)) V'`` for the
    eigenvalues lambda and eigenvectors V of the Gramian, ``s`` being one size for all.
    The gradients ``B' J`` are orthogonal and of length ``sqrt(s)``: of all such systems
    they are the nearest to the gradients J. None of them dominates or conflicts with
    another, and ``d`` is their sum weighted by ``p``. A weight may be negative.

    An eigenvalue of at most ``T eps`` of the largest, with T active tasks and the
    machine epsilon of the dtype, counts as zero, and its component is left out. So in
    float32 a gradient that is shorter than about 5e-4 of the longest is lost, and so is
    what tells gradients apart that are closer than that: the rule is about sizes, and
    none works on the correlations instead. If all gradients are zero the weights are
    the preferences.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        scale: What ``s`` is: "min", the smallest eigenvalue that is not zero; "median",
            the lower median of these; "rmse", their mean.

    Returns:
        A balancer, sum-like: ``p = 1`` gives the sum of the aligned gradients, ``p = 1
        / T`` their mean. Instead of zero, which would mean "not active", an active task
        gets 1e-30.

    Raises:
        ValueError: If `scale` is unknown; from `update`, if there are no task
            gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = aligned_mtl(), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 1.0]

    References:
        Senushkin et al., "Independent Component Alignment for Multi-Task Learning",
        CVPR 2023, algorithm 1. The authors' code sums over the tasks, as here with
        preferences of one, and has the same three scales and the same cutoff; TorchJD
        starts from ``p = 1 / T``. Heads: ``balance(..., heads="preferences")``,
        unscaled gradients.
    """
    _check_scale(scale)
    rule = functools.partial(aligned_mtl_weights, scale=scale)
    return gramian_weighting("aligned_mtl", rule)


def _check_scale(scale: Any) -> None:
    if scale not in get_args(Scale):
        names = ", ".join(repr(choice) for choice in get_args(Scale))
        raise ValueError(f"scale must be one of {names}, got {scale!r}.")
