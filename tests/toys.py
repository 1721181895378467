"""Small balancers and problems that the tests share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dtp_jax
from dtp_jax import TaskGradients
from dtp_jax._core.balancer import gramian_weighting, transformation
from dtp_jax._core.layout import layout_of

NAMES = ("a", "b", "c", "d")

# The types of optax admit neither a TaskGradients nor absent parameters, and tests pass
# wrong input on purpose.
balance: Any = dtp_jax.balance
balancers: Any = dtp_jax.balancers
curricula: Any = dtp_jax.curricula
dynamic_task_prioritization: Any = dtp_jax.dynamic_task_prioritization


def num_compilations(jitted: Any) -> int:
    return jitted._cache_size()


def cost(function: Any, *args: Any) -> tuple[float, int]:
    """FLOPs and bytes of temporary memory of the compiled function."""
    compiled: Any = jax.jit(function).lower(*args).compile()
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes


def equal_norms() -> dtp_jax.Balancer:
    """Gradients of equal length: a Gramian-driven rule in a line, for the seams."""

    def rule(gramian: jax.Array, preferences: jax.Array) -> jax.Array:
        norms = jnp.sqrt(jnp.diagonal(gramian))
        return preferences * jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)

    return gramian_weighting("equal_norms", rule)


def projected() -> dtp_jax.Balancer:
    """Weights that read every entry of the Gramian, and must not see a bad row."""

    def rule(gramian: jax.Array, preferences: jax.Array) -> jax.Array:
        size = jnp.sqrt(jnp.sum(gramian**2))
        products = jnp.matmul(gramian, preferences, precision="highest")
        return preferences + jnp.abs(products) / jnp.where(size > 0, size, 1)

    return gramian_weighting("projected", rule)


class LastLosses(NamedTuple):
    last: jax.Array  # [T]


def remember_losses() -> dtp_jax.Balancer:
    """Keeps the losses as they come: nothing bad may come."""

    def update(
        updates: Any, state: LastLosses, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LastLosses]:
        del state, extra_args
        return updates, LastLosses(layout_of(updates).vector("losses", params))

    def init(params: Any) -> LastLosses:
        return LastLosses(jnp.copy(layout_of(params).vector("losses", params)))

    return transformation(init, update)


def in_one_array(balancer: Any) -> Any:
    """For tasks in any pytree, a balancer that takes them in one array."""

    def vector(tree: Any) -> jax.Array:
        return layout_of(tree).vector("tasks", tree)

    def init(params: Any) -> Any:
        return balancer.init(vector(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        losses = None if params is None else vector(params)
        weights, state = balancer.update(vector(updates), state, losses, **extra)
        return layout_of(updates).tree(weights), state

    return transformation(init, update)


def assert_close(actual: Any, expected: Any, *, ulps: float) -> None:
    """Asserts that two pytrees of arrays differ by rounding only.

    Args:
        actual: A pytree of arrays.
        expected: Another of the same structure and shapes.
        ulps: How far entries may lie apart: in units in the last place of the largest
            entry of their vector, the last axis, in the coarser of the two types. The
            entries of a vector come out of the same sums, so that the small ones have
            the errors of the large ones. What is not a float must be equal.
    """

    def check(path: Any, found: Any, wanted: Any) -> None:
        found, wanted = np.asarray(found), np.asarray(wanted)
        name = jax.tree_util.keystr(path)
        assert found.shape == wanted.shape, name
        kinds = [
            x.dtype for x in (found, wanted) if jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        if not kinds:
            np.testing.assert_array_equal(found, wanted, err_msg=name)
            return
        eps = max(float(jnp.finfo(kind).eps) for kind in kinds)
        found, wanted = found.astype(np.float64), wanted.astype(np.float64)
        size = np.abs(np.where(np.isfinite(wanted), wanted, 0))
        if size.ndim:
            size = size.max(axis=-1, keepdims=True, initial=0)
        # Where all entries are zero, they must be zero.
        size = np.maximum(size, np.finfo(np.float64).tiny)
        np.testing.assert_allclose(
            found / size, wanted / size, rtol=0, atol=ulps * eps, err_msg=name
        )

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree_util.tree_map_with_path(check, actual, expected)


def assert_near(actual: Any, expected: Any, *, rtol: float) -> None:
    """Asserts that pytrees are equal up to a share of each vector's largest entry.

    For values that two ways of computing reach, where the small entries of a vector
    have the errors of the large ones; see `assert_close` for rounding alone.

    Args:
        actual: A pytree of arrays.
        expected: Another of the same structure; a leaf may be a list of numbers.
        rtol: The share, of the largest absolute value on the last axis.
    """

    def check(path: Any, wanted: Any, found: Any) -> None:
        found = np.asarray(found).astype(np.float64)
        wanted = np.asarray(wanted).astype(np.float64)
        size = np.abs(wanted)
        if size.ndim:
            size = size.max(axis=-1, keepdims=True, initial=0)
        apart = np.abs(found - wanted)
        assert (apart <= rtol * size).all(), (
            f"{jax.tree_util.keystr(path)}: {apart.max()} apart, {found} and {wanted}"
        )

    if isinstance(expected, (list, tuple)) and not isinstance(actual, (list, tuple)):
        expected = np.asarray(expected)
    jax.tree_util.tree_map_with_path(check, expected, actual)


class Steps(NamedTuple):
    """What T tasks supply over several steps; the first axis is the step."""

    losses: jax.Array  # [S, T]
    kpis: jax.Array  # [S, T]
    jacobians: jax.Array  # [S, T, P]


def random_steps(num_tasks: int, num_steps: int = 5, seed: int = 0) -> Steps:
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_tasks)
    return Steps(
        jnp.asarray(rng.uniform(0.1, 3.0, shape), jnp.float32),
        jnp.asarray(rng.uniform(0.05, 0.95, shape), jnp.float32),
        jnp.asarray(rng.normal(size=(*shape, 16)), jnp.float32),
    )


def select(steps: Steps, tasks: list[int]) -> Steps:
    index = np.array(tasks)
    return Steps(*(array[:, index] for array in steps))


def update(
    link: Any,
    state: Any,
    step: Steps,
    names: tuple[str, ...],
    **extra_args: Any,
) -> tuple[jax.Array, Any]:
    """One update on named tasks; returns the [P] gradient and the state."""

    def by_name(array: jax.Array) -> dict[str, jax.Array]:
        return dict(zip(names, array, strict=True))

    # Leaves of a dict are sorted by name, and so must be the rows.
    order = np.argsort(np.array(names))
    jacobians = step.jacobians[order]
    gradients = TaskGradients.from_stacked(jacobians, by_name(step.losses))
    supplied = {"kpis": by_name(step.kpis), **supplies(jacobians), **extra_args}
    return link.update(gradients, state, **supplied)


def supplies(jacobians: jax.Array) -> dict[str, Any]:
    """What some methods ask of a step, made of the gradients ``[T, P]``."""
    # Other batches would give other gradients that lie in the same directions, roughly.
    tilt = 0.3 * jnp.cos(jnp.arange(jacobians.shape[-1]))
    return {
        "key": jax.random.key(0),
        "second_task_gradients": TaskGradients.from_stacked(
            jacobians * (1 + tilt)[None]
        ),
    }


def scanned(
    balancer: Any, names: tuple[str, ...]
) -> Callable[..., tuple[jax.Array, Any]]:
    """A jitted function from steps to the weights [S, T] and the last state.

    The weights are in the order of `names`. It takes a `[T]` mask of the tasks, too,
    and extra arguments.
    """
    link = balance(balancer, names)

    @jax.jit
    def run(steps: Steps, mask: jax.Array, **extra_args: Any) -> Any:
        task_mask = dict(zip(names, mask, strict=True))

        def one(state: Any, step: Steps) -> tuple[Any, jax.Array]:
            _, state = update(
                link, state, step, names, task_mask=task_mask, **extra_args
            )
            return state, jnp.stack([state.task_weights[name] for name in names])

        state, weights = jax.lax.scan(one, link.init(None), steps)
        return weights, state

    return run


def weights_over(
    balancer: Any, steps: Steps, names: tuple[str, ...] = NAMES
) -> jax.Array:
    """The weights [S, T] over steps, all tasks active."""
    names = names[: steps.losses.shape[1]]
    return scanned(balancer, names)(steps, jnp.ones(len(names), bool))[0]
