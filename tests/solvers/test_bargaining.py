from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax._core import linalg
from dtp_jax.solvers import _bargaining, min_norm_point
from dtp_jax.solvers._bargaining import NashPoint, fair_equation, nash_equation
from tests import devices

# Compiling takes the time, so there is one shape of each kind.
NUM_TASKS = [1, 2, 3, 8, 128]
EPS = float(jnp.finfo(jnp.float32).eps)


@jax.jit
def solve_jitted(gramian: Any, preferences: Any, alpha: Any) -> NashPoint:
    return fair_equation(gramian, preferences, alpha=alpha)


def solve(gramian: Any, preferences: Any = None, alpha: float = 1.0) -> NashPoint:
    """The answer in float32, compiled once for each number of tasks."""
    if preferences is None:
        preferences = np.ones(len(gramian))
    if not isinstance(gramian, jax.Array):
        gramian = np.asarray(gramian, np.float32)
    return solve_jitted(gramian, np.asarray(preferences, np.float32), alpha)


def gram(rows: Any) -> np.ndarray:
    """The Gramian of float32 rows, computed in float64 and rounded."""
    rows = np.asarray(rows, np.float32).astype(np.float64)
    return (rows @ rows.T).astype(np.float32)


def spread(rows: np.ndarray, decades: float, seed: int = 0) -> np.ndarray:
    """Scales rows to lengths that spread over some decades."""
    rng = np.random.default_rng(seed)
    lengths = 10 ** rng.uniform(-decades / 2, decades / 2, (len(rows), 1))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * lengths


def normal(*shape: int, seed: int = 0, decades: float = 0.0) -> np.ndarray:
    return spread(np.random.default_rng(seed).normal(size=shape), decades, seed)


