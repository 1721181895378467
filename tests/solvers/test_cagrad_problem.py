from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.solvers import min_norm_point
from dtp_jax.solvers._cagrad_problem import CagradPoint, cagrad_problem
from tests import devices
from tests.solvers import problems
from tests.toys import assert_near

solve = jax.jit(cagrad_problem)


def at_radius(gramian: jax.Array, preferences: jax.Array, c: jax.Array) -> CagradPoint:
    return cagrad_problem(gramian, preferences, c=c)


mapped = jax.jit(jax.vmap(at_radius))

# Problems of fewer tasks fill up with absent ones, so that one compilation does.
BATCH, NUM_TASKS = 48, 8


class Point(NamedTuple):
    weights: np.ndarray
    change: np.ndarray
    residual: np.ndarray


def solve_all(
    rows: list[Any], preferences: list[Any], radii: list[float]
) -> list[Point]:
    """Solves problems of at most eight tasks."""
    grams = np.full((BATCH, NUM_TASKS, NUM_TASKS), np.nan, np.float32)
    weights = np.zeros((BATCH, NUM_TASKS), np.float32)
    c = np.zeros(BATCH, np.float32)
    for index, (r, p) in enumerate(zip(rows, preferences, strict=True)):
        r = np.asarray(r, np.float32).astype(np.float64)
        grams[index, : len(r), : len(r)] = r @ r.T
        weights[index, : len(r)] = p
        c[index] = radii[index]
    found = mapped(grams, weights, c)
    assert all(jnp.isfinite(leaf).all() for leaf in found)
    points: list[Point] = []
    for index, r in enumerate(rows):
        weights, change, residual = (np.asarray(leaf[index]) for leaf in found)
        assert (weights[len(r) :] == 0).all()
        assert (change[len(r) :] == 0).all()
        weights, change = weights[: len(r)], change[: len(r)]
        points.append(Point(weights, change, residual))
    return points


def direction(rows: Any, point: Any, preferences: Any = None) -> np.ndarray:
    rows = np.asarray(rows, np.float32).astype(np.float64)
    p = np.ones(len(rows)) if preferences is None else np.asarray(preferences)
    return (p / np.sum(p > 0) + np.asarray(point.change, np.float64)) @ rows


def missed(rows: Any, point: Any, c: float, preferences: Any) -> float:
    """How much a point misses the conditions of optimality, in float64."""
    rows = np.asarray(rows, np.float32).astype(np.float64)
    p = np.asarray(preferences, np.float32).astype(np.float64)
    mean, d = p / np.sum(p > 0) @ rows, direction(rows, point, p)
    lengths = np.linalg.norm(rows, axis=1)
    change = np.abs(np.asarray(point.change, np.float64))
    total = (p / np.sum(p > 0) + change) @ lengths
    members = (p > 0) & (lengths > 0)
    if not members.any() or not mean.any():
        return 0.0
    units = rows[members] / lengths[members, None]
    gains, costs = units @ d, p[members] / lengths[members]
    costs = costs / costs.max()
    y = np.asarray(point.weights, np.float64)[members] / costs
    y = y / y.sum()
    # The best of the levels that some row reaches.
    levels = np.append(gains / costs, (y @ gains) / (y @ costs))[:, None]
    short = np.max(levels * costs - gains, axis=1)
    unequal = np.abs((gains - levels * costs) @ y)
    norm, size = np.linalg.norm(d - mean), c * np.linalg.norm(mean)
    values = size * np.linalg.norm(y @ units) - y @ units @ (d - mean)
    worst = [np.min(np.maximum(short, unequal)), norm - size, values]
    return max(*worst, 0.0) / total


def random_problems(seed: int, decades: float) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(seed)
    kinds = problems.KINDS
    rows, preferences = [], []
    for index in range(BATCH):
        num_tasks = int(rng.integers(2, NUM_TASKS + 1))
        size = int(rng.choice([2, num_tasks, 5 * num_tasks]))
        kind = kinds[index % len(kinds)]
        rows.append(problems.draw(kind, num_tasks, size, seed, decades))
        p = (
            10 ** rng.uniform(-2, 2, num_tasks)
            if index % 3 == 2
            else np.ones(num_tasks)
        )
        preferences.append(p * (rng.random(num_tasks) > 0.1) if index % 4 == 1 else p)
    return rows, preferences


