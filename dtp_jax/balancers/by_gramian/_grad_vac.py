"""Gradient vaccine: aligning gradients as much as they usually are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.layout import layout_of
from dtp_jax._core.orders import visiting_orders
from dtp_jax._core.reads import gramian_of, stream_of

# Folded into the key, so that several links of a chain may share one.
_STREAM = 0x6776

# The most that one correction adds, in lengths of the gradient that it changes.
_LARGEST_STEP = 100.0


class GradVacState(NamedTuple):
    """State of `grad_vac`."""

    similarities: jax.Array  # [T, T], averaged cosines, the row's task being changed


def grad_vac_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    similarities: jax.Array | None = None,
    beta: jax.typing.ArrayLike = 0.5,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The rule of `grad_vac`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        similarities: ``[T, T]``, the averaged cosines, in [-1, 1]. None for zeros, with
            which the weights are those of `pcgrad_weights` with the same key.
        beta: The weight of the new cosine in the average.
        key: A PRNG key, for the orders of the corrections.

    Returns:
        The weights ``[T]``, no smaller than the preferences and zero for a task without
        one; and the new similarities ``[T, T]``.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> targets = jnp.array([[0.0, 0.6], [0.6, 0.0]])
        >>> weights, similarities = grad_vac_weights(
        ...     jnp.eye(2), similarities=targets, key=jax.random.key(0)
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]  # 1 + 0.6 / 0.8
        [1.75, 1.75]
        >>> [round(cosine, 4) for cosine in similarities[0].tolist()]
        [0.0, 0.3]
    """
    gramian, preferences = linalg.subproblem(gramian, preferences)
    if similarities is None:
        similarities = jnp.zeros_like(gramian)
    similarities = jax.lax.stop_gradient(jnp.asarray(similarities, gramian.dtype))
    cosines, norms = linalg.correlation(gramian)
    added, seen = _vaccinated(cosines, norms > 0, similarities, key)
    added = jnp.sum((preferences * norms)[:, None] * added, axis=0)
    added = jnp.where(norms > 0, added / linalg.positive(norms), 0)
    return preferences + added, similarities + beta * (seen - similarities)


def grad_vac(*, beta: jax.typing.ArrayLike = 0.5) -> Balancer:
    """Sums the task gradients after raising their cosines to what they usually are.

    Each task's gradient ``h = g_i`` meets the gradients ``g_j`` of the other tasks in a
    random order. With their cosine c and the average a of past cosines of this pair,
    where ``c < a`` it gets as much of ``g_j`` as makes the cosine a::

        h <- h + norm(h) (a sqrt(1 - c^2) - c sqrt(1 - a^2))
                 / (norm(g_j) sqrt(1 - a^2)) g_j

    and then ``a <- (1 - beta) a + beta c``, corrected or not. The averages start at
    zero. So the first step is that of `pcgrad`, and every one with ``beta = 0``; later
    steps also align gradients that do not conflict. The step is the sum of all ``h``.
    All tasks are changed in lock step, at a cost of ``T^2`` for each of the ``T - 1``
    that one meets.

    Preferences scale the gradients. A zero gradient, one that corrections cancelled to
    rounding, and a task that is not active are not changed and change none, and the
    averages of their pairs stay. As a nears 1 the correction grows without bound, and
    corrections multiply; here one adds at most 100 times the length of ``g_i``.

    `update` needs the task gradients, which `balance` supplies, and a PRNG key as the
    extra argument `key`, a new one in each step. The same key decides the same on every
    device, and links of a chain may share one.

    Args:
        beta: The weight of the new cosine in the average, in [0, 1].

    Returns:
        A balancer whose weights are no smaller than the preferences.

    Raises:
        ValueError: If `beta` is out of range; from `update`, if there are no task
            gradients or no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones, key = grad_vac(), jnp.ones(2), jax.random.key(0)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[2.0, 0.0], [-1.0, 1.0]]))
        >>> weights, state = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients, key=key
        ... )
        >>> weights.tolist()
        [1.5, 2.0]
        >>> round(state.similarities[0, 1].item(), 4)  # half of -1 / sqrt(2)
        -0.3536

    References:
        Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task
        Optimization in Massively Multilingual Models", ICLR 2021. TorchJD averages
        every cosine, as the paper and here, and so does LibMTL since 2024; before, it
        averaged one only where it corrected. The paper also keeps averages per layer:
        this is its whole-model variant. Heads:
        ``balance(..., heads="preferences")``.
    """
    check_scalar("beta", beta, low=0, high=1)

    def init(params: Any) -> GradVacState:
        layout = layout_of(params)
        shape = (layout.num_tasks, layout.num_tasks)
        return GradVacState(jnp.zeros(shape, layout.dtype))

    def update(
        updates: Any,
        state: GradVacState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, GradVacState]:
        del params, extra_args
        stream = stream_of(key, _STREAM, "grad_vac")
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        gramian = gramian_of(task_gradients, preferences, "grad_vac")
        last = state.similarities
        weights, similarities = grad_vac_weights(
            gramian, preferences, similarities=last, beta=beta, key=stream
        )
        new = GradVacState(similarities.astype(last.dtype))
        return layout.tree(nonzero(weights, preferences)), new

    return transformation(init, update)


@jax.jit
def _vaccinated(
    cosines: jax.Array, known: jax.Array, similarities: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What is added to each unit gradient, and the cosines it had, both ``[T, T]``."""
    num_tasks, tiny = known.size, jnp.sqrt(jnp.finfo(cosines.dtype).eps)
    tasks, orders = jnp.arange(num_tasks), visiting_orders(key, num_tasks)
    slopes = similarities / jnp.sqrt(jnp.maximum(1 - similarities**2, 1e-12))

    def visit(changed: Any, pair: Any) -> tuple[Any, Any]:
        # Of each changed gradient: the products with all unit gradients, the length,
        # and the sum of its coefficients, to which rounding is in proportion.
        products, lengths, sizes = changed
        others, slopes, meets = pair
        meets &= lengths > tiny * sizes
        along = jnp.take_along_axis(products, others[:, None], axis=1)[:, 0]
        # What is across the other gradient stays as it is. So the paper's coefficient
        # is the change of what is along it.
        across = jnp.sqrt(jnp.maximum((lengths - along) * (lengths + along), 0))
        step = jnp.clip(across * slopes - along, 0, _LARGEST_STEP)
        step = jnp.where(meets, step, 0)
        cosine = along / jnp.where(meets, lengths, 1)
        products = products + step[:, None] * cosines[others]
        lengths = jnp.where(meets, jnp.hypot(across, along + step), lengths)
        return (products, lengths, sizes + step), (step, cosine, meets)

    one = jnp.ones_like(cosines[0])
    pairs = orders, slopes[tasks, orders], known[None, :] & known[orders]
    _, (steps, seen, met) = jax.lax.scan(visit, (cosines, one, one), pairs)
    added = jnp.zeros_like(cosines).at[tasks, orders].set(steps, unique_indices=True)
    seen = jnp.where(met, jnp.clip(seen, -1, 1), similarities[tasks, orders])
    return added, similarities.at[tasks, orders].set(seen, unique_indices=True)
