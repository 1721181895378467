from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_gramian import _imtl_g
from tests.solvers import problems
from tests.toys import balance

imtl_g: Any = _imtl_g.imtl_g
rule = jax.jit(_imtl_g.imtl_g_weights)
ONES = jnp.ones(4)


def gram(rows: Any) -> jax.Array:
    rows = np.asarray(rows, np.float64)
    return jnp.asarray(rows @ rows.T, jnp.float32)


def projections(rows: np.ndarray, weights: Any) -> np.ndarray:
    d = np.asarray(weights, np.float64) @ rows
    return rows @ d / np.linalg.norm(rows, axis=1)


@pytest.mark.parametrize("decades", [0, 3, 12])
def test_projections_in_proportion_to_the_preferences(decades: int) -> None:
    for seed in range(3):
        rows = problems.draw(problems.correlated, 4, 20, seed, decades)
        preferences = jnp.array([1.0, 2.0, 0.5, 1.0])
        weights = rule(gram(rows), preferences)
        np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-4)
        found = projections(rows, weights) / np.asarray(preferences)
        np.testing.assert_allclose(found, found[0], rtol=1e-3)


def test_the_closed_form_of_the_paper() -> None:
    # alpha_2.. = g_1 U' (D U')^-1, with D = g_1 - g_t and U = u_1 - u_t.
    rows = problems.draw(problems.independent, 4, 9, 5, 1)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    differences, turns = rows[0] - rows[1:], units[0] - units[1:]
    others = rows[0] @ turns.T @ np.linalg.inv(differences @ turns.T)
    expected = np.append(1 - others.sum(), others)
    np.testing.assert_allclose(rule(gram(rows), ONES), expected, rtol=1e-4)


def test_lengths_do_not_change_the_direction() -> None:
    rows = problems.draw(problems.independent, 4, 20, 1, 0)
    d = np.asarray(rule(gram(rows), ONES)) @ rows
    scaled = rows * np.array([[1e-6], [1.0], [1e3], [1e6]])
    other = np.asarray(rule(gram(scaled), ONES), np.float64) @ scaled
    np.testing.assert_allclose(
        other / np.linalg.norm(other), d / np.linalg.norm(d), atol=1e-5
    )


def test_all_tasks_may_get_worse_as_in_the_paper() -> None:
    # The short gradient lies between the two long ones, and further out than their sum.
    rows = np.array([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [0.05, 0.0, 0.01]])
    weights = rule(gram(rows), jnp.ones(3))
    np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-4)
    found = projections(rows, weights)
    np.testing.assert_allclose(found, found[0], rtol=1e-2)
    coefficients = np.linalg.solve(rows @ rows.T, np.linalg.norm(rows, axis=1))
    assert np.sign(found[0]) == np.sign(coefficients.sum()) == -1


def test_dependent_gradients_share_their_weight() -> None:
    a, b = problems.draw(problems.independent, 2, 9, 2, 0)
    alone = np.asarray(rule(gram([a, b, 0 * a, 0 * a]), ONES))
    weights = np.asarray(rule(gram([a, b, a, 0 * a]), ONES))
    np.testing.assert_allclose(weights[[0, 2]], alone[0] / 2, rtol=1e-3)
    np.testing.assert_allclose(weights[[1, 3]], alone[[1, 3]], rtol=1e-3)