def solvable(num_tasks: int, decades: float, seed: int) -> dict[str, np.ndarray]:
    """Rows of which no positive combination is zero."""
    rng = np.random.default_rng(seed)
    many = rng.normal(size=(num_tasks, 10 * num_tasks))
    few = rng.normal(size=(num_tasks, max(2, num_tasks // 2)))
    narrow = few.copy()
    narrow[:, 0] = 0.1 * np.abs(few[:, 0]) + 0.01
    shared = rng.normal(size=10 * num_tasks)
    signs = rng.choice([-1, 0, 1], (num_tasks, 1))
    half = num_tasks // 2
    paired, opposite, dependent = many.copy(), many.copy(), many.copy()
    paired[num_tasks - half :] = many[:half]
    opposite[num_tasks - half :] = -many[:half]
    dependent[-1] = many.sum(axis=0)
    rows = {
        "independent": many,
        "square": rng.normal(size=(num_tasks, num_tasks + 3)),
        "conflicting": many + 0.7 * shared * signs,
        "parallel": many + 30 * shared,
        "fewer-parameters": np.abs(few),
        "fewer-parameters-conflicting": narrow,
        "equal-pairs": paired,
        "almost-equal-pairs": paired + 1e-4 * many[::-1],
        "almost-opposite-pairs": opposite + 0.1 * rng.normal(size=many.shape),
        "more-opposite-pairs": opposite + 0.01 * rng.normal(size=many.shape),
        "dependent": dependent,
        "all-equal": np.repeat(many[:1], num_tasks, axis=0),
        "orthogonal": np.eye(num_tasks),
        "triangular": np.tril(np.ones((num_tasks, num_tasks))),
    }
    return {name: spread(family, decades, seed) for name, family in rows.items()}


def stationary(num_tasks: int, decades: float, seed: int) -> dict[str, np.ndarray]:
    """Rows of which a positive combination is zero."""
    rng = np.random.default_rng(seed)
    many = rng.normal(size=(num_tasks, 10 * num_tasks))
    half = num_tasks // 2
    pairs, pair, sums = many.copy(), many.copy(), many - many.mean(axis=0)
    pairs[num_tasks - half :] = -many[:half]
    pair[-1] = -many[0]
    rows = {"opposite-pairs": pairs, "opposite-pair": pair, "zero-sum": sums}
    if num_tasks > 2:
        triangle = many.copy()
        triangle[-1] = -many[0] - many[1]
        rows["triangle"] = triangle
    return {name: spread(family, decades, seed) for name, family in rows.items()}


def missed(
    gramian: np.ndarray, weights: Any, preferences: Any = 1.0, alpha: float = 1.0
) -> tuple[float, float]:
    """How much the equation is missed, and what rounding of the weights may do."""
    gramian, weights = gramian.astype(np.float64), np.asarray(weights, np.float64)
    factors = (weights / np.asarray(preferences, np.float64)) ** (1 / alpha)
    found = weights > 0
    miss = np.abs(factors * (gramian @ weights) - 1)[found]
    sizes = factors * (np.abs(gramian) @ weights) * max(1, 1 / alpha)
    return float(np.max(miss)), float(EPS * np.max(sizes[found]))


@pytest.mark.parametrize("num_tasks", NUM_TASKS)
@pytest.mark.parametrize("decades", [0, 12])
def test_solves_the_equation_for_every_kind_of_rows(
    num_tasks: int, decades: float
) -> None:
    for kind, rows in solvable(num_tasks, decades, seed=num_tasks).items():
        gramian = gram(rows)
        weights, residual = solve(gramian)
        assert (weights > 0).all(), kind
        miss, rounding = missed(gramian, weights)
        assert miss < 3 * rounding + 1e-6, kind
        # Elsewhere no float32 numbers are good to 1e-4.
        assert miss < 1e-4 or rounding > 3e-5, kind
        assert miss < 0.02, kind
        assert abs(float(residual) - miss) < 2 * rounding + 1e-6, kind


@pytest.mark.parametrize("num_tasks", NUM_TASKS[:-1])
@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("decades", [0, 2])
def test_solves_the_equation_for_every_alpha(
    num_tasks: int, alpha: float, decades: float
) -> None:
    for kind, rows in solvable(num_tasks, decades, seed=num_tasks).items():
        gramian = gram(rows)
        preferences = np.random.default_rng(1).uniform(0.3, 3, num_tasks)
        weights, residual = solve(gramian, preferences, alpha)
        miss, rounding = missed(gramian, weights, preferences, alpha)
        assert (weights > 0).all(), kind
        assert miss < 10 * rounding + 2e-6, kind
        assert abs(float(residual) - miss) < 4 * rounding + 2e-6, kind


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 3, 8, 32])
def test_solves_the_equation_in_thousands_of_draws(num_tasks: int) -> None:
    for seed in range(200):
        decades = [0, 3, 12][seed % 3]
        for kind, rows in solvable(num_tasks, decades, seed).items():
            gramian = gram(rows)
            miss, rounding = missed(gramian, solve(gramian).weights)
            assert miss < 6 * rounding + 2e-6, (kind, seed)
        for kind, rows in stationary(num_tasks, decades, seed).items():
            assert float(solve(gram(rows)).residual) == 1, (kind, seed)


@pytest.mark.parametrize("num_tasks", NUM_TASKS[1:])
@pytest.mark.parametrize("decades", [0, 12])
def test_without_a_solution_the_direction_vanishes(
    num_tasks: int, decades: float
) -> None:
    for kind, rows in stationary(num_tasks, decades, seed=num_tasks).items():
        for alpha in (0.5, 1.0, 2.0):
            weights, residual = solve(gram(rows), alpha=alpha)
            assert float(residual) == 1, kind
            assert (weights >= 0).all(), kind
            np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-5)
            lengths = np.linalg.norm(rows, axis=1)
            direction = np.asarray(weights, np.float64) @ rows
            total = np.asarray(weights, np.float64) @ lengths
            assert np.linalg.norm(direction) < 1e-3 * total, kind


def test_without_a_solution_the_weights_are_those_of_the_shortest_vector() -> None:
    for gramian in ([[4.0, -2.0], [-2.0, 1.0]], [[1e12, -1e-2], [-1e-2, 1e-16]]):
        expected = min_norm_point(jnp.array(gramian)).weights
        np.testing.assert_allclose(solve(gramian).weights, expected, rtol=1e-5)


def test_few_iterations() -> None:
    for kind, rows in solvable(3, 12, seed=0).items():
        args = jnp.asarray(gram(rows)), jnp.ones(3), jnp.float32(1)
        limit = 12 if "opposite" in kind else 6
        assert int(_bargaining._solve(*args)[1]) <= limit, kind


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_minimum_of_the_convex_function(alpha: float) -> None:
    rng = np.random.default_rng(0)
    gramian, s = gram(normal(8, 12, decades=1)).astype(np.float64), 1 / alpha
    preferences = rng.uniform(0.3, 3, 8)

    def value(a: np.ndarray) -> float:
        power = np.log(a) if s == 1 else a ** (1 - s) / (1 - s)
        return float(a @ gramian @ a / 2 - np.sum(preferences**s * power))

    weights = np.asarray(solve(gramian, preferences, alpha).weights, np.float64)
    for _ in range(50):
        other = weights * np.exp(rng.normal(size=8) * rng.choice([0.01, 0.1, 1]))
        assert value(other) > value(weights)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_direction_is_the_fairest_of_its_length(alpha: float) -> None:
    rng = np.random.default_rng(0)
    rows = normal(3, 4, decades=1)
    preferences = rng.uniform(0.3, 3, 3)

    def fairness(direction: np.ndarray) -> float:
        gains = rows @ direction / np.linalg.norm(direction)
        if (gains <= 0).any():
            return -np.inf
        power = np.log(gains) if alpha == 1 else gains ** (1 - alpha) / (1 - alpha)
        return float(np.sum(preferences * power))

    weights = np.asarray(solve(gram(rows), preferences, alpha).weights, np.float64)
    best = weights @ rows
    for _ in range(100):
        step = np.linalg.norm(best) * rng.choice([0.03, 0.3, 3])
        other = best + step * rng.normal(size=4)
        assert fairness(other) < fairness(best)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("num_tasks", [1, 8])
