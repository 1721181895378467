from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from dtp_jax import TaskGradients
from dtp_jax.combiners import _trimmed_mean
from tests.combiner_catalogue import combiners
from tests.toys import assert_near

trim: Any = jax.jit(_trimmed_mean.trim_and_average, static_argnums=2)
ROWS = jax.random.normal(jax.random.key(0), (7, 50))
ONES = jnp.ones(7)


def definition(rows: np.ndarray, preferences: np.ndarray, num_trimmed: int) -> float:
    """One entry: equal values share what is left out of them."""
    values, weights = rows[preferences > 0], preferences[preferences > 0]
    num_trimmed = min(num_trimmed, (len(values) - 1) // 2)
    ordered = np.sort(values)
    kept = ordered[num_trimmed : len(values) - num_trimmed]
    share = [np.sum(kept == value) / np.sum(values == value) for value in values]
    return float(np.sum(weights * share * values) / np.sum(weights * share))


@pytest.mark.parametrize("num_trimmed", [0, 1, 3])
def test_the_definition(num_trimmed: int) -> None:
    expected = scipy.stats.trim_mean(ROWS, num_trimmed / 7, axis=0)
    np.testing.assert_allclose(trim(ROWS, ONES, num_trimmed), expected, rtol=2e-5)


def test_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    for num_trimmed in (1, 2, 3):
        for _ in range(10):
            rows = rng.integers(-2, 3, (7, 50)).astype(float)
            preferences = rng.choice([0.0, 1e-3, 0.5, 1.0, 40.0], 7)
            preferences[rng.integers(7)] = 1.0
            columns = rows.T
            expected = [definition(x, preferences, num_trimmed) for x in columns]
            given = jnp.asarray(rows, jnp.float32), jnp.asarray(preferences)
            found = trim(*given, num_trimmed)
            assert_near(found, expected, rtol=1e-5)
            order = rng.permutation(7)
            again = trim(given[0][order], given[1][order], num_trimmed)
            assert_near(again, found, rtol=1e-5)


def test_only_ratios_of_preferences_count() -> None:
    p = jnp.array([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0])
    for scale in (1e-30, 1e30):
        found = trim(ROWS, scale * p, 2)
        assert_near(found, trim(ROWS, p, 2), rtol=1e-4)


def test_few_active_tasks_are_trimmed_to_the_median() -> None:
    for count in range(8):
        preferences = jnp.where(jnp.arange(7) < count, 1.0, 0.0)
        found = trim(ROWS, preferences, 3)
        expected = np.median(ROWS[:count], axis=0) if count else np.zeros(50)
        assert_near(found, expected, rtol=1e-5)


def test_extremes_are_without_influence_whatever_their_size() -> None:
    signs = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (2, 50)), 1.0, -1.0)
    near, far = (trim(ROWS.at[:2].set(size * signs), ONES, 2) for size in (1e2, 3e38))
    np.testing.assert_array_equal(near, far)
    others = ROWS[2:]
    assert np.all((far >= others.min(axis=0)) & (far <= others.max(axis=0)))


def test_parameters_of_a_head_get_the_sum() -> None:
    head = jnp.zeros((7, 2)).at[3].set(5.0)
    rows = {"w": ROWS, "head": head}
    gradients = TaskGradients.from_stacked(rows, shared={"w": True, "head": False})
    link = combiners.trimmed_mean(7, num_trimmed=1)
    found, _ = jax.jit(link.update)(gradients, link.init(None))
    assert found["head"].tolist() == [5.0, 5.0]
    np.testing.assert_allclose(found["w"], trim(ROWS, ONES, 1), rtol=1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_trimmed must be an integer"):
        combiners.trimmed_mean(3, num_trimmed=0.5)
    with pytest.raises(ValueError, match=r"num_trimmed \+ 1 = 5 tasks, got 4: lower"):
        combiners.trimmed_mean(4, num_trimmed=2)
    inject: Any = optax.inject_hyperparams(combiners.trimmed_mean)
    with pytest.raises(ValueError, match="static_args"):
        inject(["a", "b", "c"], num_trimmed=1).init(None)
