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


def test_labels_out_of_range_are_nan() -> None:
    labels = jnp.array([-1, 0, 2])
    found = losses.softmax_focal_loss(jnp.zeros((3, 2)), labels)
    assert np.isnan(found).tolist() == [True, False, True]


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


def numerical_optimum(loss: Any) -> float:
    """The s at which a loss is smallest, by a fine grid."""
    grid = jnp.linspace(-6, 6, 120_001)
    return float(grid[jnp.argmin(loss(grid))])


@pytest.mark.parametrize("value", [0.05, 1.0, 3.0, 40.0])
def test_optima_of_the_uncertainty_losses(value: float) -> None:
    found = numerical_optimum(lambda s: losses.uncertainty_regression(value, s))
    assert found == pytest.approx(np.log(value), abs=2e-3)
    found = numerical_optimum(lambda s: losses.uncertainty_laplace(value, s))
    assert found == pytest.approx(np.log(value), abs=2e-3)
    found = numerical_optimum(
        lambda s: losses.uncertainty_regression(value, s, positive=True)
    )
    exact = (value + np.sqrt(value**2 + 8 * value)) / 4
    assert found == pytest.approx(np.log(exact), abs=2e-3)


def test_optimum_of_the_uncertain_cross_entropy() -> None:
    logits, label = jnp.array([1.0, 0.0, -1.0]), jnp.array(2)
    value = float(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    def loss(s: jax.Array) -> jax.Array:
        return losses.uncertainty_classification(
            jnp.broadcast_to(logits, (len(s), 3)), jnp.full(len(s), 2), s
        )

    assert numerical_optimum(loss) == pytest.approx(np.log(2 * value), abs=2e-3)


def test_published_values_of_the_positive_form() -> None:
    # At L = 1 the optimum is c^2 = 1 with the value 1/2 + log 2; at L = 3, 2.18614.
    found = losses.uncertainty_regression(1.0, 0.0, positive=True)
    np.testing.assert_allclose(found, 1.1931, atol=5e-5)
    slope = jax.grad(lambda s: losses.uncertainty_regression(3.0, s, positive=True))(
        jnp.log(2.18614)
    )
    np.testing.assert_allclose(slope, 0, atol=1e-5)


def test_the_exact_temperature_is_the_likelihood_of_the_tempered_softmax() -> None:
    logits, label, s = jnp.array([2.0, -1.0, 0.5]), jnp.array(1), jnp.array(0.7)
    tempered = np.asarray(logits) / np.exp(0.7)
    expected = -np.log(np.exp(tempered[1]) / np.exp(tempered).sum())
    found = losses.uncertainty_classification(logits, label, s, exact_temperature=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # The approximation is exact at s = 0, in value.
    zero = jnp.array(0.0)
    np.testing.assert_allclose(
        losses.uncertainty_classification(logits, label, zero),
        losses.uncertainty_classification(logits, label, zero, exact_temperature=True),
        rtol=1e-6,
    )


@pytest.mark.parametrize("s", [-1e30, -11.0, 11.0, 1e30])
@pytest.mark.parametrize("loss", [0.0, 1e30])
def test_log_variances_out_of_bounds_are_drawn_back(s: float, loss: float) -> None:
    for function in (losses.uncertainty_regression, losses.uncertainty_laplace):
        value, slope = jax.value_and_grad(function, 1)(loss, s)
        chex.assert_tree_all_finite((value, slope))
        assert np.sign(slope) == np.sign(s)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.999999])
def test_class_balanced_weights(beta: float) -> None:
    counts = np.array([1.0, 10.0, 500.0, 1e6])
    b = float(np.float32(beta))
    inverse = (1 - b) / (1 - b**counts)
    expected = inverse * 4 / inverse.sum()
    found = losses.class_balanced_weights(jnp.array(counts), beta)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(), 4, rtol=1e-5)


def test_class_balanced_weights_at_the_ends() -> None:
    counts = jnp.array([2, 0, 8])
    found = losses.class_balanced_weights(counts, 0.0)
    np.testing.assert_allclose(found, [1.0, 0.0, 1.0])
    # Towards beta = 1 the weights are inverse to the counts: 8 to 2.
    found = losses.class_balanced_weights(counts, 0.99999)
    np.testing.assert_allclose(found, [1.6, 0.0, 0.4], rtol=1e-3)
    assert losses.class_balanced_weights(jnp.zeros(2), 0.9).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="beta must be"):
        losses.class_balanced_weights(counts, 1.0)


ROBUST = {
    2.0: lambda u: u / 2,
    1.0: lambda u: np.sqrt(u + 1) - 1,
    0.0: lambda u: np.log1p(u / 2),
    -2.0: lambda u: 2 * u / (u + 4),
    -np.inf: lambda u: -np.expm1(-u / 2),
    np.inf: lambda u: np.expm1(u / 2),
    1.5: lambda u: 0.5 / 1.5 * ((u / 0.5 + 1) ** 0.75 - 1),
    -7.0: lambda u: 9 / -7 * ((u / 9 + 1) ** -3.5 - 1),
}


@pytest.mark.parametrize("alpha", ROBUST)
def test_robust_loss_and_its_special_cases(alpha: float) -> None:
    x, scale = np.array([0.0, 1e-4, 0.3, -2.0, 5.0]), 0.8
    found = losses.general_robust_loss(jnp.array(x), alpha, scale)
    np.testing.assert_allclose(found, ROBUST[alpha]((x / scale) ** 2), rtol=1e-5)


@pytest.mark.parametrize("alpha", [*ROBUST, 1e-9, 2 + 1e-7, 300.0, -300.0])
@pytest.mark.parametrize("x", [0.0, 1e-30, 1e3, 1e30])
def test_robust_loss_is_finite_with_its_derivatives(alpha: float, x: float) -> None:
    out = jax.value_and_grad(losses.general_robust_loss, (0, 1, 2))(x, alpha, 1.0)
    chex.assert_tree_all_finite(out)


def test_robust_loss_is_continuous_at_its_special_values() -> None:
    for special in (0.0, 2.0):
        near = losses.general_robust_loss(1.3, special + 1e-4, 1.0)
        at = losses.general_robust_loss(1.3, special, 1.0)
        np.testing.assert_allclose(near, at, rtol=1e-3)
