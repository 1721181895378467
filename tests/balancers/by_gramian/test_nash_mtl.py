from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients
from dtp_jax._core import linalg
from dtp_jax.balancers.by_gramian import _nash_mtl
from dtp_jax.balancers.by_gramian._nash_mtl import nash_mtl_weights
from dtp_jax.curricula import every_k
from tests.toys import assert_near, balance, balancers

# The types of optax do not admit a TaskGradients.
nash_mtl: Any = _nash_mtl.nash_mtl


def rows_of(seed: int = 0, decades: float = 1.0) -> jax.Array:
    """Gradients [4, 9] whose lengths spread over some decades."""
    rng = np.random.default_rng(seed)
    lengths = 10 ** rng.uniform(-decades / 2, decades / 2, (4, 1))
    return jnp.asarray(rng.normal(size=(4, 9)) * lengths, jnp.float32)


def direction(rows: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    return nash_mtl_weights(linalg.gram(rows), *args, **kwargs) @ rows


def test_every_task_gets_its_share() -> None:
    for seed, preferences in enumerate([[1, 1, 1, 1], [0.5, 2, 1, 0.2]]):
        rows, shares = rows_of(seed, decades=4), jnp.array(preferences, jnp.float32)
        weights = nash_mtl_weights(linalg.gram(rows), shares, max_norm=None)
        gains = rows @ (weights @ rows)
        np.testing.assert_allclose(weights * gains, shares, rtol=1e-4)


@pytest.mark.parametrize("decades", [0, 6])
def test_the_norm_is_known(decades: float) -> None:
    rows, preferences = rows_of(decades=decades), jnp.array([0.5, 2.0, 1.0, 0.2])
    norms = [
        jnp.linalg.norm(direction(rows, preferences, max_norm=max_norm))
        for max_norm in (None, 1.0, 0.01, 100.0)
    ]
    exact = float(jnp.sum(preferences)) ** 0.5
    np.testing.assert_allclose(norms, [exact, 1.0, 0.01, exact], rtol=1e-4)
    # Weights that are small already are not scaled up.
    small = jnp.linalg.norm(direction(rows, 1e-4 * preferences))
    np.testing.assert_allclose(small, 1e-2 * exact, rtol=1e-4)


def test_max_norm_only_scales() -> None:
    gramian = linalg.gram(rows_of())
    exact = nash_mtl_weights(gramian, max_norm=None)
    np.testing.assert_allclose(nash_mtl_weights(gramian), exact / 2, rtol=1e-4)


def test_units_of_the_losses_do_not_matter() -> None:
    rows = rows_of()
    scaled = rows * jnp.array([1e-6, 1.0, 3.0, 1e6])[:, None]
    assert_near(direction(scaled), direction(rows), rtol=1e-4)


def test_a_zero_gradient_takes_no_part() -> None:
    rows = rows_of().at[2].set(0)
    weights = nash_mtl_weights(linalg.gram(rows))
    expected = nash_mtl_weights(linalg.gram(rows), jnp.array([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(weights, expected)
    gradients = TaskGradients.from_stacked(rows)
    ones = jnp.ones(4)
    weights, _ = nash_mtl().update(ones, (), ones, task_gradients=gradients)
    # Active, although it does not count.
    assert 0 < float(weights[2]) < 1e-29


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_stationary_point_stops_the_descent(max_norm: Any) -> None:
    rows = rows_of()
    rows = rows.at[1].set(-2 * rows[3])
    weights = nash_mtl_weights(linalg.gram(rows), max_norm=max_norm)
    np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[1] / weights[3], 0.5, rtol=1e-3)
    sizes = jnp.linalg.norm(weights[:, None] * rows, axis=1)
    assert float(jnp.linalg.norm(weights @ rows)) < 1e-3 * float(jnp.max(sizes))


def test_all_zero_gradients() -> None:
    weights = nash_mtl_weights(jnp.zeros((4, 4)))
    np.testing.assert_array_equal(weights, 0)


def test_max_norm_may_be_scheduled() -> None:
    injected: Any = optax.inject_hyperparams(nash_mtl)
    link = injected(max_norm=lambda step: 1.0 / (step + 1))
    rows = rows_of()
    gradients = TaskGradients.from_stacked(rows)
    state = link.init(jnp.ones(4))
    for norm in (1.0, 0.5):
        weights, state = link.update(jnp.ones(4), state, task_gradients=gradients)
        np.testing.assert_allclose(jnp.linalg.norm(weights @ rows), norm, rtol=1e-4)


def test_between_refreshes_the_norm_is_that_of_the_gradients_now() -> None:
    balancer: Any = every_k(nash_mtl(max_norm=1.0), 2)
    ones, rows = jnp.ones(4), rows_of()
    state, norms = balancer.init(ones), []
    for scale in (1.0, 3.0, 3.0):
        gradients = TaskGradients.from_stacked(scale * rows)
        weights, state = balancer.update(ones, state, task_gradients=gradients)
        norms.append(jnp.linalg.norm(scale * weights @ rows))
    np.testing.assert_allclose(norms, [1, 3, 1], rtol=1e-4)


def test_priorities_bargain() -> None:
    rows, kpis = rows_of(), jnp.array([0.9, 0.1, 0.5, 0.4])
    chain: Any = optax.chain(balancers.focal(), nash_mtl(max_norm=None))
    ones, gradients = jnp.ones(4), TaskGradients.from_stacked(rows)
    state = chain.init(ones)
    weights, _ = chain.update(ones, state, kpis=kpis, task_gradients=gradients)
    expected = -((1 - kpis) ** 2) * jnp.log(kpis)
    gains = rows @ (weights @ rows)
    np.testing.assert_allclose(weights * gains, expected, rtol=2e-3)


def test_scaled_heads_are_the_default() -> None:
    params = {"trunk": jnp.zeros(4), "head": jnp.zeros(())}
    trunk = jnp.diag(jnp.array([2.0, 0.5, 1.0, 1.0]))
    gradients = TaskGradients.from_stacked(
        {"trunk": trunk, "head": jnp.ones(4)}, shared={"trunk": True, "head": False}
    )
    link = balance(nash_mtl(max_norm=None), 4)
    updates, _ = link.update(gradients, link.init(params), params)
    np.testing.assert_allclose(updates["trunk"], 1, rtol=1e-5)
    np.testing.assert_allclose(updates["head"], 0.5 + 2 + 1 + 1, rtol=1e-5)


def test_wrong_arguments() -> None:
    for wrong in (nash_mtl, lambda **kwargs: nash_mtl_weights(jnp.eye(2), **kwargs)):
        with pytest.raises(ValueError, match=r"max_norm must be a number in \(0, inf"):
            wrong(max_norm=0.0)
    ones = jnp.ones(2)
    with pytest.raises(ValueError, match="nash_mtl needs `task_gradients`"):
        nash_mtl().update(ones, (), ones)