def test_orthogonal_rows(num_tasks: int, alpha: float) -> None:
    rng = np.random.default_rng(0)
    lengths = 10 ** rng.uniform(-6, 6, num_tasks)
    preferences = 10 ** rng.uniform(-4, 1, num_tasks)
    weights, residual = solve(np.diag(lengths**2), preferences, alpha)
    # From a = p (|g|^2 a)^-alpha.
    expected = (preferences * lengths ** (-2 * alpha)) ** (1 / (1 + alpha))
    np.testing.assert_allclose(weights, expected, rtol=2e-5)
    assert float(residual) < 1e-4
    if alpha == 1:
        np.testing.assert_allclose(weights, np.sqrt(preferences) / lengths, rtol=1e-5)


@pytest.mark.parametrize("cosine", [-0.99, -0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("second", [1e-3, 1.0, 7.0])
def test_two_tasks_in_closed_form(cosine: float, second: float) -> None:
    # The ratio r of the entries of x = |g| a solves r^2 + c (1 - q) r - q = 0 for
    # preferences 1 and q, and the first entry is 1 / sqrt(1 + c r).
    middle = cosine * (1 - second)
    ratio = (-middle + np.sqrt(middle**2 + 4 * second)) / 2
    first = 1 / np.sqrt(1 + cosine * ratio)
    lengths = np.array([1e-3, 1e4])
    gramian = np.array([[1, cosine], [cosine, 1]]) * np.outer(lengths, lengths)
    weights = solve(gramian, [1.0, second]).weights
    np.testing.assert_allclose(weights * lengths, [first, ratio * first], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_law_of_scale(scale: float, alpha: float) -> None:
    rows = normal(8, 12, decades=2)
    expected = solve(gram(rows), alpha=alpha).weights
    found = solve(gram(scale * rows), alpha=alpha).weights
    law = scale ** (-2 * alpha / (1 + alpha))
    np.testing.assert_allclose(found / law, expected, rtol=2e-4)


def test_nash_is_fairness_one_without_units() -> None:
    rows = normal(3, 12)
    units = 10 ** np.random.default_rng(1).uniform(-3, 3, 3)
    weights, residual = nash_equation(jnp.asarray(gram(rows)))
    np.testing.assert_allclose(weights, solve(gram(rows)).weights, rtol=1e-6)
    assert float(residual) < 1e-5
    scaled = solve(gram(units[:, None] * rows)).weights
    np.testing.assert_allclose(scaled * units, weights, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_equal_rows_share_by_preference(alpha: float) -> None:
    a, b = normal(2, 7)
    # Three equal rows have one gain: their weights are in proportion to preferences.
    shared = solve(gram([a, a, a, b, b, b, b, b]), np.arange(1, 9), alpha).weights
    merged = solve(gram([a, b]), [6.0, 30.0], alpha).weights
    expected = np.arange(1, 9) * np.repeat(np.asarray(merged) / [6, 30], [3, 5])
    np.testing.assert_allclose(shared, expected, rtol=1e-4)


def test_raising_a_preference_raises_the_weight() -> None:
    for alpha in (0.5, 1.0, 2.0):
        ratios = []
        for preference in (0.5, 1.0, 4.0, 100.0):
            first, second = solve([[1.0, -0.6], [-0.6, 1.0]], [preference, 1], alpha)[0]
            ratios.append(float(first / second))
        assert ratios == sorted(ratios)


@pytest.mark.parametrize("preference", [1e-37, 1e-12])
def test_a_task_of_next_to_no_preference_keeps_its_protection(
    preference: float,
) -> None:
    # In the limit (1, 0) + 1/4 (-2, 2) is orthogonal to (-2, 2), with the norm one.
    weights = solve(gram([[1.0, 0.0], [-2.0, 2.0]]), [1.0, preference]).weights
    np.testing.assert_allclose(weights, [2**0.5, 2**0.5 / 4], rtol=1e-5)
    # A row that does not conflict gets p / <g, d>, if that is not too small.
    weights = solve(gram([[1.0, 0.0], [2.0, 2.0]]), [1.0, preference]).weights
    np.testing.assert_allclose(weights, [1, preference / 2], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e30])
def test_preferences_of_any_size(size: float) -> None:
    gramian = gram(normal(8, 12))
    expected = solve(gramian).weights
    found = solve(gramian, np.full(8, size)).weights
    np.testing.assert_allclose(found / np.float32(size**0.5), expected, rtol=1e-4)


def test_zero_rows_have_no_weight_and_no_influence() -> None:
    rows = normal(8, 12)
    rows[[1, 4]] = 0
    present = np.flatnonzero(rows.any(axis=1))
    for alpha in (1.0, 2.0):
        weights, residual = solve(gram(rows), alpha=alpha)
        left_out = solve(gram(rows), rows.any(axis=1), alpha).weights
        np.testing.assert_array_equal(weights, left_out)
        assert float(residual) < 1e-5
        assert (weights[present] > 0).all()
        assert (weights[jnp.array([1, 4])] == 0).all()
    weights, residual = solve(np.zeros((8, 8)))
    np.testing.assert_array_equal(weights, 0)
    assert float(residual) == 0


@pytest.mark.parametrize("present", [[0, 2, 4], [3], []])
def test_tasks_without_preference_leave_the_problem(present: list[int]) -> None:
    gramian = gram(normal(8, 12))
    outside = ~np.isin(np.arange(8), present)
    broken = np.where(outside[:, None] | outside[None, :], np.nan, gramian)
    for matrix in (gramian, broken):
        weights, residual = solve(matrix, ~outside)
        assert (weights[outside] == 0).all()
        assert jnp.isfinite(residual)
        if present:
            expected = solve(gramian[np.ix_(present, present)]).weights
            found = weights[np.array(present)]
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_bad_row_is_left_out_and_other_nan_is_not_hidden() -> None:
    gramian = gram(normal(8, 12))
    gramian[1] = gramian[:, 1] = np.nan
    expected = solve(np.where(np.isnan(gramian), 0, gramian)).weights
    np.testing.assert_array_equal(solve(gramian).weights, expected)
    gramian[2, 3] = np.nan
    weights, residual = solve(gramian)
    assert jnp.isnan(weights).any()
    assert jnp.isnan(residual)


def test_equivariant_to_the_order_of_tasks() -> None:
    gramian = gram(normal(8, 12, decades=1))
    order = np.random.default_rng(1).permutation(8)
    expected = solve(gramian).weights[order]
    found = solve(gramian[np.ix_(order, order)]).weights
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_batch_is_solved_as_each_alone() -> None:
    rows = [normal(3, 8, seed=seed, decades=seed) for seed in range(5)]
    rows.append(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
    grams = [gram(r) for r in rows]
    found = jax.jit(jax.vmap(nash_equation))(jnp.stack(grams))
    for index, gramian in enumerate(grams):
        alone = solve(gramian)
        np.testing.assert_allclose(found.weights[index], alone.weights, 1e-5, 1e-7)


def test_float64_is_solved_in_float64() -> None:
    with jax.enable_x64(True):
        solve_double = jax.jit(nash_equation)
        for kind, rows in solvable(3, 6, seed=0).items():
            gramian = rows @ rows.T
            weights, residual = solve_double(jnp.asarray(gramian))
            assert weights.dtype == residual.dtype == jnp.float64
            miss, rounding = missed(gramian, weights)
            assert miss < 1e-14 + rounding * 1e-8, kind
        pair = jnp.asarray(np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 1.0]]))
        assert float(solve_double(pair).residual) == 1


def test_low_precision_is_solved_in_float32() -> None:
    found = nash_equation(jnp.eye(3, dtype=jnp.bfloat16))
    assert found.weights.dtype == found.residual.dtype == jnp.float32


def test_no_derivative_flows() -> None:
    def total(gramian: jax.Array, preferences: jax.Array) -> jax.Array:
        return jnp.sum(nash_equation(gramian, preferences).weights ** 2)

    slopes = jax.grad(total, argnums=(0, 1))(linalg.gram(jnp.eye(3)), jnp.ones(3))
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)


def test_explicit_mesh() -> None:
    mesh = devices.mesh("x", jax.sharding.AxisType.Explicit)
    everywhere = jax.NamedSharding(mesh, jax.P(None, None))
    for gramian in (gram(normal(3, 9)), gram([[1.0], [-1.0], [1.0]])):
        found = solve(jax.device_put(gramian, everywhere))
        np.testing.assert_allclose(found.weights, solve(gramian).weights, rtol=1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"\[T, T\] and preferences \[T\], got \[2, 3"):
        nash_equation(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, inf\)"):
        fair_equation(jnp.eye(2), alpha=-1.0)