def test_where_the_sum_is_zero_lengths_are_equal() -> None:
    a = problems.draw(problems.independent, 1, 9, 3, 0)[0]
    weights = rule(gram([a, -4 * a, 0 * a, 0 * a]), ONES)
    np.testing.assert_allclose(weights, [0.8, 0.2, 0, 0], atol=1e-5)
    weights = rule(jnp.zeros((4, 4)), jnp.array([1.0, 2.0, 0.0, 1.0]))
    np.testing.assert_allclose(weights, [0.25, 0.5, 0, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(rule(jnp.eye(4), jnp.zeros(4)), 0)


def test_rows_at_hand_save_the_digits_that_the_gramian_loses() -> None:
    rows = np.stack(
        [problems.draw(problems.near_parallel, 4, 20, seed, 0) for seed in range(50)]
    ).astype(np.float32)
    exact, eps = np.abs(rows.astype(np.float64)), np.finfo(np.float32).eps

    def step(rows: jax.Array) -> jax.Array:
        gradients = TaskGradients.from_stacked(rows)
        return imtl_g().update(ONES, (), task_gradients=gradients)[0]

    weights = jax.jit(jax.vmap(step))(jnp.abs(jnp.asarray(rows)))
    for matrix, found in zip(exact, np.asarray(weights, np.float64), strict=True):
        norms = np.linalg.norm(matrix, axis=1)
        units = matrix / norms[:, None]
        coefficients = np.linalg.solve(units @ units.T, np.ones(4)) / norms
        expected = coefficients / coefficients.sum() @ matrix
        values = np.linalg.svd(units, compute_uv=False)
        cancelled = np.abs(coefficients).sum() / abs(coefficients.sum())
        bound = 16 * eps * cancelled * values[0] / values[-1]
        error = np.linalg.norm(found @ matrix - expected) / np.linalg.norm(expected)
        assert error < bound


def test_the_whole_imtl_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    trunk, head = rng.normal(size=(3, 5)), rng.normal(size=3)
    scales = np.array([0.3, -1.0, 0.5])
    names = ("a", "b", "c")

    def losses_fn(params: Any) -> Any:
        found = {}
        for number, name in enumerate(names):
            loss = jnp.sum(jnp.asarray(trunk[number]) * params["trunk"]) + 2.0
            loss += head[number] * params["heads"][name]
            s = params["log_scales"][name]
            found[name] = jnp.exp(s) * loss - s
        return found

    params = {
        "trunk": jnp.zeros(5),
        "heads": dict.fromkeys(names, 0.0),
        "log_scales": dict(zip(names, scales.tolist(), strict=True)),
    }
    shared = {"trunk": True, "heads": False, "log_scales": False}
    link = balance(imtl_g(), names, heads="preferences")
    gradients = task_gradients(losses_fn, shared=shared)(params)
    updates, _ = link.update(gradients, link.init(params), params)

    # Its algorithm: alpha from the gradients of the scaled losses by the closed form;
    # the heads and the scales follow their own gradients.
    scaled = np.exp(scales)[:, None] * trunk
    units = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    differences, turns = scaled[0] - scaled[1:], units[0] - units[1:]
    others = scaled[0] @ turns.T @ np.linalg.inv(differences @ turns.T)
    alpha = np.append(1 - others.sum(), others)
    np.testing.assert_allclose(updates["trunk"], alpha @ scaled, rtol=1e-5)
    of_heads = [updates["heads"][name] for name in names]
    np.testing.assert_allclose(of_heads, np.exp(scales) * head, rtol=1e-6)
    of_scales = [updates["log_scales"][name] for name in names]
    np.testing.assert_allclose(of_scales, np.exp(scales) * 2.0 - 1, rtol=1e-6)
    # The chain asks for unequal projections instead.
    weights = rule(jnp.pad(gram(trunk), (0, 1)), jnp.append(np.exp(scales), 0.0))
    found = projections(trunk, weights[:3])
    np.testing.assert_allclose(found / found[0], np.exp(scales - scales[0]), rtol=1e-4)


def test_preferences_of_any_size() -> None:
    rows = problems.draw(problems.independent, 4, 9, 4, 1)
    expected = rule(gram(rows), ONES)
    for size in (1e-37, 1e30):
        found = rule(gram(rows), jnp.full(4, size))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    tiny = rule(gram(rows), ONES.at[1].set(1e-30))
    assert jnp.isfinite(tiny).all()
    np.testing.assert_allclose(projections(rows, tiny)[1], 0, atol=1e-5)


def test_float64_and_missing_gradients() -> None:
    with jax.enable_x64(True):
        weights = _imtl_g.imtl_g_weights(jnp.diag(jnp.array([4.0, 1.0, 1.0])))
        np.testing.assert_allclose(weights, np.array([1, 2, 2]) / 5, rtol=1e-14)
    with pytest.raises(ValueError, match="imtl_g needs `task_gradients`"):
        imtl_g().update(ONES, (), ONES)
