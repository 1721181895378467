import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.solvers._pseudo_inverse import pseudo_inverse
from tests.solvers.problems import draw, independent


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_products_are_those_of_the_pseudo_inverse(rank: int) -> None:
    rows = draw(independent, 6, rank, 0, 0)
    matrix = rows @ rows.T
    found = jax.jit(pseudo_inverse)(jnp.asarray(matrix, jnp.float32), 1e-4)
    assert found.rank() == rank
    vector = np.arange(6.0)
    expected = np.linalg.pinv(matrix, rcond=1e-6) @ vector
    np.testing.assert_allclose(found.times(jnp.asarray(vector)), expected, rtol=2e-4)
    np.testing.assert_allclose(
        found.undone(jnp.asarray(vector)), matrix @ vector, rtol=1e-4
    )


def test_a_small_eigenvalue_counts_by_itself_and_not_by_the_last_pivot() -> None:
    # All rows are close to each other: pivots are many times the eigenvalue.
    values = jnp.array([1e-4, *[1.0] * 7])
    size = values.size
    vector = jnp.ones(size) / size**0.5
    matrix = jnp.eye(size) - (1 - values[0]) * jnp.outer(vector, vector)
    assert pseudo_inverse(matrix, jnp.array(0.5e-4)).rank() == size
    assert pseudo_inverse(matrix, jnp.array(2e-4)).rank() == size - 1


def test_nothing_and_what_is_not_a_number() -> None:
    zero = pseudo_inverse(jnp.zeros((3, 3)), jnp.array(1e-6))
    assert zero.rank() == 0
    np.testing.assert_array_equal(zero.times(jnp.ones(3)), 0)
    broken = jnp.eye(3).at[0, 2].set(jnp.nan).at[2, 0].set(jnp.nan)
    assert jnp.isnan(pseudo_inverse(broken, jnp.array(1e-6)).times(jnp.ones(3))).all()
