import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from dtp_jax.solvers._interior_point import interior_point
from dtp_jax.solvers._softened import softened_quadratic
from tests.solvers.problems import KINDS, draw

EPS = np.finfo(np.float32).eps
soft = jax.jit(jax.vmap(softened_quadratic))
inside = jax.jit(jax.vmap(lambda a, b: interior_point(a, -b)))


def problems(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows ``[N, 6, size]`` of every kind, and slopes in their range."""
    rows = np.stack([draw(kind, 6, size, seed) for kind in KINDS for seed in range(5)])
    rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    targets = np.random.default_rng(size).normal(size=(len(rows), size))
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    return rows, np.einsum("ntp,np->nt", rows, targets)


@pytest.mark.parametrize("size", [12, 3])
def test_the_minimum_is_exact_where_there_is_one(size: int) -> None:
    rows, linears = problems(size)
    matrices = jnp.asarray(rows @ rows.swapaxes(1, 2), jnp.float32)
    found = soft(matrices, jnp.asarray(linears, jnp.float32))
    for units, linear, x in zip(rows, linears, np.asarray(found, float), strict=True):
        # Rounding of the matrix hides what belongs to eigenvalues of some 1e-6.
        if np.linalg.svd(units, compute_uv=False)[-1] < 0.03:
            continue
        # With a softness of 1e-5 the slopes of what is not zero would be that large.
        slopes = units @ (x @ units) + linear
        missed = np.abs(np.minimum(x, slopes)).max()
        assert missed < 8 * EPS * (1 + x.sum())


def test_by_another_method() -> None:
    rows, linears = problems(12)
    matrices = jnp.asarray(rows @ rows.swapaxes(1, 2), jnp.float32)
    found = soft(matrices, jnp.asarray(linears, jnp.float32))
    for units, linear, x in zip(rows, linears, np.asarray(found, float), strict=True):
        target = np.linalg.lstsq(units, linear, rcond=None)[0]
        expected, _ = optimize.nnls(units.T, -target)
        values = np.linalg.svd(units, compute_uv=False)
        tolerance = 8 * EPS * (values[0] / values[-1]) ** 2 * (1 + expected.max())
        np.testing.assert_allclose(x, expected, atol=tolerance)


def test_without_a_minimum_the_answer_is_bounded() -> None:
    # `A x + b >= 0` has no solution: the two inequalities add up to a positive number
    # that is at most zero. The squared length of the sum of the two is known to about
    # eps (x_1 + x_2)^2.
    opposite = jnp.broadcast_to(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), (2, 2, 2))
    x = soft(opposite, jnp.array([[-1e-3, -1e-3], [-0.5, -0.5]]))
    # Slopes are solved for to some 4 eps of the size of x, a tenth of 1e-3.
    np.testing.assert_allclose(x[0], 1e-3 / 1e-5, rtol=0.1)
    np.testing.assert_allclose(x[1], 0.5 / (4 * EPS**0.5), rtol=1e-2)
    assert (EPS * np.sum(x, axis=1) ** 2 < 2).all()


def test_few_steps_from_inside() -> None:
    for size in (60, 6, 3):
        rows, linears = problems(size)
        matrices = jnp.asarray(rows @ rows.swapaxes(1, 2), jnp.float32)
        _, num_iters = inside(matrices, jnp.asarray(linears, jnp.float32))
        assert np.mean(num_iters) < 12
        assert np.max(num_iters) < 40
