from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import task_gradients
from dtp_jax.balancers.on_weights import _constant
from tests.balancers.sequences import LOSSES, over
from tests.toys import balance

constant: Any = _constant.constant
FIXED = np.array([2.0, 0.5, 1e-3])


def test_multiplies_the_preferences_whatever_the_losses() -> None:
    preferences = np.random.default_rng(0).uniform(0.1, 9, (1000, 3))
    losses = np.tile(LOSSES, (100, 1)) * 1e30
    found, _ = over(constant(FIXED), losses, preferences)
    np.testing.assert_allclose(found, preferences * FIXED, rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_one_number_for_all_tasks(num_tasks: int) -> None:
    found, _ = over(constant(0.3), np.zeros((2, num_tasks)))
    np.testing.assert_allclose(found, 0.3, rtol=1e-6)


def test_training_on_a_fixed_weighted_sum() -> None:
    def losses_fn(x: Any) -> Any:
        return {"a": jnp.sum(x**2), "b": jnp.sum(x)}

    params = jnp.array([1.0, 2.0])
    link = balance(constant({"b": 3.0, "a": 0.5}), ["a", "b"])
    updates, state = link.update(task_gradients(losses_fn)(params), link.init(params))
    np.testing.assert_allclose(updates, 0.5 * 2 * params + 3)
    assert state.task_weights == {"a": 0.5, "b": 3.0}


def test_zero_switches_a_task_off_for_the_links_after_it() -> None:
    seen = []

    def look(preferences: Any, losses: Any) -> Any:
        seen.append(preferences)
        return preferences

    ones = jnp.ones(2)
    chain: Any = optax.chain(constant([2.0, 0.0]), optax.stateless(look))
    chain.update(ones, chain.init(ones), ones)
    assert seen[0].tolist() == [2.0, 0.0]


def test_schedules_and_changes_between_steps() -> None:
    def falls(step: Any) -> Any:
        return jnp.array([1.0, 1.0, 1.0]) / (1 + step)

    found, _ = over(optax.inject_hyperparams(constant)(weights=falls), LOSSES[:3])
    np.testing.assert_allclose(found, [[1] * 3, [1 / 2] * 3, [1 / 3] * 3], rtol=1e-6)

    ones = jnp.ones(3)
    balancer: Any = optax.inject_hyperparams(constant)(weights=ones)
    state = balancer.init(ones)
    state.hyperparams["weights"] = jnp.asarray(FIXED, jnp.float32)
    weights, _ = balancer.update(ones, state, ones)
    np.testing.assert_allclose(weights, FIXED, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant(-1.0), "weights must be a number in"),
        (lambda: constant({"a": 1.0, "b": -2.0}), "weights must be a number in"),
        (lambda: constant({"a": 1.0}).update({"b": 1.0}, ()), "tasks without an entry"),
        (lambda: constant(jnp.ones(2)).update(jnp.ones(3), ()), "weights has shape"),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
