from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_norm import _lr_annealing
from tests import toys
from tests.balancers.sequences import LOSSES, over

lr_annealing: Any = _lr_annealing.lr_annealing
DEFAULT = lr_annealing(1)
ONES = jnp.ones(3)

# Gradients [S, T, P]; the primary task is the second.
JACOBIANS = np.random.default_rng(0).normal(size=(10, 3, 7)) * np.array(
    [[[0.01], [1.0], [5.0]]]
)


def papers_weights(
    jacobians: np.ndarray, alpha: float = 0.9, primary: int = 1, statistic: Any = np.max
) -> np.ndarray:
    """Algorithm 1 of the paper, written out; the weights after each update."""
    w, weights = np.ones(jacobians.shape[1]), []
    for rows in np.abs(jacobians):
        w = (1 - alpha) * w + alpha * statistic(rows[primary]) / rows.mean(axis=1)
        w[primary] = 1
        weights.append(w)
    return np.array(weights)


def test_agrees_with_the_paper_over_a_sequence() -> None:
    weights, state = over(DEFAULT, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    expected = papers_weights(JACOBIANS)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, expected[-1], rtol=1e-5)


def test_the_mean_compares_like_with_like() -> None:
    balancer = lr_annealing(1, alpha=0.3, statistic="mean")
    weights, _ = over(balancer, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    expected = papers_weights(JACOBIANS, 0.3, statistic=np.mean)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    rows = np.random.default_rng(1).normal(size=(1000, num_tasks, 3))
    balancer = lr_annealing(0, alpha=0.1)
    losses = np.ones((1000, num_tasks))
    weights, state = over(balancer, losses, task_gradients=jnp.asarray(rows))
    expected = papers_weights(rows, 0.1, primary=0)
    np.testing.assert_allclose(weights[-1], expected[-1], rtol=1e-4)
    assert int(state.step) == 1000


def test_mean_and_maximum_go_over_all_shared_parameters() -> None:
    def losses_fn(params: Any) -> Any:
        first, second, head = params["first"], params["second"], params["head"]
        residual = 4 * first[0] - 8 * second + 100 * head
        return {"residual": residual, "boundary": first.sum() + 3 * second - head}

    params = {"first": jnp.ones(2), "second": jnp.array(1.0), "head": jnp.array(1.0)}
    shared = {"first": True, "second": True, "head": False}
    gradients = task_gradients(losses_fn, shared=shared)(params)
    link = toys.balance(lr_annealing("residual"), ["residual", "boundary"])
    _, state = jax.jit(lambda: link.update(gradients, link.init(params)))()
    # The largest entry is 8; the mean of (1, 1, 3) is 5 / 3.
    expected = 0.1 + 0.9 * 8 / (5 / 3)
    np.testing.assert_allclose(state.task_weights["boundary"], expected, rtol=1e-6)
    assert float(state.task_weights["residual"]) == 1


def test_steps_between_keep_the_weights_and_read_no_gradient() -> None:
    balancer = lr_annealing(1, refresh_every=4)
    jacobians = jnp.asarray(JACOBIANS).at[1:4].set(jnp.nan)
    weights, state = over(balancer, LOSSES, task_gradients=jacobians)
    sparse = papers_weights(JACOBIANS[[0, 4, 8]])
    np.testing.assert_allclose(weights, sparse[np.arange(10) // 4], rtol=1e-5)
    chex.assert_tree_all_finite(state)


def test_a_gradient_of_zero_or_not_finite_keeps_the_weight() -> None:
    jacobians = jnp.asarray(JACOBIANS)
    jacobians = jacobians.at[3, 0].set(0).at[4, 2, 5].set(jnp.nan).at[5, 1].set(jnp.inf)
    weights, state = over(DEFAULT, LOSSES, task_gradients=jacobians)
    chex.assert_tree_all_finite((weights, state))
    assert weights[3, 0] == weights[2, 0]
    assert weights[4, 2] == weights[3, 2]
    np.testing.assert_array_equal(weights[5], weights[4])
    expected = 0.1 * weights[5, 0] + 0.9 * np.abs(JACOBIANS[6, 1]).max() / np.mean(
        np.abs(JACOBIANS[6, 0])
    )
    np.testing.assert_allclose(weights[6, 0], expected, rtol=1e-5)


def test_extreme_gradients() -> None:
    rows = np.ones((10, 3, 4)) * np.array([[[1e-37], [3e38], [3e38]]])
    weights, _ = over(DEFAULT, LOSSES, task_gradients=jnp.asarray(rows))
    np.testing.assert_allclose(weights[-1], [1e30, 1, 1], rtol=1e-5)
    rows[:, 1] = 0
    weights, state = over(DEFAULT, LOSSES, task_gradients=jnp.asarray(rows))
    # Nothing to compare with: the weights of the others vanish, but not quite.
    np.testing.assert_allclose(weights[:, 0], 0.1 ** np.arange(1, 11), rtol=1e-4)
    chex.assert_tree_all_finite(state)


def test_equal_gradients() -> None:
    same = jnp.broadcast_to(jnp.asarray(JACOBIANS[:, :1]), JACOBIANS.shape)
    balancer = lr_annealing(1, statistic="mean")
    weights, _ = over(balancer, LOSSES, task_gradients=same)
    np.testing.assert_allclose(weights, 1, rtol=1e-5)


def test_preferences_and_tasks_that_are_not_active() -> None:
    preferences = np.tile([2.0, 3.0, 0.5], (10, 1))
    preferences[4:6, 0] = 0
    preferences[7, 1] = 0
    jacobians = jnp.asarray(JACOBIANS)
    weights, _ = over(DEFAULT, LOSSES, preferences, task_gradients=jacobians)
    full = papers_weights(JACOBIANS)
    np.testing.assert_allclose(weights[:4], full[:4] * [2, 3, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(weights[4:6, 0], 0)
    # The task comes back with its weight of step 3 as the old one.
    new = np.abs(JACOBIANS[6, 1]).max() / np.abs(JACOBIANS[6, 0]).mean()
    back = 0.1 * full[3, 0] + 0.9 * new
    np.testing.assert_allclose(weights[6, 0], 2 * back, rtol=1e-5)
    # Without the primary task nothing is learnt.
    np.testing.assert_allclose(weights[7, [0, 2]], weights[6, [0, 2]], rtol=1e-6)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(DEFAULT, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
        assert weights.dtype == state.weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, papers_weights(JACOBIANS), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.1}, "alpha must be a number in"),
        ({"refresh_every": 0}, "refresh_every must be an integer of at least 1"),
        ({"statistic": "median"}, "statistic must be one of"),
    ],
)
def test_hyperparameters_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_annealing(0, **arguments)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="primary must be one of a, b, got 'c'"):
        lr_annealing("c").init({"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="primary must be one of 0, 1, 2, got 3"):
        lr_annealing(3).init(ONES)
    state = DEFAULT.init(ONES)
    with pytest.raises(ValueError, match="lr_annealing needs `task_gradients`"):
        DEFAULT.update(ONES, state, ONES)
    gradients = TaskGradients.from_stacked(jnp.ones((3, 2)))
    weights, _ = DEFAULT.update(ONES, state, task_gradients=gradients)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
