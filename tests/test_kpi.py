from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import (
    KpiState,
    combine_losses,
    focal_weights,
    init_kpis,
    update_kpis,
)
from dtp_jax._core.layout import layout_of

# -(1 - k)**gamma * log(k), evaluated by hand from the definition to six digits.
KPIS = [1e-4, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
TABLE = {
    0.0: "9.21034 4.60517 2.99573 2.30259 1.38629 0.69315 0.28768 0.10536 0.01005",
    0.5: "9.20988 4.58209 2.91988 2.18442 1.20057 0.49013 0.14384 0.03332 0.00101",
    1.0: "9.20942 4.55912 2.84595 2.07233 1.03972 0.34657 0.07192 0.01054 1.005e-4",
    2.0: "9.20850 4.51353 2.70365 1.86509 0.77979 0.17329 0.01798 0.00105 1.005e-6",
    5.0: "9.20574 4.37947 2.31804 1.35965 0.32897 0.02166 0.00028 1.05e-6 1.0e-12",
}
GAMMAS = sorted(TABLE)


def definition(kpi: Any, gamma: float) -> np.ndarray:
    kpi = np.asarray(kpi, np.float64)
    return -((1 - kpi) ** gamma) * np.log(kpi)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_weights_reproduce_the_table(gamma: float) -> None:
    found = focal_weights(jnp.array(KPIS), gamma, kpi_min=1e-5)
    # The table is printed with at least three significant digits ...
    table = [float(number) for number in TABLE[gamma].split()]
    np.testing.assert_allclose(found, table, rtol=6e-3, atol=6e-6)
    # ... and its formula holds to float32 accuracy at the float32 values of the KPIs.
    exact = definition(np.array(KPIS, np.float32), gamma)
    np.testing.assert_allclose(found, exact, rtol=5e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_derivatives_match_finite_differences(gamma: float) -> None:
    kpis, step = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98]), 1e-6
    by_kpi = jax.vmap(jax.grad(focal_weights), (0, None))(jnp.array(kpis), gamma)
    slope = (definition(kpis + step, gamma) - definition(kpis - step, gamma)) / 2 / step
    np.testing.assert_allclose(by_kpi, slope, rtol=2e-4, atol=1e-7)

    by_gamma = jax.vmap(jax.grad(focal_weights, 1), (0, None))(jnp.array(kpis), gamma)
    slope = (definition(kpis, gamma + step) - definition(kpis, gamma - step)) / 2 / step
    np.testing.assert_allclose(by_gamma, slope, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kpi", [0.0, 1e-30, 1.0 - 6e-8, 1.0])
def test_finite_at_the_ends(gamma: float, kpi: float) -> None:
    value = focal_weights(jnp.array(kpi), gamma)
    slopes = jax.grad(lambda k, g: focal_weights(k, g), (0, 1))(kpi, gamma)
    chex.assert_tree_all_finite((value, slopes))
    if kpi == 1.0:
        assert float(value) == 0
        assert not np.signbit(value)
        # The derivative from the left, -1 for gamma = 0 and 0 above.
        assert float(slopes[0]) == (-1.0 if gamma == 0 else 0.0)
    if kpi == 0.0:
        np.testing.assert_allclose(value, definition(0.01, gamma), rtol=1e-6)


def test_weights_fall_with_kpi_and_with_gamma() -> None:
    kpis = jnp.linspace(0.02, 0.999, 200)
    grid = jnp.stack([focal_weights(kpis, gamma) for gamma in (0.0, 0.3, 1.0, 4.0)])
    assert (jnp.diff(grid, axis=1) < 0).all()
    assert (jnp.diff(grid, axis=0) < 0).all()


def test_gamma_per_task() -> None:
    kpis = {"b": jnp.array(0.5), "a": jnp.array(0.5)}
    weights = focal_weights(kpis, {"b": 2.0, "a": 1.0})
    np.testing.assert_allclose(weights["a"], definition(0.5, 1.0), rtol=1e-6)
    np.testing.assert_allclose(weights["b"], definition(0.5, 2.0), rtol=1e-6)


@pytest.mark.parametrize("gamma", [[2.0, 1.0], np.array([2.0, 1.0])])
def test_a_list_of_gammas_is_for_kpis_in_one_array(gamma: Any) -> None:
    found = focal_weights(jnp.array([0.5, 0.5]), gamma)
    expected = [definition(0.5, 2.0), definition(0.5, 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"by name, {'a': \.\.\., 'b': \.\.\.}; got"):
        focal_weights({"b": 0.5, "a": 0.5}, gamma)


def test_gamma_broadcasts_against_an_array() -> None:
    kpis, gammas = jnp.array([0.2, 0.5, 0.9]), jnp.array([[0.0], [1.0]])
    found = focal_weights(kpis, gammas)
    expected = [definition(kpis, 0.0), definition(kpis, 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_low_precision_is_computed_in_float32() -> None:
    weights = focal_weights(jnp.bfloat16(0.99609375))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, definition(0.99609375, 2.0), rtol=1e-5)
    with jax.enable_x64(True):
        assert focal_weights(jnp.float64(0.5), 2.0).dtype == jnp.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: focal_weights(0.5, -1.0), r"gamma must be a number in \[0, inf\)"),
        (lambda: focal_weights({"a": 0.5}, {"a": -1.0}), "gamma must be"),
        (lambda: focal_weights({"a": 0.5}, {"b": 1.0}), "gamma does not match"),
        (lambda: focal_weights(0.5, kpi_min=0.0), "kpi_min must be"),
        (lambda: focal_weights({"a": 1.5}), r"kpis must be in \[0, 1\], got 1.5"),
        (lambda: focal_weights(0.5, lambda step: 1.0), "inject_hyperparams"),
        (lambda: update_kpis(init_kpis(["a"]), {"a": 0.5}, 1.5), "alpha must be"),
        (lambda: update_kpis(init_kpis(["a"]), {"a": -0.5}), r"kpis\['a'\] must be"),
        (lambda: update_kpis(init_kpis(["a"]), {"b": 0.5}), "kpis does not match"),
        (lambda: combine_losses({"a": 1.0}, {"b": 1.0}), "weights does not match"),
    ],
)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_average_follows_the_recursion() -> None:
    alpha, values = 0.75, [0.2, 0.9, 0.4, 0.6]
    state, mean = init_kpis(["a"]), None
    for value in values:
        state = update_kpis(state, {"a": value}, alpha)
        mean = value if mean is None else alpha * value + (1 - alpha) * mean
        np.testing.assert_allclose(state.mean["a"], mean, rtol=1e-6)
    assert int(state.count["a"]) == len(values)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 0.25), (1.0, 0.75)])
