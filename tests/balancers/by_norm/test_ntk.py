from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_norm import _ntk
from tests import toys
from tests.balancers.sequences import LOSSES, over

ntk: Any = _ntk.ntk
DEFAULT = ntk()
ONES = jnp.ones(3)

# Gradients [S, T, P] of the losses.
JACOBIANS = np.random.default_rng(0).normal(size=(10, 3, 7)) * np.array(
    [[[0.1], [1.0], [5.0]]]
)
# Gradients [S, T, points, P] of residuals.
RESIDUALS = np.random.default_rng(1).normal(size=(10, 3, 4, 5)) * np.array(
    [[[[0.1]], [[1.0]], [[5.0]]]]
)


def papers_weights(traces: np.ndarray, decay: float = 0.0) -> np.ndarray:
    """Algorithm 1 of the paper on averages of the traces [S, T]."""
    average, weights = traces[0], []
    for trace in traces:
        average = decay * average + (1 - decay) * trace
        weights.append(average.sum() / average)
    return np.array(weights)


def rates(losses: np.ndarray, jacobians: np.ndarray) -> np.ndarray:
    return np.sum(jacobians**2, axis=-1) / losses


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_traces_of_the_paper_over_a_sequence(decay: float) -> None:
    balancer = ntk(decay=decay)

    @jax.jit
    def step(state: Any, rows: jax.Array) -> Any:
        residuals = jnp.zeros((3, 4))
        gradients = TaskGradients.from_stacked(rows.reshape(12, 5), residuals)
        return balancer.update(ONES, state, residual_gradients=gradients)

    state, found = balancer.init(ONES), []
    for rows in RESIDUALS:
        weights, state = step(state, jnp.asarray(rows, jnp.float32))
        found.append(weights)
    kernels = np.einsum("stip,stjp->stij", RESIDUALS, RESIDUALS)
    expected = papers_weights(np.trace(kernels, axis1=2, axis2=3), decay)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_rates_of_the_losses_over_a_sequence(decay: float) -> None:
    balancer = ntk(decay=decay)
    weights, state = over(balancer, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    expected = papers_weights(rates(LOSSES, JACOBIANS), decay)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert int(state.step) == 10


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.1, 9, (1000, num_tasks))
    rows = rng.normal(size=(1000, num_tasks, 3))
    weights, _ = over(ntk(decay=0.9), losses, task_gradients=jnp.asarray(rows))
    expected = papers_weights(rates(losses, rows), 0.9)
    np.testing.assert_allclose(weights[-1], expected[-1], rtol=1e-4)


def residuals_fn(params: Any) -> Any:
    x = jnp.linspace(0.0, 1.0, 4)
    u = params["w"][:, None] * x + params["b"]
    return {"boundary": u[0, :1] ** 2, "residual": jnp.sin(u).sum(axis=0)}


PARAMS = {"w": jnp.array([0.3, -1.0, 2.0]), "b": jnp.array(0.5)}


def test_residuals_of_named_tasks_with_different_numbers_of_points() -> None:
    tree = dict.fromkeys(("boundary", "residual"), jnp.array(1.0))

    @jax.jit
    def update(params: Any) -> Any:
        found = task_gradients(residuals_fn)(params)
        return DEFAULT.update(tree, DEFAULT.init(tree), residual_gradients=found)

    weights, state = update(PARAMS)
    jacobian = jax.jit(jax.jacobian(residuals_fn))(PARAMS)
    traces = [
        sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(jacobian[name]))
        for name in tree
    ]
    np.testing.assert_allclose(state.traces, traces, rtol=1e-5)
    np.testing.assert_allclose(
        [weights["boundary"], weights["residual"]],
        sum(traces) / np.array(traces),
        rtol=1e-5,
    )


