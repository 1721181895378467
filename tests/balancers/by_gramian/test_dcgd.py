from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients
from tests.toys import assert_near, balance, balancers

KINDS = ["center", "average", "projection"]
rules: Any = {
    kind: jax.jit(
        jax.vmap(lambda g, p, kind=kind: balancers.dcgd_weights(g, p, kind=kind))
    )
    for kind in KINDS
}
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 2, 3)) * np.exp(RNG.uniform(-3, 3, size=(200, 2, 1)))


def by_the_paper(rows: np.ndarray, kind: str) -> np.ndarray:
    first, second = rows
    total = first + second

    def off(vector: np.ndarray, other: np.ndarray) -> np.ndarray:
        return vector - (vector @ other) / (other @ other) * other

    if kind == "center":
        middle = first / np.linalg.norm(first) + second / np.linalg.norm(second)
        return (middle @ total) / (middle @ middle) * middle
    if kind == "projection":
        if total @ first < 0:
            return off(total, first)
        return off(total, second) if total @ second < 0 else total
    if min(total @ first, total @ second) < 0:
        return (off(total, first) + off(total, second)) / 2
    return total


def directions(
    rows: np.ndarray, kind: str, preferences: Any = (1.0, 1.0)
) -> np.ndarray:
    gramians = jnp.asarray(rows @ rows.transpose(0, 2, 1), jnp.float32)
    wanted = jnp.broadcast_to(jnp.array(preferences), gramians.shape[:2])
    weights = np.asarray(rules[kind](gramians, wanted), np.float64)
    return np.einsum("nt,ntp->np", weights, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_directions_of_the_paper(kind: str) -> None:
    found = directions(ROWS, kind)
    expected = np.array([by_the_paper(rows, kind) for rows in ROWS])
    sizes = np.linalg.norm(ROWS, axis=2).max(axis=1)
    assert (np.abs(found - expected).max(axis=1) < 1e-5 * sizes).all()
    assert (np.einsum("ntp,np->nt", ROWS, found) >= -1e-5 * sizes[:, None] ** 2).all()


def test_what_they_are_for_two_tasks() -> None:
    gramians = jnp.asarray(ROWS @ ROWS.transpose(0, 2, 1), jnp.float32)
    for kind, other in (
        ("center", balancers.config_weights),
        ("projection", balancers.dual_projection_weights),
    ):
        weights = np.asarray(jax.jit(jax.vmap(other))(gramians), np.float64)
        expected = np.einsum("nt,ntp->np", weights, ROWS)
        error = np.abs(directions(ROWS, kind) - expected).max(axis=1)
        assert (error < 2e-3 * np.linalg.norm(ROWS, axis=2).max(axis=1)).all()
    weights = np.asarray(jax.vmap(balancers.upgrad_weights)(gramians), np.float64)
    upgrad = np.einsum("nt,ntp->np", weights, ROWS)
    total = ROWS.sum(axis=1)
    outside = np.einsum("ntp,np->nt", ROWS, total).min(axis=1) < 0
    assert 10 < outside.sum() < 190
    assert_near(directions(ROWS, "average")[outside], upgrad[outside] / 2, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_preferences_scale_the_gradients(kind: str) -> None:
    found = directions(ROWS[:20], kind, (2.0, 0.5))
    scaled = ROWS[:20] * np.array([[1.0], [0.25]])
    assert_near(
        found, np.array([by_the_paper(rows, kind) for rows in scaled]), rtol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_gradients(kind: str) -> None:
    a = np.array([3.0, 4.0, 0.0])
    rows = np.array([[a, 0 * a], [a, a], [a, -a], [0 * a, 0 * a], [a, -1e-3 * a]])
    found = directions(rows, kind)
    expected = [a, 2 * a, 0 * a, 0 * a]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found[4] @ a) < 1e-3 * (a @ a)
    one = directions(rows, kind, (1.0, 0.0))
    assert_near(one, rows[:, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_chain(kind: str) -> None:
    link = balance(balancers.dcgd(kind=kind), ["a", "b"])
    rows = jnp.asarray(ROWS[0], jnp.float32)
    params = jnp.zeros(3)

    def step(scale: jax.Array, mask: Any = None) -> Any:
        gradients = TaskGradients.from_stacked(scale * rows, {"a": 1.0, "b": 1.0})
        return link.update(gradients, link.init(params), params, task_mask=mask)[0]

    expected = by_the_paper(ROWS[0], kind)
    assert_near(step(jnp.ones(())), expected, rtol=1e-5)
    mapped = jax.jit(jax.vmap(step))(jnp.array([1.0, 4.0]))
    assert_near(mapped, np.array([expected, 4 * expected]), rtol=1e-5)
    alone = step(jnp.ones(()), {"a": True, "b": False})
    assert_near(alone, rows[0], rtol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        balancers.dcgd(kind="middle")
    with pytest.raises(ValueError, match=r"for two tasks, got 3: .*take config"):
        balancers.dcgd_weights(jnp.eye(3))
