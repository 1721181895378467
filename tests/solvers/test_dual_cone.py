import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from dtp_jax.balancers import dual_projection_weights, upgrad_weights
from dtp_jax.solvers import project_onto_dual_cone
from tests.solvers.problems import (
    KINDS,
    clustered,
    condition,
    correlated,
    draw,
    independent,
)

# Both rules at once, to compile one program for each number of tasks.
both = jax.jit(
    jax.vmap(
        lambda gramian: (upgrad_weights(gramian), dual_projection_weights(gramian))
    )
)
project = jax.jit(project_onto_dual_cone)


def gramians(rows: np.ndarray) -> jax.Array:
    return jnp.asarray(rows @ rows.swapaxes(-1, -2), jnp.float32)


def enumerated(gramian: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The weights by trying every set of bounds that may be active, in float64."""
    best, found = np.inf, target
    for bits in itertools.product([False, True], repeat=len(target)):
        free = np.array(bits)
        weights = target.copy()
        if free.any():
            held = gramian[np.ix_(free, ~free)] @ target[~free]
            weights[free] = np.linalg.solve(gramian[np.ix_(free, free)], -held)
        if (weights >= target - 1e-9).all():
            value = weights @ gramian @ weights
            if value < best:
                best, found = value, weights
    return found


def conflict(rows: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The least ``<g_t, d> / (|g_t| sum_s |w_s| |g_s|)``, and the least cosine."""
    weights = np.asarray(weights, np.float64)
    direction = weights @ rows
    lengths = np.linalg.norm(rows, axis=1)
    products = rows @ direction / np.where(lengths > 0, lengths, 1)
    total, size = np.abs(weights) @ lengths, np.linalg.norm(direction)
    cosine = float((products / size).min()) if size > 0 else 0.0
    return float((products / max(total, 1e-300)).min()), cosine


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_the_minimum_by_enumeration(num_tasks: int) -> None:
    rng = np.random.default_rng(num_tasks)
    rows = np.stack([draw(independent, num_tasks, 6, seed) for seed in range(40)])
    targets = rng.normal(size=(40, num_tasks)) + 0.5
    exact = rows @ rows.swapaxes(1, 2)
    found = jax.jit(jax.vmap(project))(gramians(rows), jnp.asarray(targets)).weights
    for number in range(40):
        expected = enumerated(exact[number], targets[number]) @ rows[number]
        size = np.linalg.norm(expected)
        size += np.abs(targets[number]) @ np.linalg.norm(rows[number], axis=1)
        distance = np.asarray(found[number], np.float64) @ rows[number] - expected
        assert np.linalg.norm(distance) < 1e-4 * size
        assert (found[number] >= targets[number] - 1e-6).all()


@pytest.mark.parametrize(
    "num_tasks", [2, 3, 8, pytest.param(32, marks=pytest.mark.slow)]
)
def test_no_task_is_conflicted_with(num_tasks: int) -> None:
    sizes = [10 * num_tasks, num_tasks, max(1, num_tasks // 2)]
    rows = [
        draw(kind, num_tasks, size, seed)
        for kind in KINDS
        for size in sizes
        for seed in range(4)
    ]
    stacked = jnp.stack([gramians(matrix) for matrix in rows])
    for weights in both(stacked):
        for matrix, weight in zip(rows, np.asarray(weights), strict=True):
            scaled, cosine = conflict(matrix, weight)
            assert scaled >= -4e-6
            assert cosine >= -1e-4 or condition(matrix) > 1e6


def test_no_task_is_conflicted_with_in_thousands_of_draws() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 10, 24)) + 0.7 * rng.normal(size=(2000, 1, 24))
    rows = rows * rng.choice([-1, 1], (2000, 10, 1))
    rows = rows * 10 ** rng.uniform(-3, 0, (2000, 10, 1))
    rows = rows.astype(np.float32).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=2)
    for weights in both(gramians(rows)):
        weights = np.asarray(weights, np.float64)
        directions = np.einsum("nt,ntp->np", weights, rows)
        products = np.einsum("ntp,np->nt", rows, directions) / lengths
        totals = np.sum(weights * lengths, axis=1, keepdims=True)
        assert (products / totals).min() >= -4e-6
        sizes = np.linalg.norm(directions, axis=1, keepdims=True)
        assert (products / sizes).min() >= -1e-4


