from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_second_batch import _auto_lambda
from tests import toys
from tests.balancers.sequences import LOSSES, over
from tests.toys import assert_near

auto_lambda: Any = _auto_lambda.auto_lambda
DEFAULT = auto_lambda(0.1)
SGD = auto_lambda(0.1, primary=[1], optimizer=optax.sgd(1.0))
ONES = jnp.ones(3)

# Gradients [S, T, P] of a batch and of another.
JACOBIANS, OTHERS = np.random.default_rng(0).normal(size=(2, 10, 3, 7))


def batches(rows: Any = JACOBIANS, others: Any = OTHERS) -> dict[str, jax.Array]:
    return {
        "task_gradients": jnp.asarray(rows),
        "second_task_gradients": jnp.asarray(others),
    }


def papers_weights(
    rows: np.ndarray, others: np.ndarray, primary: list[int], adam: bool = False
) -> np.ndarray:
    """The rule with a learning rate of 0.1, written out; weights after each step."""
    w, m, v = np.full(rows.shape[1], 0.1), 0.0, 0.0
    weights = []
    for t, (batch, other) in enumerate(zip(rows, others, strict=True), start=1):
        slope = -0.1 * batch @ other[primary].sum(axis=0)
        if adam:
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            w = w - 1e-4 * m_hat / (np.sqrt(v_hat) + 1e-8)
        else:
            w = w - slope
        weights.append(w)
    return np.array(weights)


