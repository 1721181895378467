from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients
from dtp_jax.balancers.by_gramian import _krum

krum: Any = _krum.krum
# Traced numbers, so that one compilation does for all.
rule = jax.jit(_krum.krum_weights)
NUM_TASKS = 7


def gram(rows: Any) -> jax.Array:
    rows = np.asarray(rows, np.float64)
    return jnp.asarray(rows @ rows.T, jnp.float32)


def select(
    rows: Any, byzantine: int, selected: int, preferences: Any = None, squared: int = 1
) -> np.ndarray:
    p = jnp.ones(len(rows)) if preferences is None else jnp.asarray(preferences)
    numbers = (byzantine, selected, squared)
    byzantine_, selected_, squared_ = (jnp.asarray(n, jnp.int32) for n in numbers)
    weights = rule(
        gram(rows),
        p,
        num_byzantine=byzantine_,
        num_selected=selected_,
        squared=squared_,
    )
    return np.asarray(weights)


def by_definition(
    rows: np.ndarray, byzantine: int, selected: int, squared: int = 1
) -> np.ndarray:
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2) ** (1 + squared)
    scores = np.sort(distances, axis=1)[:, 1 : len(rows) - byzantine - 1].sum(axis=1)
    weights = np.zeros(len(rows))
    weights[np.argsort(scores, kind="stable")[:selected]] = 1 / selected
    return weights


def test_the_definition() -> None:
    rng = np.random.default_rng(0)
    for draw in range(30):
        rows = rng.normal(size=(NUM_TASKS, 5)) * 10 ** rng.uniform(-3, 3)
        # With one neighbour the two nearest tie.
        byzantine, selected = draw % 4, 1 + draw % 3
        for squared in (0, 1):
            expected = by_definition(rows, byzantine, selected, squared)
            found = select(rows, byzantine, selected, squared=squared)
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_wrong_gradients_are_not_selected() -> None:
    rng = np.random.default_rng(1)
    for seed in range(10):
        rows = 1 + 0.1 * rng.normal(size=(NUM_TASKS, 20))
        wrong = rng.permutation(NUM_TASKS)[:2]
        rows[wrong] = 10 ** rng.uniform(0, 3) * rng.normal(size=(2, 20)) * seed
        for selected in (1, 3):
            assert (select(rows, 2, selected)[wrong] == 0).all()


def test_squares_decide() -> None:
    # From 0: distances 2, 2, to the others 1, 3.1 and more.
    rows = np.array([[0.0], [2.0], [-2.0], [3.0], [-5.1], [40.0], [-40.0]])
    by_squares = select(rows, 3, 1)
    by_distances = select(rows, 3, 1, squared=0)
    np.testing.assert_array_equal(by_squares, by_definition(rows, 3, 1))
    np.testing.assert_array_equal(by_distances, by_definition(rows, 3, 1, 0))


def test_preferences_weight_but_do_not_select() -> None:
    rows = np.random.default_rng(2).normal(size=(NUM_TASKS, 5))
    preferences = np.linspace(0.5, 3, NUM_TASKS)
    expected = select(rows, 1, 3) * preferences
    np.testing.assert_allclose(select(rows, 1, 3, preferences), expected, rtol=1e-6)


def test_absent_tasks_are_neither_selected_nor_neighbours() -> None:
    rows = np.random.default_rng(3).normal(size=(NUM_TASKS, 5))
    for absent in ([0], [2, 5], [1, 4, 6]):
        preferences = np.ones(NUM_TASKS)
        preferences[absent] = 0
        present = np.flatnonzero(preferences)
        found = select(rows, 1, 2, preferences)
        np.testing.assert_array_equal(found[absent], 0)
        expected = by_definition(rows[present], 1, 2)
        np.testing.assert_array_equal(found[present], expected)


@pytest.mark.parametrize("num_present", [0, 1, 2, 3])
def test_too_few_active_tasks_have_an_answer(num_present: int) -> None:
    rows = np.random.default_rng(4).normal(size=(NUM_TASKS, 5))
    preferences = np.arange(NUM_TASKS) < num_present
    found = select(rows, 4, 2, preferences.astype(np.float32))
    count = min(num_present, 2)
    assert np.count_nonzero(found) == count
    assert (found[num_present:] == 0).all()
    np.testing.assert_allclose(found.sum(), min(num_present, 1), rtol=1e-6)
    if num_present == 3:
        # Each has its nearest neighbour: the two that are closest win.
        distances = np.linalg.norm(rows[:3, None] - rows[None, :3], axis=2)
        far = np.argmax(np.sort(distances, axis=1)[:, 1])
        assert found[far] == 0


def test_ties_go_to_the_first() -> None:
    rows = np.ones((NUM_TASKS, 3))
    np.testing.assert_allclose(select(rows, 1, 2)[:2], 0.5)
    np.testing.assert_allclose(select(0 * rows, 1, 1)[0], 1)


def test_numbers_may_be_injected() -> None:
    injected: Any = optax.inject_hyperparams(_krum.krum)
    balancer = injected(num_byzantine=1, num_selected=2)
    rows = jnp.array([[1.0], [1.1], [1.3], [9.0]])
    gradients = TaskGradients.from_stacked(rows)
    ones = jnp.ones(4)
    state = balancer.init(ones)
    weights, _ = balancer.update(ones, state, ones, task_gradients=gradients)
    np.testing.assert_allclose(weights, [0.5, 0.5, 0, 0], atol=1e-20)


def test_float64() -> None:
    with jax.enable_x64(True):
        rows = 1e3 + np.array([[0.0], [1e-4], [3e-4], [9e-4]])
        gramian = jnp.asarray(rows @ rows.T)
        found = _krum.krum_weights(gramian, num_byzantine=0)
        assert found.dtype == jnp.float64
        np.testing.assert_array_equal(found, [0, 1, 0, 0])


def test_wrong_numbers() -> None:
    message = "num_byzantine=2 needs at least 5 tasks, got 4: lower num_byzantine"
    for number in (int, np.int64):
        with pytest.raises(ValueError, match=message):
            _krum.krum_weights(jnp.eye(4), num_byzantine=number(2))
        with pytest.raises(ValueError, match="cannot select num_selected=5 of 4 tasks"):
            _krum.krum_weights(
                jnp.eye(4), num_byzantine=number(0), num_selected=number(5)
            )
    with pytest.raises(ValueError, match="num_byzantine must be an integer of at"):
        krum(num_byzantine=-1)
    with pytest.raises(ValueError, match="num_selected must be an integer of at"):
        krum(num_byzantine=1, num_selected=0)
    with pytest.raises(ValueError, match="krum needs `task_gradients`"):
        krum(num_byzantine=1).update(jnp.ones(4), (), jnp.ones(4))
