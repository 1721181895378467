from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import losses

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]
EPS = float(np.finfo(np.float32).eps)


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


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.999999, 0.9999999, 1 - 1e-8])
def test_class_balanced_weights(beta: float) -> None:
    counts = np.array([1.0, 10.0, 500.0, 1e6])
    inverse = (1 - beta) / (1 - beta**counts)
    expected = inverse * 4 / inverse.sum()
    found = losses.class_balanced_weights(jnp.array(counts), beta)
    # Ten operations, of which none has a larger condition than one.
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)


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


CLASS_LOSSES = {
    "softmax_focal_loss": losses.softmax_focal_loss,
    "uncertainty_classification": lambda logits, labels: (
        losses.uncertainty_classification(logits, labels, 0.4)
    ),
    "exact_temperature": lambda logits, labels: losses.uncertainty_classification(
        logits, labels, 0.4, exact_temperature=True
    ),
}
each_class_loss = pytest.mark.parametrize("name", CLASS_LOSSES)


@each_class_loss
def test_labels_of_any_width_name_their_class(name: str) -> None:
    loss = CLASS_LOSSES[name]
    logits = np.random.default_rng(0).normal(size=300)
    # The class is where the logits say, not at its number modulo the number of classes.
    for label, dtypes in ((10, "int8 uint8 uint16"), (255, "uint8 int16 uint32")):
        # Swapped, it is the first class, which every type can name.
        swapped = logits.copy()
        swapped[[0, label]] = logits[[label, 0]]
        expected = loss(jnp.asarray(swapped), jnp.int32(0))
        for dtype in dtypes.split():
            found = loss(jnp.asarray(logits), jnp.asarray(label, dtype))
            np.testing.assert_allclose(found, expected, rtol=10 * EPS)
    # As many classes as the type has numbers.
    assert np.isfinite(loss(jnp.asarray(logits[:256]), jnp.uint8(255)))


@each_class_loss
def test_a_label_that_is_no_class_is_nan_in_any_width(name: str) -> None:
    for labels in (jnp.uint8([5, 255]), jnp.int8([-1, 5]), np.array([2**32, -(2**40)])):
        found = CLASS_LOSSES[name](jnp.zeros((2, 5)), labels)
        assert np.isnan(found).all()


def test_integer_errors_and_scales_do_not_wrap() -> None:
    # The magnitude of the smallest int8 is not an int8, nor is minus a uint8 one.
    found = losses.bounded_error_focal_loss(jnp.int8(-128), scale=200)
    np.testing.assert_allclose(found, focal(np.array(72 / 200), 2), rtol=10 * EPS)
    found = losses.uncertainty_regression(jnp.int8(3), jnp.uint8(2))
    np.testing.assert_allclose(found, np.exp(-2) * 1.5 + 1, rtol=10 * EPS)
    found = losses.uncertainty_laplace(jnp.int8(3), jnp.uint8(2))
    np.testing.assert_allclose(found, np.exp(-2) * 3 + 2, rtol=10 * EPS)


HALVES = {
    "sigmoid_focal_loss": (lambda x: losses.sigmoid_focal_loss(x, x > 0), "float32"),
    "softmax_focal_loss": (
        lambda x: losses.softmax_focal_loss(x, jnp.int32(1), 0.5),
        "float32",
    ),
    "bounded_error_focal_loss": (
        lambda x: losses.bounded_error_focal_loss(x, scale=7),
        "float32",
    ),
    "uncertainty_regression": (
        lambda x: losses.uncertainty_regression(jnp.exp(x), x, positive=True),
        None,
    ),
    "uncertainty_classification": (
        lambda x: losses.uncertainty_classification(x, jnp.int32(1), x[0]),
        None,
    ),
    "exact_temperature": (
        lambda x: losses.uncertainty_classification(
            x, jnp.int32(1), x[0], exact_temperature=True
        ),
        None,
    ),
    "uncertainty_laplace": (lambda x: losses.uncertainty_laplace(abs(x), x), None),
    "general_robust_loss": (
        lambda x: losses.general_robust_loss(x, 1.5, 0.5),
        "float32",
    ),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_that_of_float32_rounded_once(name: str, dtype: str) -> None:
    function, answer = HALVES[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=500), dtype)

    def wide(x: jax.Array) -> jax.Array:
        return function(x).astype(answer or dtype)

    found = function(x)
    assert found.dtype == (answer or dtype)
    # `exp(x)` of the test is rounded to half precision first.
    if name == "uncertainty_regression":
        expected = losses.uncertainty_regression(
            jnp.exp(x).astype("float32"), x.astype("float32"), positive=True
        ).astype(dtype)
    else:
        expected = wide(x.astype("float32"))
    np.testing.assert_array_equal(found, expected)