@pytest.mark.parametrize(
    ("kind", "seed", "task"),
    [
        # The steps towards these once ran in circles, or one short step ended them.
        (independent, 84, 8),
        (clustered, 425, 9),
        (correlated, 426, 5),
    ],
)
def test_solved_to_rounding_with_more_tasks_than_rank(
    kind: Callable[[np.random.Generator, int, int], np.ndarray], seed: int, task: int
) -> None:
    rows = draw(kind, 20, 10, seed, 0)
    point = project(gramians(rows), jnp.eye(20)[task])
    eps = np.finfo(np.float32).eps
    assert point.residual < 4 * eps
    lengths, weights = np.linalg.norm(rows, axis=1), np.asarray(point.weights, float)
    products = rows @ (weights @ rows) / lengths
    # The Gramian adds its own rounding to what the residual says.
    assert products.min() > -8 * eps * weights @ lengths


def test_more_tasks_than_rank() -> None:
    # Of so many random rows in half as many dimensions, half of the draws lie within
    # one half-space (Wendel, 1962). In the other half no vector agrees with all: the
    # projection is zero, and what is left of it is rounding, which may conflict.
    rows = np.stack([draw(independent, 8, 4, seed, 0) for seed in range(100)])
    lengths = np.linalg.norm(rows, axis=2)
    eps, agreeing = np.finfo(np.float32).eps, np.zeros(100, bool)
    for number, matrix in enumerate(rows):
        units = matrix / lengths[number][:, None]
        target = units.sum(axis=0)
        found = optimize.lsq_linear(units.T, -target, (0, np.inf), "bvls", 1e-14)
        added = np.asarray(found.x)
        agreeing[number] = np.linalg.norm(target + added @ units) > 1e-8
    assert 30 < agreeing.sum() < 70
    for weights in both(gramians(rows)):
        weights = np.asarray(weights, np.float64)
        steps = np.einsum("nt,ntp->np", weights, rows)
        sizes, totals = np.linalg.norm(steps, axis=1), np.sum(weights * lengths, axis=1)
        products = np.einsum("ntp,np->nt", rows, steps) / lengths
        # This holds in any case, and is the same as no conflict where the step is long.
        assert (products.min(axis=1) > -8 * eps * totals).all()
        assert (products.min(axis=1) > -1e-4 * sizes)[agreeing].all()
        assert (sizes < 100 * eps * totals)[~agreeing].all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1280, 160, 128, 100, 64, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_128_tasks(
    kind: Callable[[np.random.Generator, int, int], np.ndarray], size: int
) -> None:
    for decades in (3.0, 12.0):
        rows = draw(kind, 128, size, decades=decades)
        for weights in both(gramians(rows)[None]):
            scaled, cosine = conflict(rows, np.asarray(weights[0]))
            assert scaled >= -4e-6
            assert cosine >= -1e-4 or condition(rows) > 1e6


def test_the_residual_is_what_it_says() -> None:
    for seed in range(6):
        rows = draw(KINDS[seed], 8, 9, seed, decades=6)
        gramian = rows @ rows.T
        point = project(gramians(rows), jnp.eye(8))
        norms = np.sqrt(np.diagonal(gramian))
        for i in range(8):
            weights = np.asarray(point.weights[i], np.float64)
            added = (weights - np.eye(8)[i]) * norms
            slopes = gramian @ weights / norms
            missed = np.abs(np.minimum(added, slopes)).max()
            size = norms[i] + np.abs(added).sum()
            # Rounding of the Gramian counts a few times the machine's epsilon.
            assert missed / size <= float(point.residual[i]) + 2e-6
            assert float(point.residual[i]) < 2e-5


