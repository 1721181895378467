from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax._core import linalg
from dtp_jax.balancers import mgda_weights
from dtp_jax.solvers import min_norm_point
from tests import toys
from tests.toys import assert_near, balance, balancers

rules = jax.jit(mgda_weights, static_argnames="normalization")
NORMALIZATIONS = [None, "l2", "loss", "loss+"]


def problem(seed: int = 0, num_tasks: int = 4) -> tuple[jax.Array, jax.Array]:
    """Gradients [T, P] of lengths over a decade, and losses [T]."""
    rng = np.random.default_rng(seed)
    lengths = 10 ** rng.uniform(-0.5, 0.5, (num_tasks, 1))
    rows = rng.normal(size=(num_tasks, 9)) * lengths
    losses = rng.uniform(0.2, 3.0, num_tasks)
    return jnp.asarray(rows, jnp.float32), jnp.asarray(losses, jnp.float32)


def divided_by(rows: jax.Array, losses: jax.Array, normalization: Any) -> jax.Array:
    """The normalized gradients, written out."""
    norms = jnp.linalg.norm(rows, axis=1)
    divisors = {"l2": norms, "loss": losses, "loss+": losses * norms}
    divisor = divisors.get(normalization, jnp.ones_like(losses))
    return rows / divisor[:, None]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("num_tasks", [2, 4])
def test_preferences_and_normalization_by_definition(
    num_tasks: int, normalization: Any
) -> None:
    rows, losses = problem(1, num_tasks)
    preferences = jnp.array([0.5, 2.0, 1.0, 0.2])[:num_tasks]
    normalized = divided_by(rows, losses, normalization) / preferences[:, None]
    expected = min_norm_point(linalg.gram(normalized)).weights / preferences
    found = rules(
        linalg.gram(rows), preferences, losses=losses, normalization=normalization
    )
    assert_near(found, expected, rtol=1e-4)
    np.testing.assert_allclose(jnp.sum(found * preferences), 1, rtol=1e-5)


def test_no_loss_rises_to_first_order() -> None:
    for seed in range(5):
        rows, _ = problem(seed)
        direction = rules(linalg.gram(rows)) @ rows
        squared = jnp.sum(direction**2)
        assert (rows @ direction >= squared * (1 - 1e-4)).all()


def test_a_zero_gradient_stops_the_descent() -> None:
    rows, losses = problem()
    rows = rows.at[2].set(0)
    for normalization in NORMALIZATIONS:
        weights = rules(linalg.gram(rows), losses=losses, normalization=normalization)
        np.testing.assert_array_equal(weights @ rows, 0)


def test_lengths_do_not_matter_after_l2() -> None:
    rows, _ = problem()
    scaled = rows * jnp.array([1e-6, 1.0, 3.0, 1e6])[:, None]
    expected = rules(linalg.gram(rows), normalization="l2")
    found = rules(linalg.gram(scaled), normalization="l2")
    assert_near(found, expected, rtol=1e-4)


def test_units_of_the_losses_do_not_matter_after_loss() -> None:
    rows, losses = problem()
    units = jnp.array([1e-3, 1.0, 20.0, 1e3])
    expected = rules(linalg.gram(rows), losses=losses, normalization="loss")
    scaled = rows * units[:, None]
    found = rules(linalg.gram(scaled), losses=losses * units, normalization="loss")
    assert_near(found, expected, rtol=1e-4)


@pytest.mark.parametrize("small", [0.0, -1.0, 1e-30])
def test_losses_below_the_guard_count_as_it(small: float) -> None:
    gramian = linalg.gram(problem()[0])
    losses = jnp.array([1.0, small, 2.0, 0.5])
    guarded = losses.at[1].set(1e-12 * 2.0)
    found = rules(gramian, losses=losses, normalization="loss")
    expected = rules(gramian, losses=guarded, normalization="loss")
    assert_near(found, expected, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-38, 1e38])
def test_equal_losses_change_nothing(value: float) -> None:
    gramian = linalg.gram(problem()[0])
    losses = jnp.full(4, value)
    found = rules(gramian, losses=losses, normalization="loss")
    assert_near(found, rules(gramian), rtol=1e-4)


def test_inactive_tasks_have_no_influence_on_the_guard() -> None:
    gramian, losses = linalg.gram(problem()[0]), problem()[1]
    preferences = jnp.array([1.0, 1.0, 0.0, 1.0])
    expected = rules(gramian, preferences, losses=losses, normalization="loss+")
    for other in (1e30, -1.0, jnp.nan):
        changed = losses.at[2].set(other)
        found = rules(gramian, preferences, losses=changed, normalization="loss+")
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_active_task_reads_as_inactive() -> None:
    # The second gradient is the first, but longer: the rule gives it nothing.
    gradients = TaskGradients.from_stacked(jnp.array([[1.0, 0.0], [5.0, 0.0]]))
    ones = jnp.ones(2)
    weights, _ = balancers.mgda().update(ones, (), ones, task_gradients=gradients)
    assert 0 < float(weights[1]) < 1e-29


