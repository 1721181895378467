from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
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


def directions(balancer: Any) -> Any:
    """The steps for stacked rows [N, T, P], and for rows that the Gramian keeps."""

    def stacked(rows: jax.Array) -> jax.Array:
        gradients = TaskGradients.from_stacked(rows)
        ones = jnp.ones(rows.shape[0])
        return balancer.update(ones, (), ones, task_gradients=gradients)[0]

    def kept(rows: jax.Array) -> jax.Array:
        # Linear losses, whose gradients are the rows.
        gradients = task_gradients(lambda params: rows @ params)(rows[0])
        ones = jnp.ones(rows.shape[0])
        return balancer.update(ones, (), ones, task_gradients=gradients)[0]

    return jax.jit(jax.vmap(lambda rows: jnp.stack([stacked(rows), kept(rows)])))


def test_rows_at_hand_save_the_digits_that_the_gramian_loses() -> None:
    # Normal 4 x 3 matrices, whose Gramian has rank 3: the unit gradients have condition
    # numbers up to 500, their correlations the square of it.
    rows = np.random.default_rng(0).normal(size=(4000, 4, 3)).astype(np.float32)[3400:]
    exact, eps = rows.astype(np.float64), np.finfo(np.float32).eps
    expected = np.stack([by_definition(matrix, ONES) for matrix in exact])
    sizes = np.linalg.norm(expected, axis=1)
    units = exact / np.linalg.norm(exact, axis=2, keepdims=True)
    values = np.linalg.svd(units, compute_uv=False)
    condition = values[:, 0] / values[:, -1]
    # The length of the step is a sum of projections, in which all may cancel but the
    # rounding of each.
    cancelled = np.linalg.norm(exact, axis=2).sum(axis=1) / sizes
    bound = 8 * eps * (condition + cancelled)
    weights = np.asarray(directions(config())(jnp.asarray(rows)), np.float64)
    for each in np.swapaxes(weights, 0, 1):
        found = np.einsum("nt,ntp->np", each, exact)
        error = np.linalg.norm(found - expected, axis=1) / sizes
        assert (error < bound).all()
    # The Gramian alone does not tell so much: relative errors reach a thousandth.
    weights = jax.jit(jax.vmap(_config.config_weights))(
        jnp.asarray(exact @ exact.swapaxes(1, 2), jnp.float32)
    )
    found = np.einsum("nt,ntp->np", np.asarray(weights, np.float64), exact)
    assert (np.linalg.norm(found - expected, axis=1) / sizes > bound).any()


def test_rows_of_tasks_that_are_not_active_may_hold_anything() -> None:
    rows = problems.draw(problems.near_parallel, 4, 20, 0, 1).astype(np.float32)
    preferences = jnp.array([1.0, 0.0, 2.0, 1.0])

    def step(rows: jax.Array) -> jax.Array:
        gradients = TaskGradients.from_stacked(rows)
        weights, _ = config().update(preferences, (), task_gradients=gradients)
        return weights

    expected = jax.jit(step)(jnp.asarray(rows))
    for broken in (np.nan, np.inf):
        rows[1] = broken
        found = jax.jit(step)(jnp.asarray(rows))
        np.testing.assert_array_equal(found, expected)


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
