from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import focal_weights
from dtp_jax.balancers import focal
from tests import toys
from tests.toys import curricula

STEPS = toys.random_steps(4, num_steps=8)


def test_stages_activate_tasks_and_bypass_the_first_stage() -> None:
    schedule = {0: ["a"], 3: ["a", "c"], 5: ["a", "b", "c", "d"]}
    found = toys.weights_over(curricula.stages(schedule, optax.scale(7.0)), STEPS)
    expected = np.array([[1, 0, 0, 0]] * 3 + [[7, 0, 7, 0]] * 2 + [[7, 7, 7, 7]] * 3)
    np.testing.assert_array_equal(found, expected)


def test_tasks_may_leave_and_may_be_named_by_position() -> None:
    schedule = {0: [0, 1], 2: [np.int64(1)]}
    found = toys.weights_over(curricula.stages(schedule, optax.identity()), STEPS)
    np.testing.assert_array_equal(found[1], [1, 1, 0, 0])
    np.testing.assert_array_equal(found[2], [0, 1, 0, 0])


def test_kpis_average_before_a_task_is_active() -> None:
    found = toys.weights_over(
        curricula.stages({0: ["a"], 3: ["a", "b"]}, focal(alpha=0.5)), STEPS
    )
    mean = STEPS.kpis[0]
    for index in range(1, 4):
        mean = 0.5 * STEPS.kpis[index] + 0.5 * mean
    np.testing.assert_allclose(found[3, :2], focal_weights(mean)[:2], rtol=1e-5)


def test_a_memory_does_not_revive_a_task() -> None:
    balancer = curricula.stages({0: [0], 1: [0, 1], 3: [0]}, optax.ema(0.9))
    found = toys.weights_over(balancer, STEPS)
    assert (found[1:3, 1] > 0).all()
    np.testing.assert_array_equal(found[3:, 1], 0)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "must be a dict from first steps"),
        ([["a"]], "must be a dict from first steps"),
        ({1: ["a"]}, "start at 0 and increase"),
        ({0: ["a"], 5: ["a"], 3: ["b"]}, "start at 0 and increase"),
        ({0: ["a"], -1: ["b"]}, "start at 0 and increase"),
        ({0: ["a"], 1.5: ["b"]}, "start at 0 and increase"),
        ({0: ["a"], 2**31: ["b"]}, "start at 0 and increase"),
        ({0: 1}, r"stages\[0\] must be a list of at least one task"),
        ({0: []}, r"stages\[0\] must be a list of at least one task"),
        ({0: "ab"}, r"stages\[0\] must be a list of at least one task"),
    ],
)
def test_wrong_schedules(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curricula.stages(schedule, optax.identity())


@pytest.mark.parametrize("task", ["e", 4, -1])
def test_unknown_tasks_are_named_when_the_state_is_made(task: Any) -> None:
    balancer = curricula.stages({0: ["a", task]}, optax.identity())
    with pytest.raises(ValueError, match=f"unknown task {task!r}. The tasks are a, b"):
        balancer.init({"a": 0.0, "b": 0.0})


def test_warm_up_counts_the_steps_of_each_task() -> None:
    balancer = curricula.warm_up(optax.scale(5.0), 2)
    state = balancer.init(jnp.zeros(2))
    joined = [[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    found = []
    for preferences in joined:
        weights, state = balancer.update(jnp.array(preferences), state)
        found.append(weights.tolist())
    assert found == [[1, 0], [1, 0], [5, 2], [5, 2], [5, 10]]
    assert state.active_steps.tolist() == [5, 3]


def test_the_state_learns_during_warm_up() -> None:
    found = toys.weights_over(curricula.warm_up(focal(alpha=0.5), 2), STEPS)
    np.testing.assert_array_equal(found[:2], 1)
    mean = 0.5 * STEPS.kpis[1] + 0.5 * STEPS.kpis[0]
    mean = 0.5 * STEPS.kpis[2] + 0.5 * mean
    np.testing.assert_allclose(found[2], focal_weights(mean), rtol=1e-5)


@pytest.mark.parametrize("num_steps", [-1, 1.5])
def test_wrong_warm_up(num_steps: float) -> None:
    with pytest.raises(ValueError, match="num_steps must be an integer"):
        curricula.warm_up(optax.identity(), num_steps)
