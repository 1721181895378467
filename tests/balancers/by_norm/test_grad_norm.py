from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_norm import _grad_norm
from tests import toys
from tests.balancers.sequences import LOSSES, over

grad_norm: Any = _grad_norm.grad_norm
DEFAULT = grad_norm()
SOFTMAX = grad_norm(parametrization="softmax", optimizer=optax.sgd(0.02))
ONES = jnp.ones(3)

# Gradients [S, T, P] of lengths around 3, 1 and 0.3.
JACOBIANS = np.random.default_rng(0).normal(size=(10, 3, 7)) * np.array(
    [[[1.0], [0.3], [0.1]]]
)


def papers_slope(
    weights: np.ndarray, norms: np.ndarray, ratios: np.ndarray, alpha: float
) -> np.ndarray:
    """The derivative of the paper's objective for constant targets, written out."""
    target = np.mean(weights * norms) * (ratios / ratios.mean()) ** alpha
    return np.sign(weights * norms - target) * norms


def papers_weights(
    losses: np.ndarray, jacobians: np.ndarray, alpha: float = 1.5, adam: bool = True
) -> np.ndarray:
    """Algorithm 1 of the paper; the weights before each step."""
    num_tasks = losses.shape[1]
    w, m, v = np.ones(num_tasks), np.zeros(num_tasks), np.zeros(num_tasks)
    weights = []
    for t in range(len(losses)):
        weights.append(w)
        norms = np.linalg.norm(jacobians[t], axis=1)
        slope = papers_slope(w, norms, losses[t] / losses[0], alpha)
        if adam:
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            m_hat, v_hat = m / (1 - 0.9 ** (t + 1)), v / (1 - 0.999 ** (t + 1))
            w = w - 0.025 * m_hat / (np.sqrt(v_hat) + 1e-8)
        else:
            w = w - 0.02 * slope
        w = num_tasks * w / w.sum()
    return np.array(weights)


@pytest.mark.parametrize(("alpha", "adam"), [(1.5, True), (0.12, False)])
def test_agrees_with_the_paper_over_a_sequence(alpha: float, adam: bool) -> None:
    optimizer = None if adam else optax.sgd(0.02)
    balancer = grad_norm(alpha=alpha, optimizer=optimizer)
    weights, state = over(balancer, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    expected = papers_weights(LOSSES, JACOBIANS, alpha, adam)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.first, LOSSES[0], rtol=1e-6)


