import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax._core import linalg
from dtp_jax.solvers import MinNormPoint, min_norm_point
from tests import devices
from tests.toys import assert_near

solve = jax.jit(min_norm_point)
solve_batch = jax.jit(jax.vmap(min_norm_point))

NUM_TASKS = [2, 3, 8, 32, 128]


def gram(rows: Any) -> jax.Array:
    """The Gramian of float32 rows, computed in float64 and rounded."""
    rows = np.asarray(rows, np.float32).astype(np.float64)
    return jnp.asarray(rows @ rows.T, jnp.float32)


def normal(*shape: int, seed: int = 0, decades: float = 0.0) -> np.ndarray:
    """Random rows whose lengths spread over some decades."""
    rng = np.random.default_rng(seed)
    scales = 10 ** rng.uniform(-decades / 2, decades / 2, (shape[0], 1))
    rows = rng.normal(size=shape) * scales
    return rows.astype(np.float32).astype(np.float64)


def families(num_tasks: int, decades: float, seed: int) -> dict[str, np.ndarray]:
    """Rows that are independent, dependent, equal, opposite and almost so."""
    rng = np.random.default_rng(seed)
    many = rng.normal(size=(num_tasks, 10 * num_tasks))
    few = rng.normal(size=(num_tasks, max(2, num_tasks // 2)))
    shared = rng.normal(size=10 * num_tasks)
    half = num_tasks // 2
    paired = many.copy()
    paired[num_tasks - half :] = many[:half]
    opposite = many.copy()
    opposite[num_tasks - half :] = -many[:half]
    dependent = many.copy()
    dependent[-1] = many[:-1].sum(axis=0)
    signs = rng.choice([-1, 0, 1], (num_tasks, 1))
    rows = {
        "independent": many,
        "square": rng.normal(size=(num_tasks, num_tasks + 3)),
        "conflicting": many + 0.7 * shared * signs,
        "parallel": many + 30 * shared,
        "fewer-parameters": few,
        "fewer-parameters-one-side": np.abs(few),
        "equal-pairs": paired,
        "almost-equal-pairs": paired + 1e-4 * many[::-1],
        "opposite-pairs": opposite,
        "dependent": dependent,
        "all-equal": np.repeat(many[:1], num_tasks, axis=0),
        "triangular": np.tril(np.ones((num_tasks, num_tasks))),
    }
    scales = 10 ** rng.uniform(-decades / 2, decades / 2, (num_tasks, 1))
    return {
        name: (family * scales).astype(np.float32).astype(np.float64)
        for name, family in rows.items()
    }


def missed(rows: np.ndarray, weights: Any) -> tuple[float, float]:
    """How much d misses ``<g_t, d> >= |d|^2``, relative to |g_t|, and |d|.

    Both are relative to the length of what was summed.
    """
    weights = np.asarray(weights, np.float64)
    weights = weights / weights.sum()
    d, lengths = weights @ rows, np.linalg.norm(rows, axis=1)
    shortfall = np.max((d @ d - rows @ d) / lengths)
    total = weights @ lengths
    return float(shortfall / total), float(np.linalg.norm(d) / total)


def smallest_norm(gramian: np.ndarray) -> float:
    """The smallest norm over all supports whose affine minimum lies in the hull."""
    num_tasks = gramian.shape[0]
    best = np.inf
    for size in range(1, num_tasks + 1):
        for support in itertools.combinations(range(num_tasks), size):
            block = gramian[np.ix_(support, support)]
            weights = np.linalg.lstsq(block, np.ones(size), rcond=1e-13)[0]
            weights = weights / weights.sum()
            if (weights >= 0).all():
                best = min(best, weights @ block @ weights)
    return float(np.sqrt(best))


@pytest.mark.parametrize("num_tasks", [2, 3, 5, 8])
@pytest.mark.parametrize("decades", [0, 4])
def test_the_norm_is_that_of_the_best_support(num_tasks: int, decades: int) -> None:
    for seed in range(4):
        rows = normal(num_tasks, num_tasks + 2, seed=seed, decades=decades)
        weights = np.asarray(solve(gram(rows)).weights, np.float64)
        expected = smallest_norm(rows @ rows.T)
        np.testing.assert_allclose(np.linalg.norm(weights @ rows), expected, rtol=1e-4)


@pytest.mark.parametrize("num_tasks", NUM_TASKS)
@pytest.mark.parametrize("decades", [0, 3, 12])
def test_optimal_for_every_kind_of_rows(num_tasks: int, decades: int) -> None:
    kinds = families(num_tasks, decades, seed=num_tasks + decades)
    found = solve_batch(jnp.stack([gram(rows) for rows in kinds.values()]))
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-5)
    assert (found.weights >= 0).all()
    assert (found.residual < 1e-6).all()
    for (kind, rows), weights in zip(kinds.items(), found.weights, strict=True):
        shortfall, norm = missed(rows, weights)
        assert shortfall < 1e-6, kind
        # As an angle, where d is not lost in the rounding of the Gramian.
        assert norm < 1e-2 or shortfall / norm < 1e-5, kind
        # Rows of a million times the length of others are opposite to rounding only.
        assert kind != "opposite-pairs" or decades > 3 or norm < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [3, 8, 32])
def test_optimal_in_thousands_of_draws(num_tasks: int) -> None:
    for seed in range(300):
        kinds = families(num_tasks, [0, 3, 12][seed % 3], seed)
        found = solve_batch(jnp.stack([gram(rows) for rows in kinds.values()]))
        assert (found.residual < 2e-6).all(), seed
        for (kind, rows), weights in zip(kinds.items(), found.weights, strict=True):
            assert missed(rows, weights)[0] < 2e-6, (kind, seed)


def test_the_residual_is_the_shortfall() -> None:
    rows = normal(4, 9, seed=1, decades=2)
    preferences = np.array([1.0, 0.3, 0.0, 2.0])
    weights, residual = min_norm_point(gram(rows), jnp.asarray(preferences))
    weights = np.asarray(weights, np.float64)
    d, lengths = weights @ rows, np.linalg.norm(rows, axis=1)
    terms = (preferences * (d @ d) - rows @ d) / lengths / (weights @ lengths)
    expected = max(terms[preferences > 0].max(), 0)
    np.testing.assert_allclose(residual, expected, atol=3e-7)


def test_residual_tells_where_rounding_wins() -> None:
    # Two rows a thousand times as long as the others, opposite up to 1e-6.
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8, 8))
    rows[:, 0] *= 1e3
    rows[:, 1] = -rows[:, 0] + rng.normal(size=(200, 8))
    found = solve_batch(jnp.stack([gram(r) for r in rows]))
    assert jnp.isfinite(found.weights).all()
    assert (found.residual < 1e-3).all()
    for r, weights, residual in zip(rows, found.weights, found.residual, strict=True):
        # The square of d is known to machine epsilon of that of its longest part, and
        # is compared with the shortest row.
        lengths = np.linalg.norm(r, axis=1)
        shares = np.asarray(weights, np.float64) / float(np.sum(weights))
        rounding = np.finfo(np.float32).eps * (shares @ lengths) / lengths.min()
        assert missed(r, weights)[0] < 10 * float(residual) + rounding + 1e-6