@pytest.mark.parametrize("decades", [0, 3, 12])
def test_optimal_for_every_kind_of_rows(decades: int) -> None:
    for seed in range(3):
        rows, preferences = random_problems(seed, decades)
        radii = [[0.0, 0.1, 0.5, 0.9][(index // 6) % 4] for index in range(BATCH)]
        found = solve_all(rows, preferences, radii)
        for r, p, c, point in zip(rows, preferences, radii, found, strict=True):
            expected = missed(r, point, c, p)
            assert expected < 5e-6
            np.testing.assert_allclose(point.residual, expected, atol=2e-6)
            np.testing.assert_allclose(point.weights.sum(), np.any(p > 0), rtol=1e-5)
            assert (point.weights >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 3, 32, 128])
def test_optimal_in_thousands_of_draws(num_tasks: int) -> None:
    for seed in range(2000 // num_tasks):
        for kind in problems.KINDS:
            for size in (2, num_tasks, 10 * num_tasks):
                rows = problems.draw(kind, num_tasks, size, seed, [0, 3, 12][seed % 3])
                c = [0.1, 0.5, 0.9, 2.0][seed % 4]
                point = solve(jnp.asarray(rows @ rows.T, jnp.float32), c=c)
                assert missed(rows, point, c, np.ones(num_tasks)) < 3e-5, (kind, seed)


def test_the_smallest_gain_of_two_tasks_by_search() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(2, 2)) * [[1], [length]] for length in (0.2, 1, 5) * 4]
    preferences = [rng.uniform(0.3, 3, 2) for _ in rows]
    radii = [0.2, 0.5, 0.9] * 4
    found = solve_all(rows, preferences, radii)
    angles = np.linspace(0, 2 * np.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for r, p, c, point in zip(rows, preferences, radii, found, strict=True):
        mean = p / 2 @ r
        size = np.linalg.norm(mean)
        # The gains are linear: the best point of the ball lies on its boundary.
        gains = (r / p[:, None]) @ (mean[:, None] + c * size * circle)
        smallest = np.min(gains, axis=0)
        reached = np.min(r @ direction(r, point, p) / p)
        scale = size * np.max(np.linalg.norm(r, axis=1) / p)
        np.testing.assert_allclose(reached, smallest.max(), atol=2e-6 * scale)


def test_the_formula_of_the_paper() -> None:
    rows = problems.draw(problems.correlated, 8, 40, 1, 1)
    p = np.linspace(0.5, 2, 8)
    point = solve_all([rows], [p], [0.4])[0]
    mean, g_w = p / 8 @ rows, (point.weights / p) @ rows
    d = mean + 0.4 * np.linalg.norm(mean) * g_w / np.linalg.norm(g_w)
    assert_near(direction(rows, point, p), d, rtol=1e-3)


def test_without_radius_the_weight_is_on_the_smallest_gain() -> None:
    rows = problems.draw(problems.independent, 5, 20, 0, 0)
    point = solve_all([rows], [np.ones(5)], [0.0])[0]
    np.testing.assert_array_equal(point.change, 0)
    worst = np.argmin(rows @ rows.mean(axis=0))
    np.testing.assert_allclose(point.weights, np.arange(5) == worst, atol=1e-6)


def test_a_large_radius_is_the_problem_of_the_shortest_vector() -> None:
    rows = problems.draw(problems.independent, 8, 40, 3, 1)
    point = solve_all([rows], [np.ones(8)], [1e4])[0]
    expected = min_norm_point(jnp.asarray(rows @ rows.T, jnp.float32)).weights
    np.testing.assert_allclose(point.weights, expected, atol=1e-3)


@pytest.mark.parametrize("c", [1.0, 3.0])
def test_no_step_where_all_directions_lose(c: float) -> None:
    # Zero is inside the triangle, and the mean is not zero.
    rows = [[1.0, 0.0], [-2.0, 3.0], [-2.0, -5.0]]
    point = solve_all([rows], [np.ones(3)], [c])[0]
    # What cancels is known to the root of the rounding of the Gramian.
    np.testing.assert_allclose(direction(rows, point), 0, atol=5e-3)


def test_opposite_rows_hold_the_others_back_no_more_than_needed() -> None:
    # The first two can only tie, at zero. The ball reaches such a d; g_w is zero.
    rows = [[1.2, 0.0], [-1.0, 0.0], [0.1, 1.0]]
    point = solve_all([rows], [np.ones(3)], [0.5])[0]
    d = direction(rows, point)
    np.testing.assert_allclose(d[0], 0, atol=1e-3)
    assert d[1] > 0.3
    assert missed(rows, point, 0.5, np.ones(3)) < 2e-6
    # Two opposite rows alone: the ball does not reach zero, and the shorter one is
    # the more affected.
    rows = [[3.0, 0.0], [-1.0, 0.0]]
    point = solve_all([rows], [np.ones(2)], [0.5])[0]
    np.testing.assert_allclose(direction(rows, point), [0.5, 0.0], atol=1e-6)


def test_zero_rows_count_in_the_mean_only() -> None:
    rows = problems.draw(problems.correlated, 4, 12, 2, 1)
    alone = solve_all([rows], [np.ones(4)], [0.5])[0]
    point = solve_all([np.vstack([rows, 0 * rows[0]])], [np.ones(5)], [0.5])[0]
    np.testing.assert_allclose(point.weights, np.append(alone.weights, 0), atol=1e-5)
    expected = np.append(alone.change, 0) * 4 / 5
    assert_near(point.change, expected, rtol=1e-3)
    zeros = solve_all([np.zeros((4, 2))], [[1.0, 2.0, 0.0, 1.0]], [0.5])[0]
    np.testing.assert_allclose(zeros.weights, np.array([1, 1, 0, 1]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(zeros.change, 0)


def test_no_step_where_the_mean_is_zero() -> None:
    row = problems.draw(problems.independent, 1, 5)[0]
    for rows in ([row, -row], [row, row, -row, -row]):
        point = solve_all([rows], [np.ones(len(rows))], [0.5])[0]
        assert np.linalg.norm(direction(rows, point)) < 1e-3 * np.linalg.norm(row)


def test_equal_rows_get_equal_weights() -> None:
    a, b = problems.draw(problems.independent, 2, 7, 4, 0)
    point = solve_all([[a, a, b, a, a]], [np.ones(5)], [0.5])[0]
    np.testing.assert_allclose(point.weights[[0, 1, 3, 4]], point.weights[0], 1e-3)


def test_order_and_scale_do_not_matter() -> None:
    rows = problems.draw(problems.correlated, 6, 9, 5, 2)
    order = np.random.default_rng(1).permutation(6)
    scales = [1, 1, 1e-15, 1e15, 1, 1]
    sizes = [1, 1, 1, 1, 1e-30, 1e30]
    variants = [rows, rows[order], *(scale * rows for scale in scales[2:])]
    preferences = [np.full(6, size) for size in sizes]
    first, permuted, *others = solve_all(variants, preferences, [0.5] * 6)
    np.testing.assert_allclose(permuted.weights, first.weights[order], atol=1e-5)
    lengths = np.linalg.norm(rows, axis=1)
    tolerance = 1e-5 * np.max(first.change * lengths)
    changes = (permuted.change - first.change[order]) * lengths[order]
    np.testing.assert_allclose(changes, 0, atol=tolerance)
    for other, size in zip(others, sizes[2:], strict=True):
        np.testing.assert_allclose(other.weights, first.weights, atol=1e-5)
        changes = (other.change / np.float32(size) - first.change) * lengths
        np.testing.assert_allclose(changes, 0, atol=tolerance)


@pytest.mark.parametrize("present", [[0, 2, 4], [1, 4], [3], []])
def test_absent_tasks_have_no_influence(present: list[int]) -> None:
    rows = problems.draw(problems.independent, 5, 9, 6, 1)
    preferences = np.isin(np.arange(5), present).astype(float)
    shorter, ones = rows[present], np.ones(len(present))
    found, alone = solve_all([rows, shorter], [preferences, ones], [0.5, 0.5])
    assert (found.weights[preferences == 0] == 0).all()
    assert (found.change[preferences == 0] == 0).all()
    np.testing.assert_allclose(found.weights[present], alone.weights, 1e-5)
    np.testing.assert_allclose(found.change[present], alone.change, 1e-4)


def test_one_task() -> None:
    point, zero = solve_all([[[2.0]], [[0.0]]], [[1.0], [3.0]], [0.5, 0.5])
    assert point.weights.tolist() == zero.weights.tolist() == [1.0]
    np.testing.assert_allclose(point.change, [0.5], rtol=1e-6)
    np.testing.assert_array_equal(zero.change, 0)


def test_dtypes_and_derivatives() -> None:
    def total(gramian: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.sum(cagrad_problem(gramian, c=c).change ** 2)

    # Without the stop, a loop has no reverse-mode derivative, and tracing it fails.
    slopes = jax.grad(total, argnums=(0, 1))
    jax.eval_shape(slopes, jnp.eye(4), jnp.float32(0.5))
    with jax.enable_x64(True):
        rows = problems.draw(problems.correlated, 4, 9, 7, 2)
        point = cagrad_problem(jnp.asarray(rows @ rows.T), c=0.5)
        assert point.weights.dtype == point.residual.dtype == jnp.float64
        assert missed(rows, point, 0.5, np.ones(4)) < 1e-14


def test_explicit_mesh() -> None:
    mesh = devices.mesh("x", jax.sharding.AxisType.Explicit)
    rows = problems.draw(problems.correlated, 5, 9, 6, 1)
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    everywhere = jax.NamedSharding(mesh, jax.P(None, None))
    found = solve(jax.device_put(gramian, everywhere), c=0.5)
    expected = solve_all([rows], [np.ones(5)], [0.5])[0]
    assert_near(found.change, expected.change, rtol=1e-4)


def test_what_cannot_be_solved() -> None:
    broken = np.where(np.eye(NUM_TASKS, dtype=bool), 1, np.nan)
    broken = np.broadcast_to(broken, (BATCH, *broken.shape)).astype(np.float32)
    ones = np.ones((BATCH, NUM_TASKS), np.float32)
    found = mapped(broken, ones, ones[:, 0])
    assert jnp.isnan(found.weights).all()
    assert jnp.isnan(found.residual).all()
    with pytest.raises(ValueError, match=r"gramian must be \[T, T\]"):
        cagrad_problem(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"c must be a number in \[0, inf\), got -1"):
        cagrad_problem(jnp.eye(1), c=-1)