def test_the_softmax_descends_on_the_same_objective() -> None:
    weights, state = over(SOFTMAX, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    logits = np.zeros(3)
    for t in range(10):
        e = np.exp(logits)
        w = 3 * e / e.sum()
        np.testing.assert_allclose(weights[t], w, rtol=1e-4)
        norms = np.linalg.norm(JACOBIANS[t], axis=1)
        slope = papers_slope(w, norms, LOSSES[t] / LOSSES[0], 1.5)
        logits = logits - 0.02 * (np.diag(w) - np.outer(w, w) / 3) @ slope
    np.testing.assert_allclose(state.parameters, logits, atol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_a_thousand_steps_equalize_the_weighted_norms(num_tasks: int) -> None:
    lengths = np.geomspace(0.01, 10, num_tasks)
    gramian_rows = np.broadcast_to(np.diag(lengths), (1000, num_tasks, num_tasks))
    balancer = grad_norm(parametrization="softmax", optimizer=optax.adam(0.02))
    weights, state = over(
        balancer, np.ones((1000, num_tasks)), task_gradients=jnp.asarray(gramian_rows)
    )
    chex.assert_tree_all_finite(state)
    np.testing.assert_allclose(weights.sum(axis=1), num_tasks, rtol=1e-5)
    weighted = weights[-1] * lengths
    np.testing.assert_allclose(weighted, weighted.mean(), rtol=0.1)


def test_weights_stay_positive_where_the_paper_does_not_say() -> None:
    lengths = jnp.broadcast_to(jnp.diag(jnp.array([1e4, 1.0, 1.0])), (300, 3, 3))
    losses = np.ones((300, 3))
    weights, _ = over(grad_norm(min_weight=1e-3), losses, task_gradients=lengths)
    assert weights.min() > 0
    # The largest gradient has reached the floor, or a step above it, by now.
    assert weights[200:, 0].max() < 0.06
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-5)


def test_the_weights_move_in_every_kth_step_only() -> None:
    jacobians = jnp.asarray(JACOBIANS)
    balancer = grad_norm(refresh_every=3)
    weights, state = over(balancer, LOSSES, task_gradients=jacobians)
    every_third = np.array([0, 3, 6, 9])
    sparse = papers_weights(LOSSES[every_third], JACOBIANS[every_third])
    expected = sparse[[0, 1, 1, 1, 2, 2, 2, 3, 3, 3]]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert int(state.step) == 10


def test_steps_between_read_no_gradient() -> None:
    balancer = grad_norm(refresh_every=3)
    broken = jnp.asarray(JACOBIANS).at[1].set(jnp.nan)
    expected, _ = over(balancer, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    found, _ = over(balancer, LOSSES, task_gradients=broken)
    np.testing.assert_array_equal(found, expected)


def test_the_chosen_layer_decides() -> None:
    def losses_fn(params: Any) -> Any:
        return {"a": 3 * params["last"] + params["rest"], "b": params["last"] ** 2 / 2}

    params = {"last": jnp.array(1.0), "rest": jnp.array(50.0)}
    link = toys.balance(grad_norm(optimizer=optax.sgd(0.1)), ["a", "b"])

    @jax.jit
    def update(state: Any) -> Any:
        shared = {"last": True, "rest": False}
        gradients = task_gradients(losses_fn, shared=shared)(params)
        return link.update(gradients, state)[1]

    state = update(update(link.init(params)))
    # Norms 3 and 1 on the layer: 2 (0.7, 1.1) / 1.8.
    found = state.task_weights["a"], state.task_weights["b"]
    np.testing.assert_allclose(found, (1.4 / 1.8, 2.2 / 1.8), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e38])
def test_equal_tasks_have_equal_weights(value: float) -> None:
    same = jnp.broadcast_to(jnp.asarray(JACOBIANS[:, :1]), JACOBIANS.shape)
    weights, _ = over(DEFAULT, np.full((10, 3), value), task_gradients=same)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_zero_negative_and_huge_losses_and_gradients() -> None:
    losses = LOSSES.copy()
    losses[0, 0], losses[3], losses[5], losses[7, 1] = 0.0, 0.0, [-1, 1, 3e38], 1e-38
    jacobians = JACOBIANS.copy()
    jacobians[2, 1], jacobians[4], jacobians[6, 2] = 0.0, 0.0, 1e30
    for balancer in (DEFAULT, SOFTMAX):
        weights, state = over(balancer, losses, task_gradients=jnp.asarray(jacobians))
        chex.assert_tree_all_finite((weights, state))
        np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    jacobians = jnp.asarray(JACOBIANS).at[4, 1].set(jnp.nan)
    weights, state = over(DEFAULT, LOSSES, task_gradients=jacobians)
    chex.assert_tree_all_finite((weights, state))
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-5)


def test_preferences_multiply_the_weights_of_the_active_tasks() -> None:
    active = np.array([0, 2])
    weights, state = over(
        DEFAULT,
        LOSSES,
        jnp.array([2.0, 0.0, 0.5]),
        task_gradients=jnp.asarray(JACOBIANS),
    )
    expected = papers_weights(LOSSES[:, active], JACOBIANS[:, active])
    np.testing.assert_allclose(weights[:, active], expected * [2.0, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.parameters[1]) == 1
    assert float(state.first[1]) == 0


def test_a_task_that_joins_later_starts_there() -> None:
    preferences = np.ones((10, 3))
    preferences[:6, 1] = 0
    weights, state = over(
        DEFAULT, LOSSES, preferences, task_gradients=jnp.asarray(JACOBIANS)
    )
    pair = papers_weights(LOSSES[:7, [0, 2]], JACOBIANS[:7, [0, 2]])[-1]
    np.testing.assert_allclose(weights[6], [pair[0], 1.0, pair[1]], rtol=1e-5)
    assert float(state.first[1]) == np.float32(LOSSES[6, 1])


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(DEFAULT, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
        assert weights.dtype == state.parameters.dtype == jnp.float64
        expected = papers_weights(LOSSES, JACOBIANS)
        np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha must be a number in"),
        ({"min_weight": 0.0}, "min_weight must be a number in"),
        ({"refresh_every": 0}, "refresh_every must be an integer of at least 1"),
        ({"parametrization": "log"}, "parametrization must be one of"),
    ],
)
def test_hyperparameters_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grad_norm(**arguments)


def test_errors_say_what_to_do() -> None:
    state = DEFAULT.init(ONES)
    with pytest.raises(ValueError, match="grad_norm needs `losses`"):
        DEFAULT.update(ONES, state, task_gradients=TaskGradients.from_stacked(ONES))
    with pytest.raises(ValueError, match="grad_norm needs `task_gradients`"):
        DEFAULT.update(ONES, state, ONES)
