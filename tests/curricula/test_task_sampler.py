from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import focal_weights
from tests.toys import assert_near, balancers, curricula

KPIS = np.array([0.95, 0.2, 0.5, 0.8, 0.05])


def focal(**settings: Any) -> Any:
    return curricula.task_sampler(5, balancers.focal(gamma=1.0, alpha=0.5), **settings)


def test_kpis_of_tasks_that_were_not_drawn_stay() -> None:
    sampler = focal(k=2)
    state = sampler.init()
    means = np.full(5, np.nan)
    rng = np.random.default_rng(0)
    for _ in range(20):
        places = rng.choice(5, 2, replace=False)
        found = rng.uniform(size=2)
        state = sampler.observe(state, places, kpis=found)
        first = np.isnan(means[places])
        means[places] = np.where(first, found, 0.5 * means[places] + 0.5 * found)
    np.testing.assert_allclose(state.balancer.kpis.mean, means, rtol=1e-5)
    assert_near(state.weights, focal_weights(jnp.asarray(means), 1.0), rtol=1e-5)
    assert int(state.counts.sum()) == 40


def test_who_was_never_seen_comes_first() -> None:
    sampler = focal(k=1)
    state = sampler.init()
    np.testing.assert_array_equal(state.weights, 1)
    state = sampler.observe(state, [1], kpis=[0.2])
    largest = focal_weights(jnp.array(0.2), 1.0)
    np.testing.assert_allclose(state.weights, largest, rtol=1e-6)
    state = sampler.observe(state, [0], kpis=[0.95])
    assert state.weights[0] < 0.01 < state.weights[1] == state.weights[2]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0])
def test_draws_follow_the_weights(uniform: float) -> None:
    sampler = focal(k=1, uniform=uniform)
    state = sampler.observe(sampler.init(), np.arange(5), kpis=KPIS)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(jax.vmap(sampler.draw, (None, 0)))(state, keys)
    shares = np.bincount(drawn.indices.ravel(), minlength=5) / 20_000
    weights = np.asarray(focal_weights(jnp.asarray(KPIS), 1.0), np.float64)
    expected = (1 - uniform) * weights / weights.sum() + uniform / 5
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / 20_000))


def test_a_training_in_one_program_reaches_who_is_behind() -> None:
    # Each visit of a task lifts its success by a tenth of what is left.
    sampler = focal(k=2, uniform=0.2)

    def step(carry: Any, key: jax.Array) -> Any:
        success, state = carry
        places = sampler.draw(state, key).indices
        success = success.at[places].add(0.1 * (1 - success[places]))
        state = sampler.observe(state, places, kpis=success[places])
        return (success, state), places

    start = jnp.asarray(KPIS, jnp.float32), sampler.init()
    keys = jax.random.split(jax.random.key(1), 60)
    (success, state), places = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    visits = np.bincount(np.asarray(places).ravel(), minlength=5)
    assert visits[4] > 2 * visits[0]
    assert success.min() > 0.6
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(sampler.init(), data)
    for now, then in zip(
        jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(now, then)


def test_losses_of_named_tasks_and_a_chain() -> None:
    chain = optax.chain(balancers.inverse_losses(num_steps=1), balancers.constant(2.0))
    sampler = curricula.task_sampler(["a", "b", "c"], chain, 1)
    state = sampler.observe(sampler.init(), [2], losses=[4.0])
    state = sampler.observe(state, [0], losses=[0.5])
    np.testing.assert_allclose(state.weights, [4.0, 4.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(state.losses, [0.5, 1.0, 4.0])
    # What is not known does not count.
    same = sampler.observe(state, [0], losses=[np.nan])
    np.testing.assert_array_equal(same.counts, [1, 0, 1])
    np.testing.assert_array_equal(same.weights, state.weights)


def test_loading_ahead_on_the_host() -> None:
    sampler = focal(k=2)
    state = sampler.observe(sampler.init(), np.arange(5), kpis=KPIS)
    keys = jax.random.split(jax.random.key(3), 4)

    def loader() -> Any:
        for key in keys:
            yield [
                int(task) for task in jax.device_get(sampler.draw(state, key).indices)
            ]

    batches = list(loader())
    assert all(len(set(batch)) == 2 for batch in batches)
    assert batches == [sampler.draw(state, key).indices.tolist() for key in keys]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="k must be at most the number of tasks, 5"):
        focal(k=6)
    with pytest.raises(ValueError, match="uniform must be"):
        focal(k=1, uniform=2.0)
    sampler = focal(k=2)
    with pytest.raises(ValueError, match=r"kpis and indices must both be \[k\]"):
        sampler.observe(sampler.init(), [0, 1], kpis=[0.5])
    with pytest.raises(ValueError, match="focal needs `kpis`"):
        sampler.observe(sampler.init(), [0, 1], losses=[0.5, 1.0])
