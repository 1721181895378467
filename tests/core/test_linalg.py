from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dtp_jax._core import linalg
from dtp_jax._core.orders import visiting_orders
from tests import devices
from tests.toys import assert_near


def rows(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (1, 7)])
def test_gram_is_the_matrix_of_inner_products(shape: tuple[int, ...]) -> None:
    x = rows(*shape)
    flat = np.asarray(x, np.float64).reshape(shape[0], -1)
    assert_near(linalg.gram(x), flat @ flat.T, rtol=1e-5)


def test_blocks_agree_with_one_product() -> None:
    columns = 5 * linalg.BLOCK_COLUMNS + 17
    x = rows(32, columns)
    flat = np.asarray(x, np.float64)
    np.testing.assert_allclose(linalg.gram(x), flat @ flat.T, rtol=1e-4, atol=0.5)
    np.testing.assert_allclose(jax.vmap(linalg.gram)(x[None])[0], linalg.gram(x), 1e-5)


def test_low_precision_rows_are_summed_in_float32() -> None:
    x = jnp.ones((2, 4096), jnp.bfloat16)
    gram = linalg.gram(x)
    assert gram.dtype == jnp.float32
    # A bfloat16 sum of ones would stop at 256.
    assert gram.tolist() == [[4096.0, 4096.0], [4096.0, 4096.0]]


def test_float64_rows_stay_float64() -> None:
    with jax.enable_x64(True):
        assert linalg.gram(jnp.ones((2, 3), jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_gram_of_sharded_rows(kind: AxisType) -> None:
    mesh = devices.mesh("x", kind)
    x = rows(3, 16, 4)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "x")))
    np.testing.assert_allclose(jax.jit(linalg.gram)(sharded), linalg.gram(x), rtol=1e-5)


def test_correlation_of_rows_that_are_zero_tiny_or_huge() -> None:
    scales = jnp.array([0.0, 1e-18, 1e18, 1.0])
    angles = jnp.array([0.3, 0.3, 1.0, 0.3 + jnp.pi])
    x = scales[:, None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    cosines, norms = linalg.correlation(linalg.gram(x))
    np.testing.assert_allclose(norms, scales, rtol=1e-6)
    expected = np.cos(angles[:, None] - angles[None, :])
    expected[0] = expected[:, 0] = 0
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 5), (3, 4, 5), (7,)])
def test_weighted_sum_leaves_out_rows_of_weight_zero(shape: Any, dtype: Any) -> None:
    x = rows(*shape).astype(dtype)
    weights = jnp.arange(shape[0], dtype=jnp.float32) - 1
    expected = np.tensordot(weights, np.asarray(x, np.float64), axes=1)
    tolerance = 1e-6 if dtype == jnp.float32 else 4e-3
    ways = (linalg.weighted_sum, linalg._add_rows, linalg._reduce_rows)
    for way in ways:
        found = way(weights, x)
        np.testing.assert_allclose(
            np.asarray(found, np.float64), expected, tolerance, tolerance
        )
    assert linalg.weighted_sum(weights, x).dtype == dtype
    if shape[0] > 1:
        bad = x.at[1].set(jnp.nan)
        found = jax.jit(linalg.weighted_sum)(weights, bad)
        np.testing.assert_array_equal(found, linalg.weighted_sum(weights, x))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_weighted_sum_of_sharded_rows(kind: AxisType) -> None:
    mesh = devices.mesh("x", kind)
    x, weights = rows(3, 16, 4), jnp.array([1.0, 0.0, -2.0])
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "x")))
    found = jax.jit(linalg.weighted_sum)(weights, sharded)
    np.testing.assert_allclose(found, linalg.weighted_sum(weights, x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (4, 2**19 + 5)])