def test_the_sum_can_be_fixed_after_focal() -> None:
    steps = toys.random_steps(4)
    solved = steps._replace(kpis=jnp.ones_like(steps.kpis))
    chain = optax.chain(
        balancers.focal(), balancers.mgda(), balancers.normalize_weights("sum_to_1")
    )
    weights = toys.weights_over(chain, solved)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    expected = toys.weights_over(balancers.mgda(), steps)
    assert_near(weights, expected, rtol=1e-4)


@pytest.mark.parametrize("heads", ["preferences", "weights"])
def test_heads_as_in_the_paper_or_in_its_code(heads: str) -> None:
    def losses_fn(params: Any) -> Any:
        trunk, head = params["trunk"], params["heads"]
        return {
            "a": trunk[0] * 2.0 + 3.0 * head["a"],
            "b": trunk[1] + 5.0 * head["b"],
        }

    params = {"trunk": jnp.ones(2), "heads": {"a": 1.0, "b": 1.0}}
    params = jax.tree.map(jnp.asarray, params)
    gradients = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
    link = balance(balancers.mgda(), ["a", "b"], heads=heads)
    updates, state = link.update(gradients(params), link.init(params), params)
    # The rows over the trunk are (2, 0) and (0, 1).
    np.testing.assert_allclose(state.task_weights["a"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(updates["trunk"], [0.4, 0.8], rtol=1e-6)
    expected = {"preferences": (3.0, 5.0), "weights": (0.6, 4.0)}[heads]
    found = updates["heads"]["a"], updates["heads"]["b"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_losses_reach_the_rule() -> None:
    steps = toys.random_steps(3, num_steps=2)
    found = toys.weights_over(balancers.mgda(normalization="loss+"), steps)
    for weights, losses, rows in zip(found, steps.losses, steps.jacobians, strict=True):
        gramian = linalg.gram(rows)
        expected = rules(gramian, losses=losses, normalization="loss+")
        assert_near(weights, expected, rtol=1e-4)


@pytest.mark.parametrize("normalization", ["loss", "loss+"])
def test_a_loss_that_is_not_finite_leaves_the_others_alone(normalization: Any) -> None:
    rows, losses = problem()
    rest = np.array([0, 1, 3])
    gramian = linalg.gram(rows)
    expected = rules(
        gramian[rest][:, rest], losses=losses[rest], normalization=normalization
    )
    balancer, ones = balancers.mgda(normalization=normalization), jnp.ones(4)
    gradients = TaskGradients.from_stacked(rows)
    for broken in (jnp.nan, jnp.inf, -jnp.inf):
        wrong = losses.at[2].set(broken)
        pure = rules(gramian, losses=wrong, normalization=normalization)
        stepped, _ = balancer.update(
            ones, balancer.init(ones), wrong, task_gradients=gradients
        )
        for found in (pure, stepped):
            np.testing.assert_allclose(found[rest], expected, rtol=1e-6)
            assert found[2] == 0
    # Of two tasks the healthy one has all the weight.
    alone, _ = balancer.update(
        jnp.ones(2),
        balancer.init(jnp.ones(2)),
        jnp.array([jnp.nan, 1.0]),
        task_gradients=TaskGradients.from_stacked(jnp.eye(2)),
    )
    np.testing.assert_array_equal(alone, [0, 1])


def test_float64() -> None:
    with jax.enable_x64(True):
        weights = mgda_weights(jnp.diag(jnp.array([4.0, 1.0, 1.0])))
        assert weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, np.array([1, 4, 4]) / 9, rtol=1e-12)


def test_missing_or_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="normalization must be one of None, 'l2'"):
        balancers.mgda(normalization="l1")
    with pytest.raises(ValueError, match="mgda_weights needs `losses`"):
        mgda_weights(jnp.eye(2), normalization="loss")
    ones = jnp.ones(2)
    with pytest.raises(ValueError, match="mgda needs `task_gradients`"):
        balancers.mgda().update(ones, (), ones)
    gradients = TaskGradients.from_stacked(jnp.eye(2))
    balancer = balancers.mgda(normalization="loss")
    with pytest.raises(ValueError, match=r"'loss'\) needs `losses`.*pass a TaskGrad"):
        balancer.update(ones, (), task_gradients=gradients)