def test_many_classes_in_half_precision() -> None:
    # All logits equal: p = 1 / C, which bfloat16 is too short to sum.
    for count in (1000, 10_000):
        zeros, label = jnp.zeros(count, jnp.bfloat16), jnp.int32(7)
        exact = focal(np.array(1 / count), 2)
        found = losses.softmax_focal_loss(zeros, label)
        np.testing.assert_allclose(found, exact, rtol=10 * EPS)
        found = losses.uncertainty_classification(zeros, label, 0.0)
        # Returned in bfloat16: half a unit of its last digit is at most 2^-8.
        np.testing.assert_allclose(float(found), np.log(count), rtol=2**-8)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_small_bounded_errors_keep_their_digits(gamma: float) -> None:
    errors = np.float32([1e-30, 1e-12, 1e-6, 1e-3, 0.3, 0.98])
    found = losses.bounded_error_focal_loss(errors, gamma)
    wide = np.float64(errors)
    expected = -(wide**gamma) * np.log1p(-wide)
    kept = expected > 1e-37
    # A power costs the digits of its exponent, gamma log(error).
    rtol = EPS * (10 + 4 * gamma * np.abs(np.log(wide)))
    error = np.abs(found - expected)
    assert np.all((error <= rtol * expected)[kept])
    half = losses.bounded_error_focal_loss(jnp.bfloat16(0.001), gamma)
    wide = float(jnp.bfloat16(0.001))
    exact = -(wide**gamma) * np.log1p(-wide)
    np.testing.assert_allclose(half, exact, rtol=EPS * (10 + 28 * gamma))


def test_the_slope_of_the_bounded_error_is_that_of_the_definition() -> None:
    errors = np.float32([1e-6, 1e-3, 0.3, 0.9])
    for gamma in (0.0, 0.5, 2.0):
        slope = jax.vmap(
            jax.grad(lambda e, g=gamma: losses.bounded_error_focal_loss(e, g))
        )(errors)
        e = np.float64(errors)
        exact = e**gamma / (1 - e) - gamma * e ** (gamma - 1) * np.log1p(-e)
        np.testing.assert_allclose(slope, exact, rtol=EPS * (20 + 60 * gamma))


B, B1 = jnp.full(8, 0.5), jnp.full((8, 1), 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.softmax_focal_loss(jnp.zeros((8, 5)), jnp.zeros((8, 1), int)),
        lambda: losses.softmax_focal_loss(jnp.zeros((8, 5)), jnp.zeros(8, int), B1),
        lambda: losses.sigmoid_focal_loss(B, B1),
        lambda: losses.sigmoid_focal_loss(jnp.zeros((8, 5)), B1),
        lambda: losses.sigmoid_focal_loss(B, B, B1),
        lambda: losses.bounded_error_focal_loss(B, B1),
        lambda: losses.bounded_error_focal_loss(B, scale=B1),
        lambda: losses.bounded_error_focal_loss(B1, p_min=B),
        lambda: losses.uncertainty_regression(B, B1),
        lambda: losses.uncertainty_regression(B1, 0.0, bound=B),
        lambda: losses.uncertainty_laplace(B1, B),
        lambda: losses.uncertainty_classification(
            jnp.zeros((8, 5)), jnp.zeros((8, 1), int), 0.0
        ),
        lambda: losses.uncertainty_classification(
            jnp.zeros((8, 5)), jnp.zeros(8, int), B1
        ),
        lambda: losses.general_robust_loss(B, 1.0, B1),
        lambda: losses.general_robust_loss(B, B1, 1.0),
        lambda: losses.class_balanced_weights(jnp.ones((8, 5)), 0.9),
        lambda: losses.class_balanced_weights(jnp.ones(8), B1),
    ],
)
def test_shapes_that_would_broadcast_by_mistake_raise(call: Any) -> None:
    with pytest.raises(ValueError, match=r"got .*\[8"):
        call()


