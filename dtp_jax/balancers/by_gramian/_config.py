"""ConFIG: the conflict-free inverse of the gradients."""

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax.gradients import rows_at_hand
from dtp_jax.solvers._equal_projections import attained_projections


def config_weights(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> jax.Array:
    """The rule of `config`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.

    Returns:
        ``[T]`` of any sign; zero for zero gradients and a task without a preference.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # d = (3 / 2, 3 / 2)
        >>> [round(weight, 4) for weight in config_weights(gramian).tolist()]
        [0.75, 1.5]
    """
    return _weights(gramian, preferences, None)


def config() -> Balancer:
    """Follows the one direction that has equal cosines with all gradients.

    Computes ``v = pinv(U) p`` with the unit gradients in the rows of U, so that ``<u_t,
    v> = p_t``: no gradient conflicts with the direction. The step has the length of the
    sum of the projections of the gradients on it::

        d = (sum_t <g_t, v>) v / norm(v)^2

    It is short where gradients conflict, and for orthogonal gradients of length one it
    is their sum. Everything comes from the Gramian. A weight may be negative.

    Rounding of the Gramian costs digits in proportion to the square of the condition
    number of U. Where the gradients themselves are at hand, stacked or kept from the
    Gramian (up to 8 tasks), they make good for that: the error in float32 is some 1e-7
    times the condition number, as with a decomposition of U. Gradients within an angle
    of some 2e-3 are parallel in any case.

    Zero gradients take no part. If the gradients are dependent, ``v`` is a compromise
    in the sense of least squares, which may conflict with some; the sum of the
    projections may then be negative, and the step goes the other way, as in the
    authors' code. For opposite gradients ``v`` and ``d`` are zero.

    `update` needs the task gradients, which `balance` supplies.

    Returns:
        A balancer whose direction, not its length, depends on the preferences. Instead
        of zero, which would mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: From `update`, if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = config(), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.75, 1.5]

    References:
        Liu et al., "ConFIG: Towards Conflict-free Training of Physics Informed Neural
        Networks", ICLR 2025, equation 2. The authors' code and TorchJD decompose
        the ``[T, P]`` matrix of the unit gradients, at a multiple of the cost. Heads:
        ``balance(..., heads="weights")``; in the paper all parameters are shared.
    """
    return gramian_weighting("config", _weights, rows_at_hand)


def _weights(
    gramian: jax.Array, preferences: jax.Array | None, rows: linalg.Rows | None
) -> jax.Array:
    gramian, preferences = linalg.subproblem(gramian, preferences)
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    targets = preferences / linalg.positive(jnp.max(preferences))
    x, projections = attained_projections(gramian, targets, rows)
    # Projections below rounding say that no vector has any of those asked for.
    tolerance = 16 * x.size * jnp.finfo(x.dtype).eps * jnp.max(targets)
    found = jnp.max(jnp.abs(projections)) > tolerance

    # With `d = length v / |v|` and `length = sum_t <g_t, v> / |v|`, the weights are
    # `x_t / |g_t|` times the sum over the squared norm of v, which is that of the
    # projections of its parts on it.
    scale = linalg.positive(jnp.max(jnp.abs(x)))
    longest = linalg.positive(jnp.max(norms))
    squared = jnp.sum((x / scale) * projections)
    total = jnp.sum((norms / longest) * projections)
    ratio = jnp.where(found, total / linalg.positive(squared), 0)
    inverse = jnp.where(norms > 0, longest / linalg.positive(norms), 0)
    return ratio * (x / scale) * inverse
