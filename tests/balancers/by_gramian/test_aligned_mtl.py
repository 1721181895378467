from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.by_gramian import _aligned_mtl
from tests.solvers import problems
from tests.toys import assert_near

aligned_mtl: Any = _aligned_mtl.aligned_mtl
rule = jax.jit(_aligned_mtl.aligned_mtl_weights, static_argnames="scale")
SCALES = ["min", "median", "rmse"]
ONES = jnp.ones(4)


def gram(rows: Any) -> jax.Array:
    rows = np.asarray(rows, np.float64)
    return jnp.asarray(rows @ rows.T, jnp.float32)


def aligned(rows: np.ndarray, scale: str) -> np.ndarray:
    """The orthogonal system, from singular values."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    kept = values > 1e-3 * values[0]
    left, values, right = left[:, kept], values[kept], right[kept]
    ordered = np.sort(values)
    size = {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "rmse": np.sqrt(np.mean(values**2)),
    }
    return size[scale] * left @ right


@pytest.mark.parametrize("scale", SCALES)
def test_the_definition(scale: Any) -> None:
    for seed in range(3):
        rows = problems.draw(problems.correlated, 4, 20, seed, 1)
        preferences = jnp.array([1.0, 0.3, 2.0, 1.0])
        found = rule(gram(rows), preferences, scale=scale) @ rows
        expected = np.asarray(preferences) @ aligned(rows, scale)
        tolerance = 1e-4 * float(np.linalg.norm(expected))
        np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("scale", SCALES)
def test_dependent_gradients(scale: Any) -> None:
    a, b, c = problems.draw(problems.independent, 3, 9, 1, 0)
    for rows in ([a, b, c, a + b], [a, b, -a, c], [a, a, b, 3 * b], [a, 0 * a, b, c]):
        rows = np.asarray(rows)
        found = rule(gram(rows), ONES, scale=scale) @ rows
        expected = aligned(rows, scale).sum(axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-2)


def test_the_aligned_gradients_are_orthogonal() -> None:
    rows = problems.draw(problems.independent, 4, 20, 2, 1)
    # Each task alone, with the others still there.
    system = np.stack([rule(gram(rows), row) for row in jnp.eye(4) + 1e-30]) @ rows
    smallest = np.linalg.svd(rows, compute_uv=False)[-1]
    np.testing.assert_allclose(
        system @ system.T, smallest**2 * np.eye(4), atol=1e-5 * smallest**2
    )


def test_orthogonal_gradients_get_the_smallest_length() -> None:
    lengths = jnp.array([1.0, 2.0, 4.0, 8.0])
    for scale, size in (("min", 1.0), ("median", 2.0), ("rmse", 85**0.5 / 2)):
        weights = rule(jnp.diag(lengths**2), ONES, scale=scale)
        np.testing.assert_allclose(weights * lengths, size, rtol=1e-5)


def test_what_is_shorter_than_rounding_is_left_out() -> None:
    weights = rule(jnp.diag(jnp.array([1.0, 1.0, 1e-8, 0.0])), ONES)
    np.testing.assert_allclose(weights, [1, 1, 0, 0], atol=1e-6)
    # With one task fewer the cutoff does not know of it.
    kept = rule(jnp.diag(jnp.array([0.0, 1.0, 1e-4, 0.0])), ONES.at[0].set(0))
    assert_near(kept, [0, 1e-2, 1, 0], rtol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_all_zero_and_all_absent(scale: Any) -> None:
    preferences = jnp.array([1.0, 2.0, 0.0, 1.0])
    found = rule(jnp.zeros((4, 4)), preferences, scale=scale)
    np.testing.assert_array_equal(found, preferences)
    np.testing.assert_array_equal(rule(jnp.eye(4), jnp.zeros(4), scale=scale), 0)


def test_scales_and_sizes() -> None:
    rows = problems.draw(problems.independent, 4, 9, 3, 1)
    expected = rule(gram(rows), ONES)
    for size in (1e-15, 1e15):
        np.testing.assert_allclose(rule(gram(size * rows), ONES), expected, 1e-4)
    found = rule(gram(rows), jnp.full(4, 1e-30)) * 1e30
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_float64_and_wrong_arguments() -> None:
    with jax.enable_x64(True):
        weights = _aligned_mtl.aligned_mtl_weights(jnp.diag(jnp.array([4.0, 1.0])))
        np.testing.assert_allclose(weights, [0.5, 1], rtol=1e-14)
    with pytest.raises(ValueError, match="scale must be one of 'min', 'median', 'rm"):
        aligned_mtl(scale="max")
    with pytest.raises(ValueError, match="aligned_mtl needs `task_gradients`"):
        aligned_mtl().update(ONES, (), ONES)
