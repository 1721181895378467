import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.on_weights import _random
from tests import devices
from tests.balancers.sequences import over

random: Any = _random.random
KEY = jax.random.key(3)
STEPS = 1000


@functools.cache
def seeded() -> tuple[np.ndarray, Any]:
    """The weights of many steps, on losses that must not matter."""
    losses = np.random.default_rng(0).normal(size=(STEPS, 4)) * 1e30
    return over(random(seed=0), losses)


@functools.partial(jax.jit, static_argnames="total")
def step(
    preferences: jax.Array, key: Any, seed: Any = None, total: Any = "sum_to_T"
) -> jax.Array:
    balancer = random(total=total, seed=seed)
    return balancer.update(preferences, balancer.init(preferences), key=key)[0]


def drawn(preferences: Any, key: Any = KEY, **arguments: Any) -> np.ndarray:
    """The weights of one step; short vectors are filled up with absent tasks."""
    preferences = jnp.asarray([*preferences, *[0] * (5 - len(preferences))], float)
    return np.asarray(step(preferences, key, **arguments))


def test_weights_are_the_softmax_of_standard_normal_numbers() -> None:
    weights, state = seeded()
    assert int(state.step) == STEPS
    np.testing.assert_allclose(weights.sum(axis=1), 4, rtol=1e-5)
    # Differences of logarithms are differences of the normal numbers, of variance 2.
    # The bounds are four standard deviations of the estimates.
    logs = np.log(weights)
    for first, second in ((0, 1), (1, 2), (2, 3), (3, 0)):
        difference = logs[:, first] - logs[:, second]
        assert abs(difference.mean()) < 4 * np.sqrt(2 / STEPS)
        assert abs(difference.var() - 2) < 4 * 2 * np.sqrt(2 / STEPS)
        # The draws of one step say nothing of the next.
        products = difference[1:] * difference[:-1]
        assert abs(products.mean()) < 4 * 2 / np.sqrt(STEPS)


def test_equal_on_average() -> None:
    weights, _ = seeded()
    error = weights.std(axis=0) / np.sqrt(STEPS)
    assert (np.abs(weights.mean(axis=0) - 1) < 4 * error).all()


def test_a_restored_state_goes_on() -> None:
    expected, _ = seeded()
    ones = jnp.ones(4)
    state = _random.RandomState(jnp.array(600, jnp.int32))
    weights, new = random(seed=0).update(ones, state, ones)
    np.testing.assert_allclose(weights, expected[600], rtol=1e-6)
    assert int(new.step) == 601


def test_the_same_key_or_seed_decides_the_same() -> None:
    expected = drawn(np.ones(5))
    np.testing.assert_array_equal(drawn(np.ones(5)), expected)
    np.testing.assert_array_equal(drawn(np.ones(5), jax.random.PRNGKey(3)), expected)
    assert (drawn(np.ones(5), jax.random.key(4)) != expected).all()
    # With a seed the key is not read.
    by_seed = drawn(np.ones(5), seed=7)
    np.testing.assert_array_equal(drawn(np.ones(5), jax.random.key(4), seed=7), by_seed)
    assert (drawn(np.ones(5), seed=8) != by_seed).all()


def test_every_device_decides_the_same() -> None:
    def on_one(preferences: jax.Array, key: jax.Array) -> jax.Array:
        return step(preferences, key)[None]

    each = jax.shard_map(
        on_one,
        mesh=devices.mesh("device"),
        in_specs=(jax.P(), jax.P()),
        out_specs=jax.P("device"),
        check_vma=False,
    )
    found = np.asarray(jax.jit(each)(jnp.ones(5), KEY))
    np.testing.assert_allclose(found, np.tile(drawn(np.ones(5)), (8, 1)), rtol=1e-6)


def test_preferences_multiply_and_absent_tasks_take_no_draw() -> None:
    preferences = np.array([0.5, 3.0, 1e-30])
    found = drawn(preferences)[:3]
    np.testing.assert_allclose(found, preferences * drawn(np.ones(3))[:3], rtol=1e-6)
    among = drawn([0.0, 0.5, 0.0, 3.0, 1e-30])
    assert among[[0, 2]].tolist() == [0, 0]
    np.testing.assert_allclose(among[[1, 3, 4]], found, rtol=1e-6)


def test_sums() -> None:
    weights = np.asarray(step(jnp.ones(64), KEY))
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 64, rtol=1e-5)
    expected = drawn(np.ones(5)) / 5
    np.testing.assert_allclose(drawn(np.ones(5), total="sum_to_1"), expected, 1e-6)
    for total in ("sum_to_T", "sum_to_1"):
        np.testing.assert_allclose(drawn([2.0], total=total), [2, 0, 0, 0, 0])
        np.testing.assert_array_equal(drawn([], total=total), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random(total="mean"), "total must be 'sum_to_T' or 'sum_to_1'"),
        (lambda: random(seed=-1), "seed must be an integer of at least 0"),
        (lambda: random(seed=0.5), "seed must be an integer of at least 0"),
        (lambda: drawn([1.0], None), r"random needs `key`.*random\(seed=0\)"),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
