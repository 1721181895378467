import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients
from dtp_jax.combiners import _grad_drop
from tests.combiner_catalogue import combiners, fixed
from tests.toys import assert_near

ROWS = jax.random.normal(jax.random.key(0), (4, 60))
ONES = jnp.ones(4)
drop_signs = jax.jit(_grad_drop.drop_signs)


def test_the_definition() -> None:
    leaks = np.array([0.0, 0.3, 1.0, 0.5])
    uniform = np.asarray(jax.random.uniform(jax.random.key(1), (60,)), np.float64)
    rows = np.asarray(ROWS, np.float64)
    purity = 0.5 * (1 + rows.sum(axis=0) / np.abs(rows).sum(axis=0))
    expected = np.zeros(60)
    for row, leak in zip(rows, leaks, strict=True):
        mask = (purity > uniform) * (row > 0) + (purity < uniform) * (row < 0)
        expected += (leak + (1 - leak) * mask) * row
    found = drop_signs(
        ROWS, ONES, jnp.asarray(uniform, jnp.float32), jnp.asarray(leaks)
    )
    assert_near(found, expected, rtol=1e-5)


def test_what_agrees_is_kept_whatever_is_drawn() -> None:
    rows = jnp.abs(ROWS).at[:, 0].set(0)
    edge = jnp.where(jnp.arange(60) % 2, 0.0, 1 - 2**-24)
    for sign in (1.0, -1.0):
        found = drop_signs(sign * rows, ONES, edge)
        np.testing.assert_allclose(found, sign * rows.sum(axis=0), rtol=1e-6)


def test_a_leak_of_one_is_the_sum() -> None:
    found = drop_signs(ROWS, ONES, jnp.full(60, 0.4), 1.0)
    assert_near(found, ROWS.sum(axis=0), rtol=1e-4)


def test_signs_are_drawn_by_their_share_and_each_entry_anew() -> None:
    link = combiners.grad_drop(2)
    many = {"a": jnp.zeros(4000), "b": jnp.zeros(4000)}
    rows = {name: jnp.tile(jnp.array([[3.0], [-1.0]]), 4000) for name in many}
    update = jax.jit(link.update)
    found, _ = update(rows, link.init(many), many, key=jax.random.key(0))
    for leaf in found.values():
        assert set(np.unique(leaf)) == {-1.0, 3.0}
        # The positive sign has a share of 3/4; four standard errors are 0.027.
        assert abs(np.mean(leaf == 3.0) - 0.75) < 0.03
    assert np.any(found["a"] != found["b"])
    again, _ = update(rows, link.init(many), many, key=jax.random.key(0))
    np.testing.assert_array_equal(again["a"], found["a"])
    other, _ = update(rows, link.init(many), many, key=jax.random.key(1))
    assert np.any(other["a"] != found["a"])


def test_preferences_multiply_the_gradients() -> None:
    key, params = jax.random.key(0), {"w": jnp.zeros(60), "head": jnp.zeros(60)}
    rows = {"w": ROWS, "head": ROWS}
    gradients = TaskGradients.from_stacked(rows, shared={"w": True, "head": False})
    weights = jnp.array([0.5, 2.0, 0.0, 1.0])
    link = combiners.grad_drop(4, preferences=fixed(weights))
    found, _ = jax.jit(link.update)(gradients, link.init(params), key=key)
    plain = combiners.grad_drop(4)
    scaled = ROWS * weights[:, None]
    update = jax.jit(plain.update)
    expected, _ = update(scaled, plain.init(None), params["w"], key=key)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)
    assert_near(found["head"], scaled.sum(axis=0), rtol=1e-4)


def test_wrong_arguments() -> None:
    for leak in (1.5, {"a": 0.5, "b": -0.1}):
        with pytest.raises(ValueError, match=r"leak must be a number in \[0, 1\]"):
            combiners.grad_drop(["a", "b"], leak=leak)
    link = combiners.grad_drop(4)
    with pytest.raises(ValueError, match=r"grad_drop needs `key`.*fold_in"):
        link.update(ROWS, link.init(None), ROWS[0])
    with pytest.raises(TypeError, match="preferences must be a balancer"):
        combiners.grad_drop(4, preferences="focal")
