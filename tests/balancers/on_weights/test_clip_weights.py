from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers.on_weights import _clip_weights
from tests.balancers.sequences import over

clip_weights: Any = _clip_weights.clip_weights
WEIGHTS = [1e-30, 0.1, 1.0, 7.0, 1e30, -2.0, 0.0]
TINY = 1e-30


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2.0, [0.5, 0.5, 1.0, 2.0, 2.0, 0.5, 0.0]),
        (None, 2.0, [TINY, 0.1, 1.0, 2.0, 2.0, -2.0, 0.0]),
        (0.5, None, [0.5, 0.5, 1.0, 7.0, 1e30, 0.5, 0.0]),
        (0.0, None, [TINY, 0.1, 1.0, 7.0, 1e30, TINY, 0.0]),
        (-1.0, 1.0, [TINY, 0.1, 1.0, 1.0, 1.0, -1.0, 0.0]),
        (2.0, 2.0, [2.0] * 6 + [0.0]),
    ],
)
def test_only_the_weights_of_active_tasks_are_clipped(
    low: Any, high: Any, expected: Any
) -> None:
    weights = jnp.array(WEIGHTS)
    found, _ = clip_weights(low, high).update(weights, ())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_a_bound_that_rises_over_a_thousand_steps(num_tasks: int) -> None:
    def low(step: Any) -> Any:
        return 0.001 * step

    balancer: Any = optax.inject_hyperparams(clip_weights)(low=low)
    weights = np.random.default_rng(0).uniform(0, 1, (1000, num_tasks))
    found, _ = over(balancer, np.zeros_like(weights), weights)
    expected = np.maximum(weights, 0.001 * np.arange(1000)[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "clip_weights needs a bound"),
        ((2.0, 1.0), r"high must be a number in \[2.0, inf\], got 1.0"),
        ((None, 0.0), "high must be a number in"),
        ((-2.0, -1.0), "high must be a number in"),
        ((float("nan"),), "low must be a number in"),
    ],
)
def test_errors_say_what_to_do(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_weights(*arguments)
