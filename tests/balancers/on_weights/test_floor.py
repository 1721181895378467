from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers.on_weights import _floor
from tests.balancers.sequences import over

floor: Any = _floor.floor


@pytest.mark.parametrize(("least", "raised"), [(0.25, 0.25), (0.0, 1e-30), (1, 1.0)])
def test_only_the_weights_of_active_tasks_are_raised(
    least: float, raised: float
) -> None:
    weights = jnp.array([1e-30, 3.0, 1e30, -2.0, 0.0])
    found, _ = floor(least).update(weights, ())
    np.testing.assert_allclose(found, [raised, 3.0, 1e30, raised, 0.0], rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_a_thousand_steps(num_tasks: int) -> None:
    weights = np.random.default_rng(0).uniform(0, 1, (1000, num_tasks))
    found, _ = over(floor(0.3), np.zeros_like(weights), weights)
    np.testing.assert_allclose(found, np.maximum(weights, 0.3), rtol=1e-6)


def test_may_be_traced() -> None:
    balancer: Any = optax.inject_hyperparams(floor)(min_weight=0.5)
    weights = jnp.array([0.1, 1.0])
    found, _ = balancer.update(weights, balancer.init(weights), weights)
    assert found.tolist() == [0.5, 1.0]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="min_weight must be a number in"):
        floor(-0.1)
