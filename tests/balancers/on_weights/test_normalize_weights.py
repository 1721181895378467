from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.toys import balancers

TINY = 1e-30  # The weight of a solved task.
HUGE = 1e36  # The reciprocal of a sum of larger numbers is flushed to zero.


def normalized(weights: list[float], total: Any = "sum_to_T") -> np.ndarray:
    balancer = balancers.normalize_weights(total)
    values = jnp.array(weights)
    return np.asarray(balancer.update(values, balancer.init(values), values)[0])


def test_sums_over_active_tasks() -> None:
    np.testing.assert_allclose(normalized([3.0, 1.0, 0.0]), [1.5, 0.5, 0.0])
    np.testing.assert_allclose(normalized([3.0, 1.0], "sum_to_1"), [0.75, 0.25])


@pytest.mark.parametrize("size", [TINY, 1.0, HUGE])
def test_uniform_at_any_scale(size: float) -> None:
    np.testing.assert_allclose(normalized([size] * 3), [1.0, 1.0, 1.0], rtol=1e-6)


def test_ratios_are_kept() -> None:
    np.testing.assert_allclose(normalized([1e-20, 3e-20]), [0.5, 1.5], rtol=1e-6)


def test_no_active_task_stays_zero() -> None:
    assert normalized([0.0, 0.0]).tolist() == [0.0, 0.0]


def test_equal_kpis_give_the_plain_sum() -> None:
    focal = balancers.focal()
    ones = jnp.ones(3)
    weights, _ = focal.update(ones, focal.init(ones), ones, kpis=jnp.full(3, 0.4))
    np.testing.assert_allclose(normalized(weights.tolist()), ones, rtol=1e-6)


def test_unknown_total() -> None:
    with pytest.raises(ValueError, match="total must be 'sum_to_T' or 'sum_to_1'"):
        balancers.normalize_weights("mean")


def test_an_active_task_is_not_normalized_away() -> None:
    assert normalized([1e-30, 1e30])[0] > 0
