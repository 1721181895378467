from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.solvers import _kernel
from dtp_jax.solvers._equal_projections import attained_projections, equal_projections
from tests import devices
from tests.solvers import problems

solve = jax.jit(equal_projections)


@pytest.fixture(params=["library", "kernel"], autouse=True)
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """By eigenvalues, and by what runs as one kernel of a CUDA device."""
    if request.param == "kernel" and _kernel._pallas() is None:
        pytest.skip("this version of JAX makes no kernels")
    with devices.kernels(request.param == "kernel", interpreted=True):
        yield


def gram(rows: Any) -> jax.Array:
    rows = np.asarray(rows, np.float64)
    return jnp.asarray(rows @ rows.T, jnp.float32)


def units_of(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


@pytest.mark.parametrize("decades", [0, 12])
def test_projections_are_the_preferences(decades: int) -> None:
    rows = problems.draw(problems.independent, 6, 30, 0, decades)
    preferences = jnp.array([1.0, 2.0, 0.5, 1.0, 3.0, 0.1])
    for scale in (1e-30, 1.0, 1e30):
        found = solve(gram(rows), scale * preferences)
        v = np.asarray(found.coefficients / scale, np.float64) @ units_of(rows)
        np.testing.assert_allclose(units_of(rows) @ v, preferences, rtol=1e-5)
        assert found.residual < 1e-6


@pytest.mark.parametrize("kind", ["parameters", "equal", "sum", "opposite"])
def test_least_squares_of_dependent_rows(kind: str) -> None:
    rows = problems.draw(problems.independent, 6, 30, 1, 2)
    if kind == "parameters":
        rows = rows[:, :4]
    elif kind == "sum":
        rows[5] = rows[0] + rows[1]
    else:
        rows[5] = (3 if kind == "equal" else -3) * rows[0]
    units = units_of(rows)
    expected = np.linalg.pinv(units, rcond=1e-6) @ np.ones(6)
    found = solve(gram(rows), jnp.ones(6))
    v = np.asarray(found.coefficients, np.float64) @ units
    np.testing.assert_allclose(v, expected, atol=2e-4)
    missed = np.max(np.abs(units @ expected - 1))
    size = max(np.max(np.abs(np.asarray(found.coefficients))), 1)
    np.testing.assert_allclose(found.residual, missed / size, atol=1e-4)


def test_nearly_parallel_rows_are_told_apart() -> None:
    # The smallest eigenvalue of the correlations is some 1e-4.
    rows = problems.draw(problems.near_parallel, 6, 30, 2, 0)
    found = solve(gram(np.abs(rows)), jnp.ones(6))
    v = np.asarray(found.coefficients, np.float64) @ units_of(np.abs(rows))
    np.testing.assert_allclose(units_of(np.abs(rows)) @ v, 1, atol=1e-3)


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("num_tasks", [5, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["spread", "and equal", "no gap"])
def test_errors_grow_with_the_condition_number(
    kind: str, num_tasks: int, with_rows: bool
) -> None:
    angle = 0.01 if kind == "no gap" else 0.03
    generator = np.random.default_rng(0)
    rows = 1 + angle * generator.normal(size=(num_tasks, 60))
    if kind == "and equal":
        rows = np.vstack([rows, 3 * rows[:1]])
    units = units_of(rows)
    # Without a gap some eigenvalues are just above what counts as zero, some below.
    size = np.linalg.norm(units, 2)
    expected = np.linalg.pinv(units, rcond=1e-3) @ np.ones(len(rows))
    given = [jnp.asarray(rows, jnp.float32)] if with_rows else None
    solve_for = jax.jit(lambda gramian, p: attained_projections(gramian, p, given)[0])
    x = np.asarray(solve_for(gram(rows), jnp.ones(len(rows))), np.float64)
    condition, eps = size / angle, np.finfo(np.float32).eps
    bound = 8 * eps * condition if with_rows else eps * condition**2
    bound = 5e-3 if kind == "no gap" else bound
    difference = np.linalg.norm(x @ units - expected)
    assert difference < bound * np.linalg.norm(expected)


def test_zero_rows_and_absent_tasks_leave_the_problem() -> None:
    rows = problems.draw(problems.independent, 6, 30, 3, 1)
    rows[2] = 0
    gramian = gram(rows).at[4].set(jnp.nan).at[:, 4].set(jnp.nan)
    found = solve(gramian, jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0]))
    present = np.array([0, 1, 3, 5])
    correlations = units_of(rows[present]) @ units_of(rows[present]).T
    expected = np.zeros(6)
    expected[present] = np.linalg.solve(correlations, np.ones(4))
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-4)
    zeros = solve(jnp.zeros((6, 6)), jnp.ones(6))
    np.testing.assert_array_equal(zeros.coefficients, 0)


def test_both_ways_agree_under_vmap() -> None:
    rows = problems.draw(problems.independent, 6, 30, 4, 1)
    singular = rows.copy()
    singular[1] = rows[0]
    gramians = jnp.stack([gram(rows), gram(singular)])
    found = jax.jit(jax.vmap(equal_projections))(gramians, jnp.ones((2, 6)))
    for index in range(2):
        alone = solve(gramians[index], jnp.ones(6)).coefficients
        np.testing.assert_allclose(found.coefficients[index], alone, rtol=1e-4)


def test_dtypes_derivatives_and_shapes() -> None:
    with jax.enable_x64(True):
        rows = problems.draw(problems.independent, 4, 30, 5, 1)
        for r in (rows, np.vstack([rows, rows[:1]])):
            found = equal_projections(jnp.asarray(r @ r.T))
            assert found.residual.dtype == jnp.float64
            assert found.residual < 1e-14
    slope = jax.grad(lambda g: jnp.sum(equal_projections(g).coefficients))(jnp.eye(2))
    np.testing.assert_array_equal(slope, 0)
    broken = equal_projections(jnp.where(jnp.eye(2, dtype=bool), 1, jnp.nan))
    assert jnp.isnan(broken.coefficients).all()
    with pytest.raises(ValueError, match=r"gramian must be \[T, T\]"):
        equal_projections(jnp.ones((2, 3)))