@pytest.mark.parametrize(
    "rows",
    [
        [[-2, 4, -8], [0, 8e2, -9e2], [2e5, 4e5, 2e5], [-0.3, -0.3, 0.6]],
        [
            [2, 0, -4],
            [-0.4, -0.3, 0.7],
            [-0.07, -0.01, -0.01],
            [-2, 4, 2],
            [-5e4, 8e4, 3e4],
        ],
        [
            [2, 5, -9],
            [-5e6, 5e6, -4e6],
            [5e4, 5e4, 1e4],
            [3e7, 6e7, -1e7],
            [2e2, -9e2, 3e2],
        ],
    ],
)
def test_where_an_unguarded_method_cycles(rows: list[list[float]]) -> None:
    # Found by searching for draws on which steps without a guard repeat forever.
    exact = np.asarray(rows, np.float32).astype(np.float64)
    assert missed(exact, solve(gram(exact)).weights)[0] < 1e-6


@pytest.mark.parametrize("cosine", [-1.0, -0.5, 0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("length", [1e-6, 0.5, 1.0, 2.0, 1e6])
def test_two_tasks_as_in_the_paper(cosine: float, length: float) -> None:
    g11, g12, g22 = 1.0, cosine * length, length**2
    # Algorithm 1 of Sener & Koltun (2018).
    if g12 >= g11 and g12 >= g22:
        first = 0.5  # Equal rows: every weighting will do.
    elif g12 >= g11:
        first = 1.0
    elif g12 >= g22:
        first = 0.0
    else:
        first = (g22 - g12) / (g11 + g22 - 2 * g12)
    gramian = jnp.array([[g11, g12], [g12, g22]], jnp.float32)
    expected = [first, 1 - first]
    assert_near(solve(gramian).weights, expected, rtol=2e-4)


def test_one_task() -> None:
    assert solve(jnp.array([[4.0]])).weights.tolist() == [1.0]
    assert solve(jnp.array([[0.0]])).weights.tolist() == [1.0]
    assert solve(jnp.array([[4.0]]), jnp.array([4.0])).weights.tolist() == [0.25]


@pytest.mark.parametrize("num_tasks", [2, 5, 32])
def test_equivariant_to_the_order_of_tasks(num_tasks: int) -> None:
    gramian = gram(normal(num_tasks, 3 * num_tasks, decades=1))
    order = np.random.default_rng(1).permutation(num_tasks)
    expected = solve(gramian).weights[order]
    found = solve(gramian[np.ix_(order, order)]).weights
    assert_near(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
@pytest.mark.parametrize("num_tasks", [2, 5])
def test_the_scale_of_all_rows_does_not_matter(num_tasks: int, scale: float) -> None:
    rows = normal(num_tasks, 9, decades=2)
    expected = solve(gram(rows)).weights
    found = solve(gram(scale * rows)).weights
    assert_near(found, expected, rtol=1e-4)


@pytest.mark.parametrize("num_tasks", [2, 5])
def test_zero_rows_take_all_the_weight(num_tasks: int) -> None:
    rows = normal(num_tasks, 5)
    rows[1] = 0
    found = solve(gram(rows))
    assert found.weights.tolist() == [float(task == 1) for task in range(num_tasks)]
    assert float(found.residual) == 0
    preferences = jnp.arange(1.0, num_tasks + 1)
    weights = solve(jnp.zeros((num_tasks, num_tasks)), preferences).weights
    np.testing.assert_allclose(weights, preferences / jnp.sum(preferences**2), 1e-6)
    weights = solve(jnp.zeros((num_tasks, num_tasks))).weights
    np.testing.assert_allclose(weights, 1 / num_tasks, rtol=1e-6)


def test_equal_rows_get_equal_weights() -> None:
    a, b = normal(2, 7)
    alone = solve(gram([a, b])).weights
    weights = solve(gram([a, a, b, a, a])).weights
    equal = jnp.array([0, 1, 3, 4])
    np.testing.assert_allclose(weights[equal], alone[0] / 4, rtol=1e-4)
    np.testing.assert_allclose(weights[2], alone[1], rtol=1e-5)


def test_zero_inside_the_hull() -> None:
    a, b = normal(2, 7)
    for rows in ([a, -a, b, b, b], [a, b, -2 * a, -b, a], [a, -0.5 * a]):
        assert missed(np.asarray(rows), solve(gram(rows)).weights)[1] < 1e-3


@pytest.mark.parametrize("num_tasks", [2, 5])
def test_preferences_divide_the_rows(num_tasks: int) -> None:
    gramian = gram(normal(num_tasks, 8, decades=1))
    preferences = jnp.asarray(np.random.default_rng(2).uniform(0.1, 3, num_tasks))
    divided = gramian / preferences[:, None] / preferences[None, :]
    expected = solve(divided).weights / preferences
    found = solve(gramian, preferences).weights
    assert_near(found, expected, rtol=1e-4)
    np.testing.assert_allclose(jnp.sum(found * preferences), 1, rtol=1e-6)


@pytest.mark.parametrize("present", [[0, 2, 4], [1, 4], [3], []])
def test_tasks_without_preference_leave_the_problem(present: list[int]) -> None:
    gramian = gram(normal(5, 9, decades=1))
    index = np.array(present, int)
    preferences = jnp.zeros(5).at[index].set(1)
    outside = preferences == 0
    broken = jnp.where(outside[:, None] | outside[None, :], jnp.nan, gramian)
    for matrix in (gramian, broken):
        found = solve(matrix, preferences)
        assert (found.weights[outside] == 0).all()
        assert jnp.isfinite(found.residual)
        if present:
            expected = solve(gramian[np.ix_(index, index)]).weights
            np.testing.assert_allclose(found.weights[index], expected, rtol=1e-5)


@pytest.mark.parametrize("smallest", [1e-38, 1e-20, 1e30])
@pytest.mark.parametrize("num_tasks", [2, 5])
def test_preferences_of_any_size(num_tasks: int, smallest: float) -> None:
    smallest = max(smallest, float(jnp.finfo(jnp.float32).tiny))
    gramian = gram(normal(num_tasks, 8))
    expected = solve(gramian).weights
    found = solve(gramian, jnp.full(num_tasks, smallest)).weights
    np.testing.assert_allclose(found * jnp.float32(smallest), expected, rtol=1e-5)


@pytest.mark.parametrize("preference", [1e-37, 1e-20])
def test_a_task_of_next_to_no_preference_keeps_its_protection(
    preference: float,
) -> None:
    # In the limit its row is a direction of any length: (1, 0) - 1/4 (2, -2) is
    # orthogonal to it.
    gramian = gram([[1.0, 0.0], [-2.0, 2.0]])
    weights = solve(gramian, jnp.array([1.0, preference])).weights
    np.testing.assert_allclose(weights, [1.0, 0.25], rtol=1e-5)


def test_a_batch_is_solved_as_each_alone() -> None:
    rows = [normal(5, 8, seed=seed, decades=seed) for seed in range(6)]
    grams = jnp.stack([gram(r) for r in rows])
    found = solve_batch(grams)
    for index, gramian in enumerate(grams):
        alone = solve(gramian)
        np.testing.assert_allclose(found.weights[index], alone.weights, 1e-5, 1e-7)


def test_float64_is_solved_in_float64() -> None:
    with jax.enable_x64(True):
        kinds = families(8, 6, seed=0)
        for kind, rows in kinds.items():
            gramian = jnp.asarray(rows @ rows.T)
            found = min_norm_point(gramian)
            assert found.weights.dtype == found.residual.dtype == jnp.float64
            assert missed(rows, found.weights)[0] < 1e-14, kind


def test_low_precision_is_solved_in_float32() -> None:
    found = min_norm_point(jnp.eye(3, dtype=jnp.bfloat16))
    assert found.weights.dtype == found.residual.dtype == jnp.float32


def test_no_derivative_flows() -> None:
    def total(gramian: jax.Array, preferences: jax.Array) -> jax.Array:
        return jnp.sum(min_norm_point(gramian, preferences).weights ** 2)

    slopes = jax.grad(total, argnums=(0, 1))(linalg.gram(jnp.eye(3)), jnp.ones(3))
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)


def test_explicit_mesh() -> None:
    mesh = devices.mesh("x", jax.sharding.AxisType.Explicit)
    gramian = gram(normal(5, 9))
    everywhere = jax.NamedSharding(mesh, jax.P(None, None))
    found = solve(jax.device_put(gramian, everywhere))
    np.testing.assert_allclose(found.weights, solve(gramian).weights, rtol=1e-5)


def test_nan_is_not_hidden() -> None:
    found = solve(jnp.where(jnp.eye(3, dtype=bool), 1.0, jnp.nan))
    assert isinstance(found, MinNormPoint)
    assert jnp.isnan(found.weights).all()


def test_a_bad_row_is_left_out() -> None:
    gramian = gram(normal(3, 9)).at[1].set(jnp.nan).at[:, 1].set(jnp.nan)
    expected = solve(gram(normal(3, 9)), jnp.array([1.0, 0.0, 1.0])).weights
    np.testing.assert_array_equal(solve(gramian).weights, expected)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[T, T\] and preferences \[T\], got \[2, 3"):
        min_norm_point(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"got \[2, 2\] and \[3\]"):
        min_norm_point(jnp.eye(2), jnp.ones(3))
