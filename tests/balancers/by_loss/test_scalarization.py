from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import task_gradients
from dtp_jax.balancers.by_loss import _scalarization
from tests.balancers.sequences import LOSSES, over
from tests.toys import balance

scalarization: Any = _scalarization.scalarization
SOME = np.array([0.5, 0.0, 3.0])
KEPT = [0, 2]


def log_sum_exp(losses: Any, preferences: Any) -> Any:
    return jax.nn.logsumexp(losses, b=preferences)


def test_the_update_is_the_gradient_of_the_function_of_the_losses() -> None:
    def losses_fn(x: Any) -> Any:
        return {"a": jnp.sum(x**2), "b": jnp.sum(jnp.sin(x)), "c": x[0]}

    def fn(losses: Any) -> Any:
        return losses["a"] * jnp.exp(losses["b"]) - losses["c"] ** 3

    params = jnp.array([0.3, -1.2])
    link = balance(scalarization(fn), ["a", "b", "c"])
    gradients = task_gradients(losses_fn)(params)
    found, state = jax.jit(link.update)(gradients, link.init(params))
    expected = jax.grad(lambda x: fn(losses_fn(x)))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The function falls with its third loss.
    assert float(state.task_weights["c"]) < 0


@pytest.mark.parametrize(
    ("fn", "fill", "slopes"),
    [
        (lambda x: jnp.sum(x**2) / 2, 0.0, lambda x: x),
        (lambda x: jnp.prod(x), 1.0, lambda x: x.prod(axis=1, keepdims=True) / x),
        (lambda x: jnp.max(x), -np.inf, lambda x: x == x.max(axis=1, keepdims=True)),
        (lambda x: jnp.min(x), np.inf, lambda x: x == x.min(axis=1, keepdims=True)),
    ],
)
def test_by_definition_with_and_without_a_task(fn: Any, fill: Any, slopes: Any) -> None:
    losses = np.concatenate([LOSSES, LOSSES])
    preferences = np.repeat([np.array([0.5, 1.0, 3.0]), SOME], len(LOSSES), axis=0)
    found, _ = over(scalarization(fn, fill=fill), losses, preferences)
    full, some = found[: len(LOSSES)], found[len(LOSSES) :]
    np.testing.assert_allclose(full, [0.5, 1, 3] * slopes(LOSSES), 1e-5, atol=1e-29)
    expected = SOME[KEPT] * slopes(LOSSES[:, KEPT])
    np.testing.assert_allclose(some[:, KEPT], expected, 1e-5, atol=1e-29)
    np.testing.assert_array_equal(some[:, 1], 0)
    # A task without influence on the function is active all the same.
    assert (full != 0).all()


def test_a_function_may_read_the_preferences() -> None:
    balancer = scalarization(log_sum_exp, with_preferences=True)
    losses = np.concatenate([LOSSES, LOSSES])
    preferences = np.repeat([np.array([0.5, 1.0, 3.0]), SOME], len(LOSSES), axis=0)
    parts = preferences * np.exp(losses)
    found, _ = over(balancer, losses, preferences)
    expected = parts / parts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-29)


def test_equal_losses_of_any_size() -> None:
    balancer = scalarization(log_sum_exp, with_preferences=True)
    values = np.array([0.0, -2.0, 1e-38, 3e38])[:, None]
    found, _ = over(balancer, values * np.ones(64))
    np.testing.assert_allclose(found, 1 / 64, rtol=1e-5)


def test_one_task_over_a_thousand_steps() -> None:
    losses = np.random.default_rng(0).normal(size=(1000, 1))
    found, _ = over(scalarization(lambda x: jnp.sum(x**2)), losses)
    np.testing.assert_allclose(found, 2 * losses, rtol=1e-6)


def test_the_function_sees_the_losses_as_the_user_knows_them() -> None:
    losses = {"pose": jnp.array([1.0, 2.0]), "depth": {"l1": jnp.array(3.0)}}

    def fn(losses: Any) -> Any:
        return losses["pose"][0] * losses["depth"]["l1"] + losses["pose"][1] ** 2

    balancer = scalarization(fn)
    ones = jax.tree.map(jnp.ones_like, losses)
    weights, _ = balancer.update(ones, balancer.init(losses), losses)
    assert weights["pose"].tolist() == [3.0, 4.0]
    assert float(weights["depth"]["l1"]) == 1.0


def test_no_derivative_flows_through_the_weights() -> None:
    balancer = scalarization(lambda x: jnp.sum(x**2))

    def total(losses: jax.Array) -> jax.Array:
        weights, _ = balancer.update(jnp.ones(2), (), losses)
        return jnp.sum(weights * losses)

    assert jax.grad(total)(jnp.array([1.0, 3.0])).tolist() == [2.0, 6.0]


def test_a_loss_that_is_not_finite_is_not_active() -> None:
    balancer = scalarization(jnp.sum)
    weights, _ = balancer.update(jnp.ones(3), (), jnp.array([1.0, jnp.nan, jnp.inf]))
    assert weights.tolist() == [1.0, 0.0, 0.0]


def test_injected_hyperparameters() -> None:
    injected: Any = optax.inject_hyperparams(scalarization, static_args=("fn",))
    balancer = injected(jnp.prod, fill=1.0)
    losses = jnp.array([2.0, 5.0, 7.0])
    weights, _ = balancer.update(jnp.asarray(SOME), balancer.init(losses), losses)
    np.testing.assert_allclose(weights, [0.5 * 7, 0, 3 * 2])


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TypeError, match="fn must be a function of the losses"):
        scalarization(1.0)
    ones = jnp.ones(2)
    with pytest.raises(ValueError, match=r"must return one number, got .* \[2\]"):
        scalarization(lambda x: x).update(ones, (), ones)
    with pytest.raises(ValueError, match=r"scalarization needs `losses`.*losses= next"):
        scalarization(jnp.sum).update(ones, ())