def test_scalars_and_sizes_of_one_do_broadcast() -> None:
    for call in (
        lambda: losses.sigmoid_focal_loss(B, 1, 0.5),
        lambda: losses.uncertainty_regression(B, 0.0),
        lambda: losses.uncertainty_regression(3.0, B),
        lambda: losses.uncertainty_laplace(B, jnp.zeros(1)),
        lambda: losses.general_robust_loss(B, 1.0, jnp.ones(1)),
        lambda: losses.uncertainty_classification(jnp.zeros(5), jnp.array(1), B),
        lambda: losses.uncertainty_classification(
            jnp.zeros(5), jnp.array(1), B, exact_temperature=True
        ),
    ):
        assert jax.eval_shape(call).shape == (8,)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_an_excluded_true_class_is_infinite_with_the_slopes_of_the_limit(
    gamma: float,
) -> None:
    def loss(logits: jax.Array, gamma: Any) -> jax.Array:
        return losses.softmax_focal_loss(logits, jnp.array(0), gamma)

    # Up to terms in p, the loss is the difference between the log of the sum over the
    # others and the logit that is left out, which has no slope.
    logits = jnp.array([-jnp.inf, 0.0, 1.0])
    value, (in_logits, in_gamma) = jax.value_and_grad(loss, (0, 1))(logits, gamma)
    rest = np.exp([0.0, 1.0])
    assert value == jnp.inf
    np.testing.assert_allclose(in_logits, [0, *(rest / rest.sum())], rtol=10 * EPS)
    assert in_gamma == 0


MASKED = {
    "softmax": lambda x, s: losses.softmax_focal_loss(x, jnp.array([0, 0]), 0.5),
    "sigmoid": lambda x, s: losses.sigmoid_focal_loss(x[:, 0], 1, 0.5),
    "classification": lambda x, s: losses.uncertainty_classification(
        x, jnp.array([0, 0]), s
    ),
    "exact_temperature": lambda x, s: losses.uncertainty_classification(
        x, jnp.array([0, 0]), s, exact_temperature=True
    ),
    "regression": lambda x, s: losses.uncertainty_regression(-x[:, 0], s),
    "laplace": lambda x, s: losses.uncertainty_laplace(-x[:, 0], s),
}


@pytest.mark.parametrize("name", MASKED)
def test_an_infinite_loss_that_a_mask_leaves_out_leaves_nothing(name: str) -> None:
    @jax.jit
    def gradients(x: jax.Array) -> Any:
        def total(x: jax.Array, s: jax.Array) -> jax.Array:
            mask = jnp.array([True, False])
            return jnp.sum(jnp.where(mask, MASKED[name](x, s), 0))

        return jax.grad(total, (0, 1))(x, jnp.array(0.3))

    rows = jnp.array([[-0.5, 0.0, 1.0], [-jnp.inf, 0.0, 1.0]])
    by_row, by_s = gradients(rows)
    np.testing.assert_array_equal(by_row[1], 0)
    # The other example is as it is next to a harmless one.
    expected_row, expected_s = gradients(rows.at[1, 0].set(0.0))
    np.testing.assert_array_equal(by_row[0], expected_row[0])
    np.testing.assert_array_equal(by_s, expected_s)


def test_the_temperature_has_a_slope_next_to_an_excluded_class() -> None:
    def loss(s: Any) -> jax.Array:
        logits = jnp.array([-jnp.inf, 0.0, 1.0])
        return losses.uncertainty_classification(
            logits, jnp.array(1), s, exact_temperature=True
        )

    # log(1 + exp(t)) with t = exp(-s), whose slope in s is -t sigmoid(t).
    t = np.exp(-0.1)
    value, slope = jax.value_and_grad(loss)(0.1)
    np.testing.assert_allclose(value, np.log1p(np.exp(t)), rtol=4 * EPS)
    np.testing.assert_allclose(slope, -t / (1 + np.exp(-t)), rtol=10 * EPS)
    assert slope == pytest.approx(-0.644, abs=1e-3)