def test_agrees_with_the_paper_over_a_sequence() -> None:
    weights, state = over(SGD, LOSSES, **batches())
    expected = papers_weights(JACOBIANS, OTHERS, [1])
    assert_near(weights, expected, rtol=1e-4)
    np.testing.assert_allclose(state.meta_weights, expected[-1], rtol=1e-4)
    weights, _ = over(DEFAULT, LOSSES, **batches())
    expected = papers_weights(JACOBIANS, OTHERS, [0, 1, 2], adam=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def losses_fn(params: Any, x: jax.Array) -> Any:
    hidden = jnp.tanh(x @ params["trunk"])
    return {
        "a": jnp.mean((hidden @ params["a"] - jnp.sin(x[:, 0])) ** 2),
        "b": jnp.mean((hidden @ params["b"] - x[:, 1] ** 2) ** 2),
        "c": jnp.mean(jnp.abs(hidden @ params["c"])),
    }


def model() -> tuple[Any, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    params = {"trunk": (2, 4), "a": (4,), "b": (4,), "c": (4,)}
    params = {name: jnp.asarray(rng.normal(size=s)) for name, s in params.items()}
    batch, other = jnp.asarray(rng.normal(size=(2, 6, 2)))
    return params, batch, other


def test_the_slope_is_the_derivative_of_the_loss_after_a_virtual_step() -> None:
    with jax.enable_x64(True):
        params, batch, other = model()
        rate, weights = 0.05, {"a": 0.3, "b": -0.2, "c": 0.7}
        balancer = auto_lambda(rate, primary=["a", "c"], optimizer=optax.sgd(1.0))

        def virtual(params: Any, weights: Any) -> Any:
            step = task_gradients(losses_fn)(params, batch).combine(weights)
            return jax.tree.map(lambda p, g: p - rate * g, params, step)

        def after(weights: Any) -> jax.Array:
            losses = losses_fn(virtual(params, weights), other)
            return losses["a"] + losses["c"]

        @jax.jit
        def slopes(weights: Any) -> Any:
            gradients = task_gradients(losses_fn)(params, batch)
            ones = jax.tree.map(jnp.ones_like, gradients.losses)
            start = jnp.stack(jax.tree.leaves(weights))
            state = balancer.init(ones)._replace(meta_weights=start)
            found = []
            for at in (virtual(params, weights), params):
                second = task_gradients(losses_fn)(at, other)
                _, new = balancer.update(
                    ones, state, task_gradients=gradients, second_task_gradients=second
                )
                found.append(start - new.meta_weights)
            return found, jnp.stack(jax.tree.leaves(jax.grad(after)(weights)))

        (exact, first_order), expected = slopes(jax.tree.map(jnp.asarray, weights))
        np.testing.assert_allclose(exact, expected, rtol=1e-12)
        # At the current parameters the relative error is of the order of the rate.
        np.testing.assert_allclose(first_order, expected, rtol=0.3)


def test_it_costs_a_few_passes_whatever_the_number_of_tasks() -> None:
    def cost(num_tasks: int, balanced: bool) -> float:
        keys = jax.random.split(jax.random.key(0), 2)
        params = jax.random.normal(keys[0], (64, 64))
        x = jax.random.normal(keys[1], (32, 64))

        def losses_fn(params: jax.Array) -> jax.Array:
            hidden = jnp.tanh(jnp.tanh(x @ params) @ params)
            return jnp.stack([jnp.mean(hidden[:, t]) for t in range(num_tasks)])

        link = toys.balance(auto_lambda(0.1), num_tasks)

        def step(params: jax.Array) -> Any:
            gradients = task_gradients(losses_fn)(params)
            if not balanced:
                return gradients.combine(jnp.ones(num_tasks))
            second = task_gradients(losses_fn)(params + 1)
            return link.update(
                gradients, link.init(params), second_task_gradients=second
            )

        return toys.cost(step, params)[0]

    assert cost(16, balanced=True) < 3.2 * cost(16, balanced=False)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    rows, others = np.random.default_rng(1).normal(size=(2, 1000, num_tasks, 3))
    losses = np.ones((1000, num_tasks))
    balancer = auto_lambda(0.1, primary=[0], optimizer=optax.sgd(1.0))
    weights, _ = over(balancer, losses, **batches(rows, others))
    expected = papers_weights(rows, others, [0])
    assert_near(weights[-1], expected[-1], rtol=1e-3)


def test_a_harmful_task_turns_negative_unless_it_must_not() -> None:
    rows = np.broadcast_to([[1.0, 0.0], [-1.0, 0.0]], (10, 2, 2))
    losses = np.ones((10, 2))
    arguments: Any = {"primary": [0], "optimizer": optax.sgd(0.5)}
    weights, _ = over(auto_lambda(0.1, **arguments), losses, **batches(rows, rows))
    np.testing.assert_allclose(weights[-1], [0.6, -0.4], rtol=1e-5)
    balancer = auto_lambda(0.1, min_weight=0.0, **arguments)
    weights, _ = over(balancer, losses, **batches(rows, rows))
    np.testing.assert_allclose(weights[-1], [0.6, 1e-30], rtol=1e-5)


def test_zero_huge_and_broken_gradients() -> None:
    rows, others = JACOBIANS.copy(), OTHERS.copy()
    rows[2, 0], rows[3], rows[4, 1], others[5] = 0.0, 0.0, np.nan, np.inf
    rows[6], others[6] = 1e30, 1e30
    for balancer in (DEFAULT, SGD):
        weights, state = over(balancer, LOSSES, **batches(rows, others))
        chex.assert_tree_all_finite((weights, state))
    expected = papers_weights(JACOBIANS, OTHERS, [1])
    np.testing.assert_allclose(weights[1], expected[1], rtol=1e-4)
    assert weights[2, 0] == weights[1, 0]
    assert weights[4, 1] == weights[3, 1]


def test_preferences_multiply_and_inactive_tasks_do_not_count() -> None:
    active = np.array([0, 2])
    balancer = auto_lambda(0.1, optimizer=optax.sgd(1.0))
    weights, state = over(balancer, LOSSES, jnp.array([2.0, 0.0, 0.5]), **batches())
    expected = papers_weights(JACOBIANS[:, active], OTHERS[:, active], [0, 1])
    found = weights[:, active] / np.array([2.0, 0.5])
    assert_near(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.meta_weights[1]) == np.float32(0.1)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(SGD, LOSSES, **batches())
        assert weights.dtype == state.meta_weights.dtype == jnp.float64
        expected = papers_weights(JACOBIANS, OTHERS, [1])
        np.testing.assert_allclose(weights, expected, rtol=1e-11)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="learning_rate must be a number in"):
        auto_lambda(0.0)
    with pytest.raises(ValueError, match="primary must be a list of tasks, got 'a'"):
        auto_lambda(0.1, primary="a").init({"a": 1.0})
    with pytest.raises(ValueError, match="primary must be one of a, b, got 'd'"):
        auto_lambda(0.1, primary=["d"]).init({"a": 1.0, "b": 1.0})
    state = DEFAULT.init(ONES)
    gradients = TaskGradients.from_stacked(jnp.eye(3))
    with pytest.raises(ValueError, match="auto_lambda needs `task_gradients`"):
        DEFAULT.update(ONES, state)
    with pytest.raises(ValueError, match=r"needs `second_task_gradients`.*validation"):
        DEFAULT.update(ONES, state, task_gradients=gradients)


def test_one_huge_derivative_does_not_stop_the_weights() -> None:
    link = toys.balance(auto_lambda(0.1), 2)

    @jax.jit
    def run(scales: jax.Array) -> Any:
        def one(state: Any, scale: jax.Array) -> Any:
            rows = jnp.array([[1.0, 0.5], [0.3, 1.0]]) * scale
            gradients = TaskGradients.from_stacked(rows)
            _, state = link.update(
                gradients, state, jnp.zeros(2), second_task_gradients=gradients
            )
            return state, state.task_weights

        return jax.lax.scan(one, link.init(None), scales)

    for size in (1e10, 1e18):
        state, weights = run(jnp.ones(3000).at[5].set(size))
        chex.assert_tree_all_finite(state)
        # Counted as a thousand times the largest before it, its square is a thousandth
        # of a million in Adam's second moment: the weights move at a thirtieth of
        # their rate and faster, 1e-4 for each step.
        moved = weights[-1] - weights[6]
        assert (moved > 0.01 * 1e-4 * 2994).all()
