from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from dtp_jax import combine_losses, focal_weights, task_gradients
from dtp_jax.balancers import focal, mgda
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


def test_every_k_asks_on_every_kth_step_only() -> None:
    each = toys.weights_over(toys.equal_norms(), STEPS)
    kept = toys.weights_over(curricula.every_k(toys.equal_norms(), 3), STEPS)
    np.testing.assert_array_equal(kept, each[np.array([0, 0, 0, 3, 3, 3, 6, 6])])


def test_every_k_with_tasks_that_come_and_go() -> None:
    balancer = curricula.every_k(optax.scale(5.0), 3)
    update, state = jax.jit(balancer.update), balancer.init(jnp.zeros(3))
    active = [[1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]]
    found = []
    for preferences in active:
        weights, state = update(2.0 * jnp.array(preferences, jnp.float32), state)
        found.append(weights.tolist())
    expected = [[10, 10, 0], [10, 0, 2], [10, 10, 2], [10, 10, 10], [0, 10, 10]]
    assert found == expected
    assert state.step == 5


def test_an_active_task_that_does_not_count_is_no_missing_one() -> None:
    # MGDA gives the second task no weight, which the preference must not replace.
    rows = jnp.array([[1.0, 0.0], [3.0, 0.1], [0.0, 1.0]])
    steps = toys.Steps(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.stack([rows, rows]))
    found = toys.weights_over(curricula.every_k(mgda(), 2), steps)
    np.testing.assert_allclose(found[1], [0.5, 0.0, 0.5], atol=1e-6)


def test_a_memory_inside_learns_at_refreshes_only() -> None:
    inside = curricula.every_k(focal(alpha=0.5), 2)
    found = toys.weights_over(inside, STEPS)
    mean = 0.5 * STEPS.kpis[2] + 0.5 * STEPS.kpis[0]
    np.testing.assert_allclose(found[3], focal_weights(mean), rtol=1e-5)
    outside = optax.chain(focal(alpha=0.5), curricula.every_k(optax.identity(), 2))
    found = toys.weights_over(outside, STEPS)
    mean = 0.5 * STEPS.kpis[1] + 0.5 * STEPS.kpis[0]
    mean = 0.5 * STEPS.kpis[2] + 0.5 * mean
    np.testing.assert_allclose(found[3], focal_weights(mean), rtol=1e-5)


def test_k_may_be_injected_and_scheduled() -> None:
    inject = optax.inject_hyperparams(curricula.every_k, static_args=("balancer",))
    each = toys.weights_over(toys.equal_norms(), STEPS)
    found = toys.weights_over(inject(toys.equal_norms(), k=3), STEPS)
    np.testing.assert_array_equal(found, each[np.array([0, 0, 0, 3, 3, 3, 6, 6])])
    later = optax.piecewise_constant_schedule(1.0, {3: 4.0})  # from step 3 on: 4
    found = toys.weights_over(inject(toys.equal_norms(), k=later), STEPS)
    np.testing.assert_array_equal(found, each[np.array([0, 1, 2, 2, 4, 4, 4, 4])])


def count_products(jaxpr: Any, *, in_branches: bool) -> int:
    """Matrix products of a program, without or with those inside of `cond`."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        if in_branches or equation.primitive.name != "cond":
            for inner in jaxprs_in_params(equation.params):
                count += count_products(inner, in_branches=in_branches)
    return count


def test_between_refreshes_no_gramian_is_computed() -> None:
    names = ("a", "b", "c")
    params = {"trunk": jnp.ones((4, 5)), "heads": {k: jnp.ones(5) for k in names}}
    link = toys.balance(curricula.every_k(mgda(), 10), names)

    def losses_fn(params: Any) -> dict[str, jax.Array]:
        hidden = jnp.tanh(jnp.ones((8, 4)) @ params["trunk"])
        return {k: jnp.mean((hidden @ w) ** 2) for k, w in params["heads"].items()}

    def ours(params: Any, state: Any) -> Any:
        return link.update(task_gradients(losses_fn)(params), state, params)

    def plain(params: Any, weights: Any) -> Any:
        return jax.grad(lambda p: combine_losses(losses_fn(p), weights))(params)

    state = link.init(params)
    program = jax.make_jaxpr(ours)(params, state).jaxpr
    plain_program = jax.make_jaxpr(plain)(params, dict.fromkeys(names, 1.0)).jaxpr
    products = count_products(plain_program, in_branches=True)
    assert count_products(program, in_branches=False) == products
    assert count_products(program, in_branches=True) >= 2 * products


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_wrong_every_k(k: Any) -> None:
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        curricula.every_k(optax.identity(), k)


def test_stages_with_a_ramp() -> None:
    schedule = {0: ["a", "b"], 2: ["a", "b", "c"], 6: ["a", "c"]}
    balancer = curricula.stages(schedule, optax.scale(5.0), ramp_steps=4)
    found = toys.weights_over(balancer, STEPS)
    share = np.array([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(found[:2], [[1, 1, 0, 0]] * 2)
    # The tasks of the first stage move to the balancer, c comes in as well.
    np.testing.assert_allclose(found[2:, 0], 1 + share * 4)
    np.testing.assert_allclose(found[2:6, 1], 1 + share[:4] * 4)
    np.testing.assert_allclose(found[2:, 2], (1 + share * 4) * share)
    np.testing.assert_array_equal(found[6:, 1], 0)


def test_warm_up_with_a_ramp() -> None:
    balancer = curricula.warm_up(optax.scale(5.0), 2, ramp_steps=4)
    found = toys.weights_over(balancer, STEPS)
    np.testing.assert_allclose(found[:, 0], [1, 1, 2, 3, 4, 5, 5, 5])
    with pytest.raises(ValueError, match="ramp_steps must be an integer"):
        curricula.warm_up(optax.identity(), 2, ramp_steps=-1)
