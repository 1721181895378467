from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.by_loss._go4align import group_means
from tests.balancers.sequences import LOSSES, over
from tests.toys import balancers


def best_means(values: np.ndarray, num_groups: int) -> tuple[float, np.ndarray]:
    """By trying every grouping of few numbers."""
    found = (np.inf, values)
    # A group is named when it first occurs, so that none is tried under two names.
    groupings = [[0]]
    for _ in values[1:]:
        groupings = [
            [*grouping, group]
            for grouping in groupings
            for group in range(min(max(grouping) + 2, num_groups))
        ]
    for grouping in groupings:
        groups = np.array(grouping)
        means = np.array([values[groups == group].mean() for group in groups])
        cost = np.sum((values - means) ** 2)
        if cost < found[0] - 1e-12:
            found = (cost, means)
    return found


@pytest.mark.parametrize("num_groups", [1, 2, 3, 6, 9])
def test_the_groups_are_the_best_ones(num_groups: int) -> None:
    rng = np.random.default_rng(num_groups)
    for _ in range(5):
        values = rng.exponential(size=6) * 10 ** rng.uniform(-6, 6)
        found = group_means(jnp.asarray(values), jnp.ones(6, bool), num_groups)
        cost, means = best_means(values, min(num_groups, 6))
        reached = np.sum((values - np.asarray(found, np.float64)) ** 2)
        assert reached <= cost * (1 + 1e-4) + 1e-11 * values.max() ** 2
        np.testing.assert_allclose(np.sum(found), np.sum(means), rtol=1e-5)


def test_who_does_not_count_is_in_no_group() -> None:
    values, active = (
        jnp.array([1.0, 50.0, 2.0, 9.0]),
        jnp.array([True, False, True, True]),
    )
    found = group_means(values, active, 2)
    np.testing.assert_allclose(found, [1.5, 50.0, 1.5, 9.0], rtol=1e-6)
    nobody = group_means(values, jnp.zeros(4, bool), 2)
    np.testing.assert_array_equal(nobody, values)
    np.testing.assert_array_equal(group_means(jnp.ones(4), jnp.ones(4, bool), 3), 1)


def by_definition(losses: Any, num_groups: int, step_size: float) -> np.ndarray:
    shares, found = np.full(3, 1 / 3), []
    for row in np.asarray(losses, np.float64):
        shares = shares * np.exp(-step_size * row)
        shares = shares / shares.sum()
        found.append(best_means(row.sum() / row * shares, num_groups)[1])
    return np.array(found)


@pytest.mark.parametrize(("num_groups", "step_size"), [(1, 0.1), (2, 0.03), (3, 0.2)])
def test_the_weights_of_a_sequence(num_groups: int, step_size: float) -> None:
    balancer = balancers.go4align(num_groups=num_groups, step_size=step_size)
    weights, state = over(balancer, LOSSES)
    np.testing.assert_allclose(
        weights, by_definition(LOSSES, num_groups, step_size), rtol=1e-4
    )
    np.testing.assert_allclose(np.exp(state.log_risks).mean(), 1, rtol=1e-5)


def test_an_absent_task_keeps_its_share() -> None:
    losses, wanted = LOSSES.copy(), np.ones(LOSSES.shape)
    losses[2:4, 0], wanted[5:, 2] = np.nan, 0.0
    balancer = balancers.go4align(step_size=0.05)
    weights, state = over(balancer, losses, wanted)
    np.testing.assert_array_equal(weights > 0, wanted * np.isfinite(losses) > 0)
    _, before = over(balancer, losses[:5], wanted[:5])
    np.testing.assert_allclose(state.log_risks[2], before.log_risks[2], rtol=1e-6)
    np.testing.assert_allclose(np.exp(state.log_risks).mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("loss", [0.0, 1e-30, 3e38])
def test_a_thousand_steps_of_degenerate_losses(loss: float) -> None:
    losses = np.tile([[loss, 1.0, 1.0]], (1000, 1))
    weights, state = over(balancers.go4align(step_size=0.1), losses)
    assert np.isfinite(weights).all()
    assert np.isfinite(state.log_risks).all()
    alone, _ = over(balancers.go4align(), np.full((3, 1), loss))
    np.testing.assert_allclose(alone, 1, rtol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_groups must be"):
        balancers.go4align(num_groups=0)
    with pytest.raises(ValueError, match="step_size must be"):
        balancers.go4align(step_size=-1.0)
