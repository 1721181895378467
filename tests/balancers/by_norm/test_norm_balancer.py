from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, feature_task_gradients, task_gradients
from tests import toys
from tests.balancers.sequences import over
from tests.toys import assert_near, balance, balancers

SHARES = np.array([3.0, 1.0, 0.5])
ROWS = np.random.default_rng(0).normal(size=(12, 3, 5)) * np.array([[1e-3], [1], [50]])


def of_audiocraft(
    norms: np.ndarray, shares: np.ndarray, decay: float = 0.999, total: float = 1.0
) -> np.ndarray:
    """Its averager holds a sum and a count, both decaying; its epsilon is 1e-12."""
    sums, fix, found = np.zeros(len(shares)), 0.0, []
    for row in norms:
        sums, fix = decay * sums + 8 * row, decay * fix + 8
        found.append(shares / shares.sum() * total / (1e-12 + sums / fix))
    return np.array(found)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_authors_weights_over_a_sequence(decay: float) -> None:
    balancer = balancers.norm_balancer(jnp.array(SHARES), decay=decay, total_norm=2.0)
    weights, _ = over(balancer, np.ones((12, 3)), task_gradients=jnp.asarray(ROWS))
    norms = np.linalg.norm(ROWS, axis=2)
    expected = of_audiocraft(norms, SHARES, decay, 2.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_shares_of_the_gradient() -> None:
    rows = np.tile(ROWS[:1], (3, 1, 1))
    balancer = balancers.norm_balancer(jnp.array(SHARES))
    weights, _ = over(balancer, np.ones((3, 3)), task_gradients=jnp.asarray(rows))
    sizes = weights * np.linalg.norm(rows, axis=2)
    np.testing.assert_allclose(sizes, np.tile(SHARES / 4.5, (3, 1)), rtol=1e-4)


def test_preferences_multiply_the_shares_of_active_tasks() -> None:
    wanted = np.array([2.0, 1.0, 0.0])
    balancer = balancers.norm_balancer(jnp.array(SHARES))
    weights, state = over(
        balancer, np.ones((12, 3)), wanted, task_gradients=jnp.asarray(ROWS)
    )
    norms = np.linalg.norm(ROWS[:, :2], axis=2)
    expected = of_audiocraft(norms, (SHARES * wanted)[:2])
    np.testing.assert_allclose(weights[:, :2], expected, rtol=1e-4)
    np.testing.assert_array_equal(weights[:, 2], 0)
    assert state.norms[2] == state.correction[2] == 0


# A model whose output is four numbers for each of six examples, and eight losses.
X = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
PARAMS = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32)}


def model(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"])


def losses_of(params: Any, y: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    del params
    errors = y - x[:, :1]
    return {"square": jnp.mean(errors**2), "absolute": jnp.mean(jnp.abs(errors))}


@pytest.mark.parametrize("per_example", [False, True])
def test_norms_at_the_output(per_example: bool) -> None:
    balancer = balancers.norm_balancer(
        {"square": 1.0, "absolute": 2.0}, per_example=per_example
    )
    link = balance(balancer, ["square", "absolute"])
    gradients = feature_task_gradients(model, losses_of)(PARAMS, X)
    updates, state = jax.jit(link.update)(gradients, link.init(PARAMS), PARAMS)

    y = model(PARAMS, X)
    weights = {}
    for name, share in (("square", 1 / 3), ("absolute", 2 / 3)):
        at_output = jax.grad(lambda y, name=name: losses_of(None, y, X)[name])(y)
        norms = jnp.linalg.norm(at_output, axis=1)
        norm = jnp.mean(norms) if per_example else jnp.linalg.norm(norms)
        weights[name] = share / norm
        np.testing.assert_allclose(state.task_weights[name], weights[name], rtol=1e-5)

    def total(params: Any) -> jax.Array:
        losses = losses_of(params, model(params, X), X)
        return jnp.stack([weights[name] * losses[name] for name in losses]).sum()

    assert_near(updates, jax.grad(total)(PARAMS), rtol=1e-5)


def test_eight_losses_of_one_output_cost_a_plain_step() -> None:
    shapes = (64, 256), (256, 256), (256, 32)
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=s) / 16, jnp.float32) for s in shapes]
    x = jnp.ones((128, 64))

    def encoder(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]) @ params[2]

    def heads(params: Any, y: jax.Array, x: jax.Array) -> list[jax.Array]:
        del params
        return [jnp.mean(jnp.abs(y - x[:, :32]) ** (1 + i / 8)) for i in range(8)]

    link = balance(balancers.norm_balancer(per_example=True), [0.0] * 8)

    def step(params: Any, state: Any) -> Any:
        gradients = feature_task_gradients(encoder, heads)(params, x)
        return link.update(gradients, state, params)

    def plain(params: Any) -> Any:
        return jax.grad(lambda p: sum(heads(p, encoder(p, x), x)))(params)

    assert (
        toys.cost(step, params, link.init(params))[0]
        <= 1.2 * toys.cost(plain, params)[0]
    )


def test_a_gradient_that_is_not_finite_or_zero() -> None:
    rows = np.ones((3, 2, 4))
    rows[1, 0] = np.nan
    rows[:, 1] = 0
    balancer = balancers.norm_balancer(decay=0.5)
    weights, state = over(balancer, np.ones((3, 2)), task_gradients=jnp.asarray(rows))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[:, 0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(weights[:, 1], 0.5e12, rtol=1e-5)
    np.testing.assert_allclose(state.correction, [0.75, 0.875])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="total_norm must be"):
        balancers.norm_balancer(total_norm=0.0)
    with pytest.raises(ValueError, match="shares must be"):
        balancers.norm_balancer([1.0, -1.0])
    balancer, ones = balancers.norm_balancer(per_example=True), jnp.ones(2)
    losses_fn = task_gradients(lambda w: {"a": w, "b": 2 * w})
    for gradients in (losses_fn(1.0), TaskGradients.from_stacked(jnp.eye(2))):
        with pytest.raises(ValueError, match="need gradients at features"):
            balancer.update(ones, balancer.init(ones), task_gradients=gradients)
    scalars = feature_task_gradients(lambda w: w, lambda w, z: {"a": z, "b": 2 * z})
    with pytest.raises(ValueError, match="first axis of all features"):
        balancer.update(ones, balancer.init(ones), task_gradients=scalars(1.0))