def test_the_ends_of_alpha_keep_the_first_or_the_last(
    alpha: float, expected: float
) -> None:
    state = init_kpis(1)
    for value in (0.25, 0.5, 0.75):
        state = update_kpis(state, jnp.array([value]), alpha)
    assert state.mean.tolist() == [expected]


def test_a_constant_is_a_fixed_point() -> None:
    state = init_kpis(1)
    for _ in range(20):
        state = update_kpis(state, jnp.array([0.3]))
    np.testing.assert_allclose(state.mean, 0.3, rtol=1e-6)


@pytest.mark.parametrize("missing", [None, float("nan"), jnp.nan, jnp.array(jnp.inf)])
def test_what_is_not_observed_stays(missing: Any) -> None:
    before = update_kpis(init_kpis(["a", "b"]), {"a": 0.5, "b": 0.25})
    after = update_kpis(before, {"a": missing, "b": 0.5})
    assert float(after.mean["a"]) == 0.5
    assert int(after.count["a"]) == 1
    assert int(after.count["b"]) == 2
    masked = update_kpis(before, {"a": 0.9, "b": 0.5}, mask={"a": False, "b": True})
    chex.assert_trees_all_equal(masked, after)


def test_arrays_are_clipped() -> None:
    state = update_kpis(init_kpis(2), jnp.array([-0.5, 1.5]))
    assert state.mean.tolist() == [0.0, 1.0]


def test_derivative_of_the_average_with_respect_to_the_new_value_is_alpha() -> None:
    state = update_kpis(init_kpis(1), jnp.array([0.5]))

    def mean(kpi: jax.Array, state: KpiState) -> jax.Array:
        return update_kpis(state, kpi[None], 0.75).mean[0]

    assert float(jax.grad(mean)(jnp.array(0.4), state)) == 0.75
    assert float(jax.grad(mean)(jnp.array(0.4), init_kpis(1))) == 1.0
    assert float(jax.grad(mean)(jnp.array(jnp.nan), state)) == 0.0


