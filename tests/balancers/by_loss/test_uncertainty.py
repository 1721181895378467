from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import losses
from tests.toys import balancers

ONES = jnp.ones(3)
LOSSES = jnp.array([0.2, 1.0, 7.0])


def settled(steps: int = 3000, **arguments: Any) -> np.ndarray:
    """The log-variances after many steps on constant losses."""
    balancer = balancers.uncertainty(optimizer=optax.sgd(0.05), **arguments)

    def step(state: Any, _: Any) -> Any:
        return balancer.update(ONES, state, LOSSES)[1], None

    state, _ = jax.lax.scan(step, balancer.init(ONES), None, length=steps)
    return np.asarray(state.log_variances)


@pytest.mark.parametrize("init_value", [-2.0, 0.0, 5.0])
def test_regression_settles_at_the_logarithm_of_the_loss(init_value: float) -> None:
    np.testing.assert_allclose(
        settled(init_value=init_value), np.log(LOSSES), 1e-3, 1e-3
    )


def test_the_other_kinds_settle_at_their_optimum() -> None:
    found = settled(kind="classification")
    np.testing.assert_allclose(found, np.log(2 * LOSSES), 1e-3, 1e-3)
    np.testing.assert_allclose(settled(kind="laplace"), np.log(LOSSES), 1e-3, 1e-3)
    exact = (LOSSES + np.sqrt(LOSSES**2 + 8 * LOSSES)) / 4
    np.testing.assert_allclose(settled(positive=True), np.log(exact), 1e-3, 1e-3)


def of_positive_form(loss: jax.Array, s: jax.Array) -> jax.Array:
    return losses.uncertainty_regression(loss, s, positive=True)


@pytest.mark.parametrize(
    ("arguments", "objective"),
    [
        ({"kind": "regression"}, losses.uncertainty_regression),
        ({"kind": "regression", "positive": True}, of_positive_form),
        ({"kind": "laplace"}, losses.uncertainty_laplace),
        ({"kind": "classification"}, lambda loss, s: jnp.exp(-s) * loss + s / 2),
    ],
)
def test_weights_and_steps_are_derivatives_of_the_objective(
    arguments: dict[str, Any], objective: Any
) -> None:
    start, rate = 0.3, 0.1
    balancer = balancers.uncertainty(
        optimizer=optax.sgd(rate), init_value=start, **arguments
    )
    weights, state = balancer.update(ONES, balancer.init(ONES), LOSSES)

    def total(loss: jax.Array, s: jax.Array) -> jax.Array:
        return objective(loss, s).sum()

    by_loss, by_s = jax.grad(total, (0, 1))(LOSSES, jnp.full(3, start))
    np.testing.assert_allclose(weights, by_loss, rtol=1e-6)
    np.testing.assert_allclose(state.log_variances, start - rate * by_s, rtol=1e-5)


def test_kinds_per_task() -> None:
    kinds = {"depth": "laplace", "class": "classification", "pose": "regression"}
    losses_ = dict.fromkeys(kinds, jnp.array(1.0))
    balancer = balancers.uncertainty(kind=kinds, optimizer=optax.sgd(1.0))
    ones = dict.fromkeys(kinds, 1.0)
    weights, state = balancer.update(ones, balancer.init(losses_), losses_)
    assert weights == {"class": 1.0, "depth": 1.0, "pose": 0.5}
    # Slopes at s = 0: 1/2 - L, 1 - L and (1 - L) / 2 in sorted order.
    assert state.log_variances.tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize("loss", [0.0, 1e-38, 1e30, float(jnp.finfo(jnp.float32).max)])
def test_extreme_losses_stay_finite_and_are_forgotten(loss: float) -> None:
    balancer = balancers.uncertainty(optimizer=optax.adam(0.5))

    def run(state: Any, values: jax.Array) -> Any:
        def step(state: Any, value: jax.Array) -> Any:
            weights, state = balancer.update(ONES, state, jnp.full(3, value))
            return state, weights

        return jax.lax.scan(step, state, values)

    state, weights = run(balancer.init(ONES), jnp.full(300, loss))
    chex.assert_tree_all_finite((state, weights))
    assert (jnp.abs(state.log_variances) <= 10).all()
    assert np.sign(state.log_variances[0]) == (1 if loss > 1 else -1)
    # Adam forgets its second moment at 0.999 per step.
    state, _ = run(state, jnp.ones(20_000))
    np.testing.assert_allclose(state.log_variances, 0, atol=0.05)


def test_a_task_that_is_not_active_keeps_its_log_variance() -> None:
    balancer = balancers.uncertainty(optimizer=optax.adam(0.1))
    _, state = balancer.update(ONES, balancer.init(ONES), LOSSES)
    some = jnp.array([1.0, 0.0, 1.0])
    weights, new = balancer.update(some, state, LOSSES)
    assert float(weights[1]) == 0
    assert float(new.log_variances[1]) == float(state.log_variances[1])
    assert float(new.log_variances[0]) != float(state.log_variances[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: balancers.uncertainty(kind="gauss"), "kind must be one of"),
        (lambda: balancers.uncertainty(bound=0.0), "bound must be"),
        (
            lambda: balancers.uncertainty(kind={"a": "laplace"}).init({"b": 1.0}),
            "kind must be one string, or one for each of the tasks b",
        ),
        (
            lambda: balancers.uncertainty().update(ONES, None),
            "uncertainty needs `losses`",
        ),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
