"""Dual cone gradient descent, for two losses."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting

Kind = Literal["center", "average", "projection"]


def dcgd_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    kind: Kind = "center",
) -> jax.Array:
    """The weights of `dcgd` from the Gramian of two gradients.

    Args:
        gramian: ``[2, 2]``, the inner products of the gradients.
        preferences: ``[2]``, by which the gradients are scaled first, relative to the
            largest; zero for a task that does not take part. None for ones.
        kind: See `dcgd`.

    Returns:
        ``[2]``.

    Raises:
        ValueError: If there are not two tasks, or the kind is unknown.

    Example:
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])
        >>> dcgd_weights(gramian).tolist()  # (2 + 1) / 2 over each norm
        [0.75, 1.5]
    """
    _check(kind, gramian.shape[0])
    gramian, preferences = linalg.subproblem(gramian, preferences)
    largest = jnp.max(preferences)
    relative = preferences / linalg.positive(largest)
    correlation, norms = linalg.correlation(gramian)
    lengths = norms * relative
    cosine = correlation[0, 1]
    first, second = lengths[0], lengths[1]
    # How much of the other a gradient has along it: zero beside a zero gradient.
    swapped = lengths[::-1]
    along = cosine * swapped / linalg.positive(lengths)
    along = jnp.where((lengths > 0) & (swapped > 0), along, 0)
    both = (first > 0) & (second > 0)
    if kind == "center":
        # Units times half of the sum of the lengths: the sum's part along their sum.
        found = (first + second) / 2 / linalg.positive(lengths)
        found = jnp.where(both, found, 1)
    else:
        # The sum has the product `lengths * (lengths + cosine * swapped)` with each.
        outside = both & (lengths + cosine * swapped < 0)
        if kind == "projection":
            # At most one of two is against the sum: the shorter one.
            found = jnp.where(outside, -along, 1)
        else:
            found = jnp.where(jnp.any(outside), (1 - along) / 2, 1)
    return jnp.where(preferences > 0, found * relative, 0)


def dcgd(*, kind: Kind = "center") -> Balancer:
    """A direction inside of the dual cone of two gradients: no loss rises.

    The dual cone of two gradients holds the directions that conflict with neither. With
    u_t the unit gradients and g the sum of the gradients::

        kind          direction
        center        the part of g along u_1 + u_2, the middle of the cone
        projection    g, or where it lies outside, its projection onto the nearest face
        average       g, or where it lies outside, half of the sum of its projections
                      onto both faces

    For two gradients the center is ConFIG's direction and the projection that of
    `dual_projection`, which take any number of tasks; the average is half of UPGrad's
    where the sum lies outside of the cone. The center is the most balanced: the norm of
    the gradients does not matter for its direction.

    Preferences scale the gradients, relative to the largest. A task that is not active
    leaves the other's gradient as it is, and so does a zero gradient. Opposite
    gradients give zero, to rounding.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        kind: One of the above.

    Returns:
        A balancer for two tasks. Instead of zero, which would mean "not active", an
        active task gets 1e-30.

    Raises:
        ValueError: If the kind is unknown; from `update`, if there are no task
            gradients, or not of two tasks.

    Example:
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = dcgd(kind="projection"), jnp.ones(2)
        >>> rows = TaskGradients.from_stacked(jnp.array([[1.0, 0.0], [-2.0, 1.0]]))
        >>> weights, _ = balancer.update(ones, balancer.init(ones), task_gradients=rows)
        >>> weights.tolist()  # the sum, (-1, 1), goes against the first: now (0, 1)
        [2.0, 1.0]

    References:
        Hwang & Lim, "Dual Cone Gradient Descent for Training Physics-Informed Neural
        Networks", NeurIPS 2024, algorithms 1 to 3; the authors' code, which adds 1e-8
        to norms. Several boundary losses are one there, their sum. Heads:
        ``balance(..., heads="weights")``.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}.")

    return gramian_weighting("dcgd", functools.partial(dcgd_weights, kind=kind))


def _check(kind: str, num_tasks: int) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}.")
    if num_tasks != 2:
        raise ValueError(
            f"dcgd is for two tasks, got {num_tasks}: sum the losses of two groups, or "
            "take config for its center, dual_projection for its projection, or "
            "upgrad, which is near its average."
        )
