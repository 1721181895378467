from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, feature_task_gradients, task_gradients
from dtp_jax.balancers.by_norm import _equal_norms
from tests import toys
from tests.balancers.sequences import LOSSES, over

equal_norms: Any = _equal_norms.equal_norms
EVERY = equal_norms(refresh_every=1)
ONES = jnp.ones(3)

# Gradients [S, T, P].
JACOBIANS = np.random.default_rng(0).normal(size=(10, 3, 7)) * np.array(
    [[[0.01], [1.0], [5.0]]]
)


def jaxpis_weights(
    jacobians: np.ndarray, momentum: float = 0.9, start: Any = 1.0, eps: float = 1e-5
) -> np.ndarray:
    """The rule of `jaxpi/models.py`, written out; the weights after each update."""
    weights, found = np.full(jacobians.shape[1], start), []
    for rows in jacobians:
        norms = np.linalg.norm(rows, axis=-1)
        new = norms.mean() / (norms + eps * norms.mean())
        weights = momentum * weights + (1 - momentum) * new
        found.append(weights)
    return np.array(found)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_agrees_with_jaxpi_over_a_sequence(momentum: float) -> None:
    balancer = equal_norms(momentum=momentum, refresh_every=1)
    weights, state = over(balancer, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
    expected = jaxpis_weights(JACOBIANS, momentum)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, expected[-1], rtol=1e-5)
    assert int(state.step) == 10


def test_without_momentum_all_weighted_gradients_have_the_mean_norm() -> None:
    rows = JACOBIANS[:1]
    balancer = equal_norms(momentum=0.0, eps=0.0)
    weights, _ = over(balancer, LOSSES[:1], task_gradients=jnp.asarray(rows))
    norms = np.linalg.norm(rows[0], axis=-1)
    np.testing.assert_allclose(weights[0] * norms, norms.mean(), rtol=1e-6)


def test_the_defaults_are_those_of_jaxpi() -> None:
    # Refreshed in the steps 0 and 1000.
    rows = np.tile(JACOBIANS[:1], (1002, 1, 1))
    rows[1000:] = JACOBIANS[1]
    losses = np.ones((1002, 3))
    weights, _ = over(equal_norms(), losses, task_gradients=jnp.asarray(rows))
    expected = jaxpis_weights(JACOBIANS[:2])
    np.testing.assert_allclose(weights[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(weights[1:1000], weights[:1].repeat(999, 0))
    np.testing.assert_allclose(weights[1000:], expected[1:].repeat(2, 0), rtol=1e-5)


def test_steps_between_read_no_gradient() -> None:
    jacobians = jnp.asarray(JACOBIANS).at[1:4].set(jnp.nan)
    balancer = equal_norms(refresh_every=4)
    weights, _ = over(balancer, LOSSES, task_gradients=jacobians)
    sparse = jaxpis_weights(JACOBIANS[[0, 4, 8]])
    np.testing.assert_allclose(weights, sparse[np.arange(10) // 4], rtol=1e-5)


def test_weights_start_where_the_user_says() -> None:
    balancer = equal_norms(init_value={"ics": 100.0, "res": 1.0}, refresh_every=1)
    names = ["res", "ics"]
    link, rows = toys.balance(balancer, names), JACOBIANS[:1, :2]
    gradients = TaskGradients.from_stacked(jnp.asarray(rows[0], jnp.float32))
    _, state = link.update(gradients, link.init(None))
    expected = jaxpis_weights(rows, start=np.array([100.0, 1.0]))[0]
    found = [state.task_weights["ics"], state.task_weights["res"]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_gradient_of_zero_or_not_finite() -> None:
    jacobians = jnp.asarray(JACOBIANS)
    jacobians = jacobians.at[3, 0].set(0).at[4, 2, 5].set(jnp.nan).at[5].set(0)
    weights, _ = over(EVERY, LOSSES, task_gradients=jacobians)
    assert np.isfinite(weights).all()
    # The largest new value there is.
    expected = 0.9 * weights[2, 0] + 0.1 / 1e-5
    np.testing.assert_allclose(weights[3, 0], expected, rtol=1e-5)
    assert weights[4, 2] == weights[3, 2]
    # The others go on as if that task were absent.
    norms = np.linalg.norm(JACOBIANS[4, :2], axis=-1)
    new = norms.mean() / (norms + 1e-5 * norms.mean())
    expected = 0.9 * weights[3, :2] + 0.1 * new
    np.testing.assert_allclose(weights[4, :2], expected, rtol=1e-5)
    np.testing.assert_array_equal(weights[5], weights[4])
    exact = equal_norms(eps=0.0, refresh_every=1)
    weights, _ = over(exact, LOSSES, task_gradients=jacobians)
    assert weights[3, 0] == weights[2, 0]


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_only_ratios_of_norms_count(scale: float) -> None:
    given = jnp.asarray(JACOBIANS * scale)
    weights, _ = over(EVERY, LOSSES, task_gradients=given)
    np.testing.assert_allclose(weights, jaxpis_weights(JACOBIANS), rtol=1e-4)


def test_preferences_and_tasks_that_are_not_active() -> None:
    preferences = np.tile([2.0, 3.0, 0.5], (10, 1))
    preferences[4:6, 0] = 0
    given = jnp.asarray(JACOBIANS)
    weights, _ = over(EVERY, LOSSES, preferences, task_gradients=given)
    full = jaxpis_weights(JACOBIANS)
    np.testing.assert_allclose(weights[:4], full[:4] * [2, 3, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(weights[4:6, 0], 0)
    # It comes back with its weight of step 3 as the old one.
    norms = np.linalg.norm(JACOBIANS[6], axis=-1)
    back = 0.9 * full[3, 0] + 0.1 * norms.mean() / norms[0]
    np.testing.assert_allclose(weights[6, 0], 2 * back, rtol=1e-3)


def test_norms_go_over_the_shared_parameters_or_the_features() -> None:
    params = {"trunk": jnp.array([3.0, 1.0]), "heads": jnp.array([2.0, 0.5])}

    def losses_fn(params: Any) -> Any:
        return params["heads"] * jnp.sum(params["trunk"])

    link = toys.balance(equal_norms(momentum=0.0, eps=0.0), 2)
    at_trunk = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
    at_features = feature_task_gradients(
        lambda params: jnp.sum(params["trunk"]),
        lambda params, feature: params["heads"] * feature,
    )
    for gradients in (at_trunk(params), at_features(params)):
        _, state = link.update(gradients, link.init(params))
        # The norms are 2 and 0.5, up to a factor.
        expected = [1.25 / 2, 1.25 / 0.5]
        np.testing.assert_allclose(state.task_weights, expected, rtol=1e-6)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(EVERY, LOSSES, task_gradients=jnp.asarray(JACOBIANS))
        assert weights.dtype == state.weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, jaxpis_weights(JACOBIANS), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum must be a number in"),
        ({"eps": -1.0}, "eps must be a number in"),
        ({"refresh_every": 0}, "refresh_every must be an integer of at least 1"),
        ({"init_value": {"a": -1.0}}, "init_value must be a number in"),
    ],
)
def test_hyperparameters_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equal_norms(**arguments)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="equal_norms needs `task_gradients`"):
        EVERY.update(ONES, EVERY.init(ONES), ONES)
    with pytest.raises(ValueError, match="init_value must be one number for all"):
        equal_norms(init_value=[1.0, 2.0]).init({"a": 1.0, "b": 1.0})