def test_infinite_logits_are_the_limit_of_large_ones() -> None:
    logits = jnp.array([jnp.inf, -jnp.inf, 3e38, -3e38])
    for labels, expected in (
        (jnp.ones(4, int), [0, np.inf, 0, 3e38]),
        (jnp.zeros(4), [np.inf, 0, 3e38, 0]),
    ):
        for gamma in (0.0, 0.5, 2.0):
            value, slope = jax.vmap(
                jax.value_and_grad(losses.sigmoid_focal_loss), (0, 0, None)
            )(logits, labels, gamma)
            np.testing.assert_allclose(value, expected, rtol=EPS)
            sign = np.where(labels > 0, -1, 1)
            np.testing.assert_array_equal(slope, np.where(value > 0, sign, 0))


def test_soft_labels_are_those_of_optax() -> None:
    logits = jnp.linspace(-9, 9, 7)
    found = losses.sigmoid_focal_loss(logits, jnp.full(7, 0.3))
    expected = optax.losses.sigmoid_focal_loss(logits, jnp.full(7, 0.3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("alpha", [-300.0, -7.0, -2.0, -1e-3, 0.0, 0.5, 1.5, -np.inf])
def test_the_slope_of_the_robust_loss_keeps_its_digits(alpha: float) -> None:
    x = np.float32([1e-3, 0.3, 2.0, 6.0, 8.0, 3e3, 1e5])
    gradient = jax.vmap(jax.grad(losses.general_robust_loss, (0, 2)), (0, None, None))
    in_x, in_scale = gradient(x, alpha, 0.5)
    wide, scale = np.float64(x), 0.5
    u = (wide / scale) ** 2
    # The derivative of equation 8, and its limits; the exponent costs digits.
    if alpha == -np.inf:
        log_factor = -u / 2
    else:
        a, b = float(np.float32(alpha)), abs(float(np.float32(alpha)) - 2)
        log_factor = (a / 2 - 1) * np.log1p(u / b)
    expected = wide / scale**2 * np.exp(log_factor)
    kept = expected > 1e-30
    rtol = EPS * (10 + 4 * np.abs(log_factor))
    assert np.all((np.abs(in_x - expected) <= rtol * expected)[kept])
    expected *= wide / scale
    assert np.all((np.abs(-in_scale - expected) <= rtol * expected)[kept])


def test_the_robust_loss_in_float64_has_the_range_of_float64() -> None:
    with jax.enable_x64(True):
        found = losses.general_robust_loss(jnp.float64(20.0), jnp.inf, 1.0)
        np.testing.assert_allclose(found, np.expm1(200.0), rtol=1e-12)
        found = losses.general_robust_loss(jnp.float64(1e30), 1.0, 1.0)
        np.testing.assert_allclose(found, 1e30, rtol=1e-12)


def test_nothing_relies_on_rank_promotion_or_passes_through_nan() -> None:
    logits, labels = jnp.array([[0.5, -jnp.inf, 2.0]]), jnp.array([2])
    x, e = jnp.array([0.3]), jnp.array([0.0])
    calls = [
        lambda x: losses.sigmoid_focal_loss(x, 1),
        lambda x: losses.sigmoid_focal_loss(x + jnp.inf, labels),
        lambda x: losses.softmax_focal_loss(logits + x[:, None], labels),
        lambda x: losses.softmax_focal_loss(x[:, None], jnp.array([0])),
        lambda x: losses.bounded_error_focal_loss(e * x),
        lambda x: losses.uncertainty_regression(x, 0.0, positive=True),
        lambda x: losses.uncertainty_laplace(x, x),
        lambda x: losses.uncertainty_classification(logits, labels, x),
        lambda x: losses.uncertainty_classification(
            logits, labels, x, exact_temperature=True
        ),
        lambda x: losses.class_balanced_weights(x, 0.99999999),
        lambda x: losses.class_balanced_weights(e * x, 0.0),
        *(
            lambda x, a=alpha: losses.general_robust_loss(x, a, 2.0)
            for alpha in (-jnp.inf, -2.0, 0.0, 2.0, jnp.inf)
        ),
    ]
    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        for call in calls:
            value, slope = jax.value_and_grad(lambda x, f=call: f(x).sum())(x)
            assert not np.isnan([value, slope[0]]).any()
