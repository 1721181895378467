"""Direction-oriented multi-objective descent with double sampling."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import control, linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_scalar, check_whole

from ._multipliers import multiplier_weighting


class SdmgradState(NamedTuple):
    """State of `sdmgrad`."""

    simplex: jax.Array  # [T], the multipliers; those of the active tasks sum to 1


def sdmgrad_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    simplex: jax.Array | None = None,
    learning_rate: jax.typing.ArrayLike = 10.0,
    num_iters: jax.typing.ArrayLike = 20,
    reg: jax.typing.ArrayLike = 0.3,
    momentum: jax.typing.ArrayLike = 0.5,
    capped: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """The rule of `sdmgrad`, one step of it.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients of two batches.
        preferences: ``[T]``, at least 0. None for ones.
        simplex: ``[T]``, the multipliers before the step. None for uniform ones.
        learning_rate: See `sdmgrad`.
        num_iters: See `sdmgrad`.
        reg: See `sdmgrad`.
        momentum: See `sdmgrad`.
        capped: See `sdmgrad`.

    Returns:
        The weights ``[T]`` and the multipliers ``[T]`` after the step. The multipliers
        of tasks that are not active stay as they are.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 1.0]])
        >>> weights, _ = sdmgrad_weights(gramian, reg=0.25, num_iters=100)
        >>> [round(weight, 4) for weight in weights.tolist()]  # the shortest vector
        [0.2, 0.8]
    """
    gramian, preferences = linalg.subproblem(gramian, preferences)
    active = preferences > 0
    if simplex is None:
        simplex = jnp.full_like(preferences, 1 / preferences.size)
    simplex = jax.lax.stop_gradient(jnp.asarray(simplex, preferences.dtype))
    count = jnp.maximum(jnp.sum(active), 1)
    target = jnp.where(active, 1 / count, 0)

    # The mean length, squared. No Gramian has an entry larger than T^2 times it, but
    # noise may make the diagonal of the products of two batches vanish.
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    largest = jnp.max(jnp.abs(gramian))
    scale = jnp.maximum(jnp.sum(lengths / count) ** 2, largest / count**2)
    known = (scale > 0) & jnp.isfinite(scale)
    matrix = jnp.where(known, gramian / jnp.where(known, scale, 1), 0)
    row_sums = jnp.sum(jnp.abs(matrix), axis=1)
    cap = jnp.where(capped, 1 / jnp.where(known, jnp.max(row_sums), 1), jnp.inf)
    rate = jnp.minimum(learning_rate, cap)

    def iterate(_: Any, pair: tuple[jax.Array, jax.Array]) -> Any:
        current, velocity = pair
        slope = jnp.matmul(matrix, current + reg * target, precision="highest")
        velocity = momentum * velocity + slope
        moved = current - rate * velocity
        return linalg.project_to_simplex(moved, active), velocity

    start = linalg.project_to_simplex(simplex, active)
    found, _ = control.repeat(num_iters, iterate, (start, jnp.zeros_like(start)))
    weights = preferences * (found + reg * target) / (1 + reg)
    return weights, jnp.where(active, found, simplex)


def sdmgrad(
    *,
    learning_rate: jax.typing.ArrayLike = 10.0,
    num_iters: int = 20,
    reg: jax.typing.ArrayLike = 0.3,
    momentum: jax.typing.ArrayLike = 0.5,
    capped: bool = True,
) -> Balancer:
    """Descends along a short vector of the hull of the gradients, near their mean.

    With the mean m of the active tasks, multipliers w on the simplex move towards the
    smallest length of ``sum_t (w_t + reg m_t) g_t``, in each step by some iterations on
    the products of the gradients ``J_1`` and ``J_2`` of two independent batches, which
    are free of the bias that the noise of one batch has::

        v <- momentum v + J_1 J_2' (w + reg m) / scale
        w <- project(w - learning_rate v)

    The weights are ``(w + reg m) / (1 + reg)``. Where the iterations settle that is the
    shortest vector of the hull whose weights are at least ``reg / (1 + reg) / T``: that
    of `mgda` for reg = 0, the mean for a large one. The scale is the squared mean of
    the lengths. The multipliers start uniform, each step from those of the last.

    Preferences multiply the weights; the multipliers do not see them. A task that is
    not active, or whose gradient of a batch is not finite, takes no part, and its
    multiplier stays.

    `update` needs the task gradients, which `balance` supplies, and those of another
    batch at the same parameters, the extra argument `second_task_gradients`. With those
    of a third, `third_task_gradients`, the second and third move the multipliers and
    the first makes the step, as in the authors' code. Each batch costs a forward pass
    and a backward pass per task, and the memory of its gradients.

    Args:
        learning_rate: The rate of the iterations, positive.
        num_iters: Their number, at least 1.
        reg: The paper's lambda, the pull towards the mean, at least 0.
        momentum: In [0, 1). 0 is the paper's iteration.
        capped: Whether the rate is at most one over the largest absolute row sum of
            what multiplies the multipliers. The authors' 10 is far beyond what settles:
            on random gradients of 2 (3, 8) tasks their iterations end in a corner of
            the simplex in 82 % (67 %, 39 %) of draws, with 1.4 (2.1, 6.3) times the
            smallest squared length in the median, and rounding decides in which.

    Returns:
        A balancer whose weights sum to 1 for preferences of one.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            task gradients of a second batch, or they do not match the first.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = sdmgrad(num_iters=100), jnp.ones(2)
        >>> first = TaskGradients.from_stacked(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
        >>> batches = {"task_gradients": first, "second_task_gradients": first}
        >>> weights, _ = balancer.update(ones, balancer.init(ones), **batches)
        >>> [round(weight, 4) for weight in weights.tolist()]  # mgda's are 0.1 and 0.9
        [0.1154, 0.8846]

    References:
        Xiao, Ban, Ji, "Direction-oriented Multi-objective Learning: Simple and Provable
        Stochastic Algorithms", NeurIPS 2023. Momentum and scale are those of the
        authors' code, which adds 1e-4 to the squared lengths of the scale and so has
        NaN where batches disagree; LibMTL has a rate of 5. Heads:
        ``balance(..., heads="preferences")``.
    """
    check_scalar("learning_rate", learning_rate, low=0, open_low=True)
    check_whole("num_iters", num_iters, low=1)
    check_scalar("reg", reg, low=0)
    check_scalar("momentum", momentum, low=0, high=1, open_high=True)

    def rule(
        gramian: jax.Array, preferences: jax.Array, simplex: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return sdmgrad_weights(
            gramian,
            preferences,
            simplex=simplex,
            learning_rate=learning_rate,
            num_iters=num_iters,
            reg=reg,
            momentum=momentum,
            capped=capped,
        )

    return multiplier_weighting("sdmgrad", SdmgradState, rule)
