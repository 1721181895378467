from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import task_gradients
from tests.combiner_catalogue import combiners, fixed
from tests.toys import assert_near

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5, 3, 8)) * np.array([1e-3, 1.0, 1e3])[:, None]
LOSSES = RNG.uniform(0.1, 10.0, (5, 3))
PARAMS = jnp.zeros(8)


def run(link: Any, rows: Any, losses: Any, **extra_args: Any) -> Any:
    def one(state: Any, step: Any) -> tuple[Any, Any]:
        rows, losses = step
        gradient, state = link.update(rows, state, PARAMS, losses=losses, **extra_args)
        return state, gradient

    steps = jnp.asarray(rows, jnp.float32), jnp.asarray(losses, jnp.float32)
    return jax.jit(lambda steps: jax.lax.scan(one, link.init(PARAMS), steps))(steps)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_definition(sigma: float) -> None:
    weights = np.array([1.0, 2.0, 0.5])
    link = combiners.db_mtl(3, beta=0.8, beta_sigma=sigma, preferences=fixed(weights))
    state, found = run(link, ROWS, LOSSES)
    u = np.zeros((3, 8))
    for index, (rows, losses) in enumerate(zip(ROWS, LOSSES, strict=True)):
        b = 0.8 / (index + 1) ** sigma
        u = b * u + (1 - b) * rows / (losses[:, None] + 1e-8)
        norms = np.linalg.norm(u, axis=1)
        expected = (weights * norms.max() / norms) @ u
        scale = norms.max()
        np.testing.assert_allclose(found[index], expected, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(state.memory.averages, u, rtol=1e-4)


def test_scales_of_losses_do_not_matter() -> None:
    link = combiners.db_mtl(3)
    scales = np.array([1e-2, 10.0, 1e3])
    _, found = run(link, ROWS, LOSSES)
    _, scaled = run(link, ROWS * scales[:, None], LOSSES * scales)
    assert_near(scaled, found, rtol=1e-4)


def test_all_tasks_count_alike_and_a_zero_gradient_not_at_all() -> None:
    rows = jnp.diag(jnp.array([1e-20, 1.0, 1e15, 0.0]))
    link = combiners.db_mtl(4, beta=0.0, eps=1e-30)
    update = jax.jit(link.update)
    updates, _ = update(rows, link.init(rows[0]), rows[0], losses=jnp.ones(4))
    np.testing.assert_allclose(updates, [1e15, 1e15, 1e15, 0.0], rtol=1e-5)


def losses_fn(params: Any) -> dict[str, jax.Array]:
    hidden = jnp.sin(params["trunk"])
    heads = params["heads"].items()
    return {name: jnp.sum((hidden * head - 2.0) ** 2) for name, head in heads}


def test_heads_descend_on_the_logarithms_of_their_losses() -> None:
    params = {
        "trunk": jnp.arange(1.0, 4.0),
        "heads": {"a": jnp.ones(3), "b": 3 * jnp.ones(3)},
    }
    shared = {"trunk": True, "heads": False}
    link = combiners.db_mtl(["a", "b"], shared=shared)

    @jax.jit
    def step(params: Any) -> Any:
        gradients = task_gradients(losses_fn, shared=shared)(params)
        return link.update(gradients, link.init(params), params)

    updates, state = step(params)

    def logarithms(params: Any) -> jax.Array:
        return sum(map(jnp.log, losses_fn(params).values()), start=jnp.zeros(()))

    expected = jax.grad(logarithms)(params)["heads"]
    for name, head in updates["heads"].items():
        np.testing.assert_allclose(head, expected[name], rtol=1e-5)
    assert state.memory.averages["heads"] == {"a": None, "b": None}


def test_losses_that_have_no_logarithm_are_finite() -> None:
    losses = np.array([[0.0, -3.0, 1.0]] * 5)
    _, found = run(combiners.db_mtl(3), ROWS, losses)
    assert np.isfinite(found).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\)"):
        combiners.db_mtl(2, beta=1.0)
    with pytest.raises(ValueError, match=r"eps must be a number in \(0"):
        combiners.db_mtl(2, eps=0.0)
    link = combiners.db_mtl(3)
    with pytest.raises(ValueError, match="db_mtl needs `losses`"):
        link.update(jnp.ones((3, 8)), link.init(PARAMS), PARAMS)