def test_gram_with_other_rows(shape: tuple[int, ...]) -> None:
    x, y = rows(*shape), rows(*shape, seed=1)
    flat = [np.asarray(leaf, np.float64).reshape(shape[0], -1) for leaf in (x, y)]
    found = linalg.gram(x, y)
    np.testing.assert_allclose(found, flat[0] @ flat[1].T, rtol=1e-4, atol=0.02)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_gram_with_other_sharded_rows(kind: AxisType) -> None:
    mesh = devices.mesh("x", kind)
    x, y = rows(3, 16, 4), rows(3, 16, 4, seed=1)
    sharding = jax.NamedSharding(mesh, jax.P(None, "x"))
    found = jax.jit(linalg.gram)(*jax.device_put((x, y), sharding))
    assert_near(found, linalg.gram(x, y), rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_visiting_orders_hold_the_other_tasks(num_tasks: int) -> None:
    orders = visiting_orders(jax.random.key(3), num_tasks)
    assert orders.shape == (num_tasks - 1, num_tasks)
    assert orders.dtype == jnp.int32
    for task, column in enumerate(np.sort(orders, axis=0).T):
        np.testing.assert_array_equal(column, np.delete(np.arange(num_tasks), task))


def test_visiting_orders_are_uniform_and_independent() -> None:
    keys = jax.random.split(jax.random.key(0), 24000)
    orders = jax.vmap(lambda key: visiting_orders(key, 4))(keys)
    # Two of the four tasks: six orders each, and 36 pairs of orders.
    names = np.asarray(orders).transpose(0, 2, 1) @ np.array([16, 4, 1])
    for events, cells in ((names[:, :1], 6), (names[:, 3:], 6), (names[:, 1:3], 36)):
        _, counts = np.unique(events, axis=0, return_counts=True)
        assert len(counts) == cells
        mean = len(keys) / cells
        assert (np.abs(counts - mean) < 5 * np.sqrt(mean)).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e12, 1e37])
@pytest.mark.parametrize("active", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0]])
def test_project_to_simplex_finds_the_nearest_point(
    active: list[int], scale: float
) -> None:
    mask = np.array(active, bool)
    for seed in range(3):
        values = np.asarray(rows(4, seed=seed)) * np.float32(scale)
        found = linalg.project_to_simplex(jnp.asarray(values), jnp.asarray(mask))
        np.testing.assert_array_equal(found[~mask], 0)
        np.testing.assert_allclose(jnp.sum(found), 1, rtol=1e-6)
        assert (found >= 0).all()
        # What is positive was lowered by the same amount, which the rest is below.
        positive = np.asarray(found) > 0
        lowered = values.astype(np.float64) - found
        level = lowered[positive].min()
        np.testing.assert_allclose(lowered[positive], level, atol=1e-6, rtol=1e-6)
        assert (values[mask & ~positive] <= level + 1e-6).all()


def test_project_to_simplex_without_an_active_task() -> None:
    none = jnp.zeros(3, bool)
    np.testing.assert_array_equal(linalg.project_to_simplex(jnp.arange(3.0), none), 0)


def test_a_column_keeps_what_the_gramian_loses() -> None:
    # The rows differ by a thousandth, of which the Gramian keeps one digit in ten.
    first = np.random.default_rng(0).normal(size=9)
    second = first + 1e-3 * np.random.default_rng(1).normal(size=9)
    x = np.stack([first, second]).astype(np.float32)
    weights = np.array([1.0, -1.0])
    exact = x.astype(np.float64) @ (weights @ x.astype(np.float64))
    whole = linalg.column_of([jnp.asarray(x)], jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(whole, exact, rtol=1e-5)
    split = [jnp.asarray(row) for row in x]
    parts = linalg.column_of([split], jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(parts, exact, rtol=1e-5)


def test_a_column_leaves_out_rows_of_weight_zero() -> None:
    x = rows(3, 2, 4).at[1].set(jnp.nan)
    weights = jnp.array([1.0, 0.0, 2.0])
    for leaf in (x, list(x)):
        found = linalg.column_of([leaf, leaf], weights)
        kept = x[np.array([0, 2])].reshape(2, -1)
        expected = 2 * kept @ (jnp.array([1.0, 2.0]) @ kept)
        np.testing.assert_allclose(found[np.array([0, 2])], expected, rtol=1e-5)


def test_a_column_of_bfloat16_rows_is_summed_in_float32() -> None:
    x = jnp.ones((2, 4096), jnp.bfloat16)
    found = linalg.column_of([x], jnp.array([1.0, 2.0]))
    assert found.dtype == jnp.float32
    assert found.tolist() == [3 * 4096.0, 3 * 4096.0]


def test_triangular_solves_of_one_and_many() -> None:
    factor = jnp.linalg.cholesky(linalg.gram(rows(3, 5)))
    columns = rows(3, 4, seed=1)
    many = linalg.cholesky_solve(factor, columns)
    np.testing.assert_allclose(factor @ factor.T @ many, columns, atol=1e-5)
    one = linalg.cholesky_solve(factor, columns[:, 0])
    np.testing.assert_allclose(one, many[:, 0], rtol=1e-6)