def test_update_is_pure_under_jit_scan_and_vmap() -> None:
    kpis = jnp.array([[0.1, 0.9], [0.5, jnp.nan], [0.3, 0.2]])

    def one(state: KpiState, kpi: jax.Array) -> tuple[KpiState, jax.Array]:
        state = update_kpis(state, kpi)
        return state, state.mean

    _, scanned = jax.lax.scan(one, init_kpis(2), kpis)
    np.testing.assert_allclose(scanned[1], [0.75 * 0.5 + 0.25 * 0.1, 0.9], rtol=1e-6)
    batched = jax.vmap(one, (None, 0))(init_kpis(2), kpis)[1]
    np.testing.assert_array_equal(batched[0], kpis[0])


def test_the_weighted_sum_and_its_gradient() -> None:
    kpis = {"a": jnp.array(0.3), "b": jnp.array(0.8)}

    def losses(x: jax.Array) -> dict[str, jax.Array]:
        return {"a": x**2, "b": 3 * x}

    def total(x: jax.Array) -> jax.Array:
        return combine_losses(losses(x), focal_weights(kpis, 1.0))

    value, slope = jax.value_and_grad(total)(jnp.array(2.0))
    weights = definition(0.3, 1.0), definition(0.8, 1.0)
    np.testing.assert_allclose(value, weights[0] * 4 + weights[1] * 6, rtol=1e-6)
    np.testing.assert_allclose(slope, weights[0] * 4 + weights[1] * 3, rtol=1e-6)


@pytest.mark.parametrize("differentiate", [True, False])
def test_the_product_rule_of_equation_5(differentiate: bool) -> None:
    # A KPI that depends on the parameter: kappa = 1 / (1 + x**2), loss = x**2.
    state, alpha, gamma, x = update_kpis(init_kpis(["a"]), {"a": 0.5}), 0.75, 2.0, 0.8

    def total(x: jax.Array) -> jax.Array:
        kpis = update_kpis(state, {"a": 1 / (1 + x**2)}, alpha)
        weights = focal_weights(kpis.mean, gamma)
        return combine_losses({"a": x**2}, weights, differentiate_weights=differentiate)

    kappa = 1 / (1 + x**2)
    k = alpha * kappa + (1 - alpha) * 0.5
    weight_slope = (1 - k) ** (gamma - 1) * (gamma * np.log(k) - (1 - k) / k)
    kappa_slope = -2 * x / (1 + x**2) ** 2
    expected = definition(k, gamma) * 2 * x
    if differentiate:
        expected += x**2 * alpha * weight_slope * kappa_slope
    np.testing.assert_allclose(jax.grad(total)(jnp.array(x)), expected, rtol=1e-5)


def test_a_solved_task_keeps_the_derivative_of_its_weight() -> None:
    # At gamma = 0 and k = 1 the weight is zero, its derivative -1.
    def total(kpi: jax.Array) -> jax.Array:
        weights = focal_weights({"a": kpi}, 0.0)
        return combine_losses({"a": 3.0}, weights, differentiate_weights=True)

    assert jax.value_and_grad(total)(jnp.array(1.0)) == (0.0, -3.0)


def test_a_loss_of_weight_zero_is_left_out() -> None:
    losses = {"a": jnp.array(jnp.nan), "b": jnp.array(2.0)}
    assert float(combine_losses(losses, {"a": 0.0, "b": 3.0})) == 6.0
    assert float(combine_losses(losses, jnp.array([0.0, 3.0]))) == 6.0


@pytest.mark.parametrize(
    "wrong",
    ["0.3", b"0.3", 0.3 + 0j, np.complex64(0.3), np.array("0.3"), jnp.array(0.3 + 1j)],
    ids=["text", "bytes", "complex", "complex64", "array-of-text", "complex-array"],
)
def test_what_is_no_real_number_is_no_kpi(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"kpis\['a'\] must be a real number"):
        update_kpis(init_kpis(["a"]), {"a": wrong})
    with pytest.raises(ValueError, match="must be a real number"):
        focal_weights({"a": wrong})
    with pytest.raises(ValueError, match=r"losses\['a'\] must be a real number"):
        layout_of({"a": 1.0}).vector("losses", {"a": wrong})


@pytest.mark.parametrize(
    "missing", [float("inf"), -jnp.inf, jnp.array(jnp.inf), np.float32(np.nan), None]
)
def test_what_is_not_finite_is_not_observed_in_any_type(missing: Any) -> None:
    state = update_kpis(init_kpis(["a"]), {"a": missing})
    assert state.count["a"] == 0
