from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import task_gradients
from tests.balancers.sequences import LOSSES, over
from tests.toys import balance, balancers

LADDER = (0.01, 0.1, 1.0, 10.0, 100.0)


def by_definition(losses: Any, tolerance: float) -> np.ndarray:
    sums = [np.sum(losses[:i], dtype=np.float64) for i in range(len(losses))]
    return np.exp(-tolerance * np.array(sums))


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 2.0])
def test_later_losses_wait_for_earlier_ones(tolerance: float) -> None:
    weights, state = over(balancers.causal(tolerance), LOSSES)
    expected = np.array([by_definition(row, tolerance) for row in LOSSES])
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.smallest, expected[-1].min(), rtol=1e-5)


def test_the_smallest_weight_is_found_in_the_state_of_a_chain() -> None:
    def losses_fn(params: Any) -> Any:
        return params * jnp.array([1.0, 2.0, 3.0])

    link = balance(balancers.causal(tolerance=1.0), 3)
    chain = optax.chain(link, optax.sgd(1.0))
    params = jnp.ones(())
    gradients = task_gradients(losses_fn)(params)
    _, state = chain.update(gradients, chain.init(params), params)
    found = optax.tree.get(state, "smallest")
    np.testing.assert_allclose(found, np.exp(-3.0), rtol=1e-5)


def test_small_losses_before_a_large_one_keep_their_digits() -> None:
    # Taking the own loss off the sum would leave nothing of the one before.
    losses = np.array([[1e-5, 1e5, 1.0]])
    weights, _ = over(balancers.causal(1e4), losses)
    np.testing.assert_allclose(weights[0, 1], np.exp(-0.1), rtol=1e-5)


def test_a_ladder_climbs_when_the_smallest_weight_is_large() -> None:
    # 2^-k: the sum before the last falls, and the tolerances rise.
    losses = np.exp2(-np.arange(40.0))[:, None] * np.ones((40, 5))
    weights, state = over(balancers.causal(LADDER, threshold=0.9), losses)
    rung = 0
    for row, found in zip(losses, weights, strict=True):
        expected = by_definition(row, LADDER[rung])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        rung = min(rung + (expected.min() > 0.9), len(LADDER) - 1)
    assert rung == state.rung == len(LADDER) - 1
    assert state.smallest > 0.9


def test_masked_and_bad_losses_count_as_zero() -> None:
    losses = np.array([[0.5, np.nan, 3.0, 0.1], [0.5, 2.0, np.inf, 0.1]])
    preferences = np.array([[1.0, 1.0, 0.0, 2.0], [1.0, 0.0, 1.0, 1.0]])
    weights, _ = over(balancers.causal(2.0), losses, preferences)
    last = np.exp(-1.0)
    np.testing.assert_allclose(weights, [[1, 0, 0, 2 * last], [1, 0, 0, last]], 1e-6)


def test_huge_losses_stop_what_follows() -> None:
    weights, state = over(balancers.causal(0.0), np.full((1, 5), 3e38))
    np.testing.assert_array_equal(weights, 1)
    weights, state = over(balancers.causal(1.0), np.full((1, 5), 3e38))
    np.testing.assert_array_equal(
        weights, np.array([[1, 1e-30, 1e-30, 1e-30, 1e-30]], np.float32)
    )
    assert state.smallest == 0
    # Nothing is active: nothing is solved.
    _, state = over(balancers.causal(LADDER), np.zeros((3, 4)), np.zeros(4))
    assert state.rung == 0


def test_ten_thousand_points_and_one() -> None:
    losses = np.random.default_rng(0).exponential(1e-4, (1, 10_000))
    weights, _ = over(balancers.causal(), losses)
    np.testing.assert_allclose(weights[0], by_definition(losses[0], 1.0), rtol=1e-5)
    weights, _ = over(balancers.causal(), np.array([[7.0]]))
    np.testing.assert_array_equal(weights, 1)


def test_names_have_no_order_in_time() -> None:
    losses = {f"t{i}": jnp.ones(()) for i in range(12)}
    with pytest.raises(ValueError, match=r"t1, t10, t11, t2.*tasks=N"):
        balancers.causal().init(losses)
    with pytest.raises(ValueError, match="Give them in one array"):
        balance(balancers.causal(), list(losses)).init(None)
    # One array has an order, whatever it is called.
    balance(balancers.causal(), {"times": jnp.ones(12)}).init(None)


def test_wrong_arguments() -> None:
    for tolerance in (-1.0, (), (0.1, -0.1)):
        with pytest.raises(ValueError, match="tolerance must be"):
            balancers.causal(tolerance)
    with pytest.raises(ValueError, match="threshold must be"):
        balancers.causal(threshold=1.5)