def test_gradients_without_conflict_are_summed() -> None:
    rows = jnp.abs(gramians(draw(independent, 5, 7)[:, :5]))
    weights = both(jnp.stack([jnp.eye(5), rows]))[0]
    np.testing.assert_array_equal(weights, 1)


def test_two_tasks_in_closed_form() -> None:
    gramian = jnp.array([[4.0, -3.0], [-3.0, 9.0]])
    upgrad, dual = both(gramian[None])
    np.testing.assert_allclose(upgrad[0], [1 + 3 / 4, 1 + 3 / 9], rtol=1e-6)
    # The sum has products 1 and 6 with the two: it is its own projection.
    np.testing.assert_allclose(dual[0], [1, 1], rtol=1e-6)
    np.testing.assert_allclose(
        project(gramian, jnp.array([2.0, 0.1])).weights, [2, 6 / 9], rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_degenerate_rows(scale: float) -> None:
    rows = scale * np.array([[1.0, 2.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
    cases = {
        "opposite": rows[[0, 2, 2, 2]],
        "identical": rows[[0, 1, 0, 1]],
        "zero": rows[[3, 3, 3, 3]],
        "one-zero": rows[[0, 1, 0, 3]],
        "opposite-and-zero": rows,
    }
    expected = {"identical": 4, "one-zero": 3}
    for weights in both(jnp.stack([gramians(case) for case in cases.values()])):
        assert np.isfinite(weights).all()
        for (name, case), weight in zip(cases.items(), weights, strict=True):
            direction = np.asarray(weight, np.float64) @ case
            sum_of_rows = expected.get(name, 0) * rows[0]
            np.testing.assert_allclose(direction, sum_of_rows, atol=1e-5 * scale)


def test_the_lengths_of_rows_do_not_matter_for_accuracy() -> None:
    rows = draw(independent, 8, 10, decades=0)
    scales = 10 ** np.linspace(-6, 6, 8)
    targets = jnp.eye(8)
    plain = project(gramians(rows), targets).weights
    scaled = project(gramians(rows * scales[:, None]), targets).weights
    # A projection of a row times c is that of the row, times c.
    ratios = scales[:, None] / scales[None, :]
    np.testing.assert_allclose(scaled, plain * ratios, rtol=2e-4, atol=1e-30)


def test_a_task_without_preference_has_no_influence() -> None:
    gramian = gramians(draw(independent, 4, 5))
    preferences = jnp.array([1.0, 0.0, 3.0, 1.0])
    broken = gramian.at[1].set(jnp.nan).at[:, 1].set(jnp.nan)
    rest = np.array([0, 2, 3])
    for rule in (upgrad_weights, dual_projection_weights):
        weights = rule(broken, preferences)
        expected = rule(gramian[rest][:, rest], preferences[rest])
        np.testing.assert_allclose(weights[rest], expected, rtol=1e-5)
        assert weights[1] == 0
        assert (weights[rest] >= preferences[rest]).all()


def test_float64() -> None:
    with jax.enable_x64(True):
        rows = draw(independent, 8, 8)
        point = project(jnp.asarray(rows @ rows.T), jnp.eye(8))
        assert point.weights.dtype == jnp.float64
        assert float(jnp.max(point.residual)) < 1e-14
        scaled, _ = conflict(rows, np.asarray(point.weights.sum(0)))
        assert scaled > -1e-14


def test_one_compilation_and_no_derivative() -> None:
    gramian = gramians(draw(independent, 3, 5))

    def total(gramian: jax.Array) -> jax.Array:
        return jnp.sum(upgrad_weights(gramian) ** 2)

    np.testing.assert_array_equal(jax.grad(total)(gramian), 0)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"targets must be \[2\] or \[K, 2\].*\[3\]"):
        project_onto_dual_cone(jnp.eye(2), jnp.ones(3))
    with pytest.raises(ValueError, match=r"gramian must be \[T, T\]"):
        project_onto_dual_cone(jnp.ones((2, 3)), jnp.ones(2))
