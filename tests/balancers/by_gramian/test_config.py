from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.by_gramian import _config
from tests.solvers import problems

config: Any = _config.config
rule = jax.jit(_config.config_weights)
ONES = jnp.ones(4)


def gram(rows: Any) -> jax.Array:
    rows = np.asarray(rows, np.float64)
    return jnp.asarray(rows @ rows.T, jnp.float32)


def by_definition(rows: Any, preferences: Any) -> np.ndarray:
    """The direction, from the matrix of the gradients itself."""
    rows, p = np.asarray(rows, np.float64), np.asarray(preferences, np.float64)
    rows = rows * (p > 0)[:, None]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    v = np.linalg.pinv(rows / np.where(lengths > 0, lengths, 1), rcond=1e-6) @ p
    norm = np.linalg.norm(v)
    unit = v / (norm if norm > 1e-9 else 1)
    return unit * np.sum(rows @ unit)


@pytest.mark.parametrize("decades", [0, 3, 12])
def test_the_definition(decades: int) -> None:
    for seed in range(4):
        rows = problems.draw(problems.correlated, 4, 20, seed, decades)
        preferences = [ONES, jnp.array([1.0, 0.2, 0.0, 3.0])][seed % 2]
        found = np.asarray(rule(gram(rows), preferences), np.float64) @ rows
        expected = by_definition(rows, preferences)
        tolerance = 1e-5 * float(np.linalg.norm(expected))
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_equal_cosines() -> None:
    rows = problems.draw(problems.correlated, 4, 20, 7, 3)
    d = np.asarray(rule(gram(rows), ONES), np.float64) @ rows
    cosines = rows @ d / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-4)
    assert cosines[0] > 0


def test_dependent_gradients() -> None:
    a, b, c = problems.draw(problems.independent, 3, 9, 1, 0)
    for rows in ([a, b, c, a + b], [a, b, -a, c], [a, a, b, 3 * b], [a, b, c, 0 * a]):
        found = np.asarray(rule(gram(rows), ONES), np.float64) @ np.asarray(rows)
        np.testing.assert_allclose(found, by_definition(rows, ONES), atol=1e-3)


def test_a_negative_sum_of_projections_turns_the_step_round() -> None:
    # Two short gradients outvote the long one they oppose.
    rows = np.array([[9.0, 0.0], [-1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    expected = by_definition(rows, ONES)
    assert expected[0] > 1
    found = np.asarray(rule(gram(rows), ONES), np.float64) @ rows
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_no_step_where_there_is_no_direction() -> None:
    a = problems.draw(problems.independent, 1, 9, 2, 0)[0]
    for rows in ([a, -4 * a, 0 * a, 0 * a], [0 * a] * 4):
        np.testing.assert_array_equal(rule(gram(rows), ONES), 0)
    np.testing.assert_array_equal(rule(jnp.eye(4), jnp.zeros(4)), 0)


def test_only_ratios_of_preferences_matter() -> None:
    rows = problems.draw(problems.independent, 4, 9, 3, 1)
    preferences = jnp.array([1.0, 2.0, 0.5, 1.0])
    expected = rule(gram(rows), preferences)
    for size in (1e-36, 1e30):
        found = rule(gram(rows), size * preferences)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_float64_and_missing_gradients() -> None:
    with jax.enable_x64(True):
        weights = _config.config_weights(jnp.diag(jnp.array([4.0, 1.0, 1.0])))
        expected = 4 / 3 / np.array([2, 1, 1])
        np.testing.assert_allclose(weights, expected, rtol=1e-14)
    with pytest.raises(ValueError, match="config needs `task_gradients`"):
        config().update(ONES, (), ONES)
