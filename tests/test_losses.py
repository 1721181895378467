from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import losses

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]


def focal(p: np.ndarray, gamma: float) -> np.ndarray:
    return -((1 - p) ** gamma) * np.log(p)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigmoid_focal_loss_is_its_definition(gamma: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=50) * 4
    labels = rng.integers(0, 2, 50)
    p = 1 / (1 + np.exp(-logits))
    expected = focal(np.where(labels == 1, p, 1 - p), gamma)
    found = losses.sigmoid_focal_loss(jnp.array(logits), labels, gamma)
    # Subnormal losses are flushed to zero.
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-37)
    ours = optax.losses.sigmoid_focal_loss(
        jnp.array(logits), jnp.array(labels), gamma=gamma
    )
    np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_softmax_focal_loss_is_its_definition(gamma: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 7)) * 3
    labels = rng.integers(0, 7, 50)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = focal(p[np.arange(50), labels], gamma)
    found = losses.softmax_focal_loss(jnp.array(logits), jnp.array(labels), gamma)
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-37)


def test_gamma_zero_is_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, labels = jnp.array(rng.normal(size=(9, 4))), jnp.arange(9) % 4
    found = losses.softmax_focal_loss(logits, labels, 0.0)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_two_classes_are_the_binary_loss() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(size=8) * 3)
    pairs = jnp.stack([jnp.zeros(8), logits], axis=1)
    labels = jnp.arange(8) % 2
    np.testing.assert_allclose(
        losses.softmax_focal_loss(pairs, labels),
        losses.sigmoid_focal_loss(logits, labels),
        rtol=1e-5,
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("logit", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_finite_at_saturated_logits(gamma: float, logit: float) -> None:
    def binary(z: Any, g: Any) -> jax.Array:
        return losses.sigmoid_focal_loss(z, 1, g)

    def multi(z: Any, g: Any) -> jax.Array:
        logits = jnp.stack([z, jnp.zeros(()), jnp.full((), -jnp.inf)])
        return losses.softmax_focal_loss(logits, jnp.array(0), g)

    for loss in (binary, multi):
        out = jax.value_and_grad(loss, (0, 1))(jnp.array(logit), jnp.array(gamma))
        chex.assert_tree_all_finite(out)


def test_small_losses_keep_their_digits() -> None:
    # p = 1 - 2e-22 rounds to one, its focal loss is 2e-22 all the same.
    loss = losses.softmax_focal_loss(jnp.array([50.0, 0.0]), jnp.array(0), 0.0)
    np.testing.assert_allclose(loss, np.exp(-50.0), rtol=1e-5)


def test_a_single_class_is_no_loss() -> None:
    def loss(z: jax.Array) -> jax.Array:
        return losses.softmax_focal_loss(jnp.stack([z, -jnp.inf]), jnp.array(0), 0.5)

    assert jax.value_and_grad(loss)(jnp.array(2.0)) == (0.0, 0.0)


def test_low_precision_logits_are_computed_in_float32() -> None:
    loss = losses.sigmoid_focal_loss(jnp.bfloat16(6.0), 1, 1.0)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, focal(1 / (1 + np.exp(-6.0)), 1.0), rtol=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bounded_errors(gamma: float) -> None:
    errors = np.array([0.5, 2.0, 5.0, 9.0])
    found = losses.bounded_error_focal_loss(jnp.array(errors), gamma, scale=10.0)
    np.testing.assert_allclose(found, focal(1 - errors / 10, gamma), rtol=1e-5)
    ends = jnp.array([0.0, 10.0, 20.0])
    value = losses.bounded_error_focal_loss(ends, gamma, scale=10.0)
    np.testing.assert_allclose(value[1:], focal(np.array(0.01), gamma), rtol=1e-5)
    assert float(value[0]) == 0
    slope = jax.grad(
        lambda e: losses.bounded_error_focal_loss(e, gamma, scale=10.0).sum()
    )(ends)
    chex.assert_tree_all_finite(slope)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="gamma must be"):
        losses.sigmoid_focal_loss(jnp.zeros(1), 1, -1.0)
    with pytest.raises(ValueError, match="labels must be integers"):
        losses.softmax_focal_loss(jnp.zeros((1, 2)), jnp.zeros(1))
    with pytest.raises(ValueError, match="scale must be"):
        losses.bounded_error_focal_loss(jnp.zeros(1), scale=0.0)
