"""Projections onto the dual cone of the task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax.solvers._quadratic import nonnegative_quadratic


class DualConePoint(NamedTuple):
    """Result of `project_onto_dual_cone`."""

    weights: jax.Array  # [T] or [K, T]
    residual: jax.Array  # [] or [K], at least 0


def project_onto_dual_cone(
    gramian: jax.Array, targets: jax.Array, preferences: jax.Array | None = None
) -> DualConePoint:
    """Moves vectors as little as needed to conflict with no task gradient.

    A target ``u`` stands for the vector ``sum_t u_t g_t``. Its projection onto the dual
    cone ``{d : <g_t, d> >= 0 for all t}`` is ``d = sum_t v_t g_t`` with::

        v = argmin v' G v    subject to    v >= u

    All targets are solved at once, and the answer is exact to rounding whatever the
    lengths of the gradients. Where several ``v`` give the same ``d``, as with equal
    gradients or more tasks than parameters, it is one of them. Where the cone is only
    zero, so is ``d``: the weights are as large as it takes for the gradients to cancel,
    and rounding is left of them.

    No derivative flows through it.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        targets: ``[T]``, or ``[K, T]`` for K targets; of any sign.
        preferences: ``[T]``; a task with zero leaves the problem, with the weight zero.
            Other values make no difference. None for ones.

    Returns:
        The weights ``v``, like the targets, in float32 or in float64 if the Gramian is;
        and for each target how much they miss optimality: the largest of ``-<g_t, d> /
        |g_t|`` and ``min(<g_t, d> / |g_t|, (v_t - u_t) |g_t|)``, relative to ``max_s
        |u_s| |g_s| + sum_s (v_s - u_s) |g_s|``. Rounding amounts to some 1e-7 of it,
        and in rare cases of more tasks than rank to 1e-5.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
        >>> point = project_onto_dual_cone(rows @ rows.T, jnp.array([1.0, 0.0]))
        >>> point.weights.tolist(), (point.weights @ rows).tolist()
        ([1.0, 0.5], [0.5, 0.5])

    References:
        Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS
        2017, equation 11, for the problem. Kim & Park, "Fast nonnegative matrix
        factorization: an active-set-like method and comparisons", SIAM Journal on
        Scientific Computing 33(6), 2011, for pivoting on many right-hand sides.
    """
    return _project(gramian, targets, preferences)


@jax.jit
def _project(
    gramian: jax.Array, targets: jax.Array, preferences: jax.Array | None
) -> DualConePoint:
    gramian, preferences = linalg.subproblem(gramian, preferences)
    targets = jax.lax.stop_gradient(jnp.asarray(targets, gramian.dtype))
    num_tasks = preferences.size
    if targets.ndim not in (1, 2) or targets.shape[-1] != num_tasks:
        raise ValueError(
            f"targets must be [{num_tasks}] or [K, {num_tasks}] for a Gramian of "
            f"{num_tasks} tasks, got {list(targets.shape)}."
        )
    lower = jnp.where(preferences[None, :] > 0, jnp.atleast_2d(targets), 0)
    cosines, norms = linalg.correlation(gramian)
    # A zero gradient bounds nothing: its task is on its own, and stays at its target.
    cosines = jnp.where(jnp.eye(num_tasks, dtype=bool), 1, cosines)

    # In terms of `(v_t - u_t) |g_t|` the problem has a diagonal of ones. It is solved
    # relative to the largest part of the target.
    lengths = lower * norms[None, :]
    scale = jnp.max(jnp.abs(lengths), axis=1, keepdims=True)
    lengths = lengths / linalg.positive(scale)
    linears = jnp.matmul(lengths, cosines, precision="highest")
    found, residual = nonnegative_quadratic(cosines, linears)
    added = (found / linalg.positive(norms)[None, :]) * scale
    weights = (lower + added).reshape(targets.shape)
    return DualConePoint(weights, residual.reshape(targets.shape[:-1]))