def test_the_rate_is_four_times_the_rayleigh_quotient_of_the_kernel() -> None:
    def losses_fn(params: Any) -> Any:
        return jax.tree.map(lambda r: jnp.sum(r**2), residuals_fn(params))

    link = toys.balance(ntk(), ["boundary", "residual"])

    @jax.jit
    def update(params: Any) -> Any:
        return link.update(task_gradients(losses_fn)(params), link.init(params))

    _, state = update(PARAMS)
    jacobian = jax.jit(jax.jacobian(residuals_fn))(PARAMS)
    for index, (name, residual) in enumerate(residuals_fn(PARAMS).items()):
        rows = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(jacobian[name])]
        rows = np.concatenate(rows, axis=1)
        quotient = residual @ rows @ rows.T @ residual / (residual @ residual)
        np.testing.assert_allclose(state.balancer.traces[index], 4 * quotient, 1e-5)


def test_steps_between_keep_the_weights_and_read_no_gradient() -> None:
    jacobians = jnp.asarray(JACOBIANS).at[1:4].set(jnp.nan)
    weights, _ = over(ntk(refresh_every=4), LOSSES, task_gradients=jacobians)
    sparse = papers_weights(rates(LOSSES, JACOBIANS)[[0, 4, 8]])
    np.testing.assert_allclose(weights, sparse[np.arange(10) // 4], rtol=1e-5)


def test_an_unknown_trace_keeps_its_value_or_counts_as_the_mean() -> None:
    losses, jacobians = LOSSES.copy(), jnp.asarray(JACOBIANS)
    losses[:3, 0], losses[5, 1] = [0.0, -1.0, 3e38], 0.0
    jacobians = jacobians.at[2, 0].set(0).at[6, 2, 0].set(jnp.nan)
    weights, state = over(DEFAULT, losses, task_gradients=jacobians)
    chex.assert_tree_all_finite((weights, state))
    traces = rates(LOSSES, JACOBIANS)
    traces[:3, 0] = traces[:3, 1:].mean(axis=1)
    traces[5, 1], traces[6, 2] = traces[4, 1], traces[5, 2]
    np.testing.assert_allclose(weights, papers_weights(traces), rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e-30, 1e30])
def test_equal_tasks_have_equal_weights(size: float) -> None:
    same = jnp.broadcast_to(jnp.asarray(JACOBIANS[:, :1] * size), JACOBIANS.shape)
    weights, _ = over(DEFAULT, np.ones((10, 3)), task_gradients=same)
    np.testing.assert_allclose(weights, 3, rtol=1e-5)


def test_extreme_traces() -> None:
    rows = jnp.broadcast_to(jnp.diag(jnp.array([1e-18, 1.0, 1e18])), (10, 3, 3))
    weights, _ = over(DEFAULT, np.ones((10, 3)), task_gradients=rows)
    np.testing.assert_allclose(weights[-1], [1e30, 1e30, 1.0], rtol=1e-5)


def test_preferences_multiply_the_weights_of_the_active_tasks() -> None:
    active = np.array([0, 2])
    weights, state = over(
        DEFAULT,
        LOSSES,
        jnp.array([2.0, 0.0, 0.5]),
        task_gradients=jnp.asarray(JACOBIANS),
    )
    expected = papers_weights(rates(LOSSES, JACOBIANS)[:, active]) * [2.0, 0.5]
    np.testing.assert_allclose(weights[:, active], expected, rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.traces[1]) == 0


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(DEFAULT, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
        assert weights.dtype == state.traces.dtype == jnp.float64
        expected = papers_weights(rates(LOSSES, JACOBIANS))
        np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="decay must be a number in"):
        ntk(decay=1.0)
    with pytest.raises(ValueError, match="refresh_every must be an integer"):
        ntk(refresh_every=0)
    state = DEFAULT.init(ONES)
    with pytest.raises(ValueError, match=r"ntk needs `losses`.*residual_gradients="):
        DEFAULT.update(ONES, state)
    with pytest.raises(ValueError, match="ntk needs `task_gradients`"):
        DEFAULT.update(ONES, state, ONES)
    gradients = TaskGradients.from_stacked(jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(ValueError, match="do not match the tasks 0, 1, 2: return"):
        DEFAULT.update(ONES, state, residual_gradients=gradients)
