"""What parameters, losses, features and gradients must be, and their types."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax
from dtp_jax import TaskGradients, feature_task_gradients, task_gradients
from tests.toys import balance, balancers


@pytest.mark.parametrize("argnums", [{"w": 1}, [jnp.ones(2)], jnp.ones(2), "params"])
def test_arguments_in_the_place_of_argnums(argnums: Any) -> None:
    with pytest.raises(ValueError, match=r"task_gradients\(losses_fn\)\(params, ...\)"):
        task_gradients(complex_losses, argnums)


# Complex numbers.

COMPLEX = {"w": jnp.array([1.0 + 2.0j, -1.0j])}
ROWS = {"w": jnp.array([[1.0 + 2.0j, 3.0], [2.0, 1.0j]])}


def complex_losses(params: Any) -> dict[str, jax.Array]:
    real = jnp.sum(jnp.abs(params["w"]) ** 2)
    return {"a": real, "b": jnp.sum(jnp.real(params["w"] * (2 + 1j)))}


def of_complex_params() -> Any:
    return task_gradients(complex_losses)(COMPLEX)


def of_complex_params_at_features() -> Any:
    def encoder(params: Any) -> jax.Array:
        return jnp.abs(params["w"])

    return feature_task_gradients(encoder, lambda p, z: {"a": z.sum()})(COMPLEX)


def of_complex_features() -> Any:
    def heads(params: Any, features: jax.Array) -> dict[str, jax.Array]:
        return {"a": jnp.sum(jnp.abs(features))}

    return feature_task_gradients(lambda w: {"z": w * (1 + 1j)}, heads)(jnp.ones(2))


def of_complex_heads() -> Any:
    return feature_task_gradients(
        lambda w: w,
        lambda head, z: jnp.abs(head * z).sum(),
        stacked=lambda w: ((1 + 1j) * jnp.ones((2, 2)),),
    )(jnp.ones(2))


def of_complex_rows() -> Any:
    return TaskGradients.from_stacked(ROWS)


def of_changed_rows() -> Any:
    return TaskGradients.from_stacked({"w": jnp.eye(2)}).stacked(ROWS)


def of_a_plain_pytree() -> Any:
    link = balance(balancers.mgda(), 2)
    return link.update(ROWS, link.init(COMPLEX), COMPLEX)


def of_a_combiner() -> Any:
    link: Any = dtp_jax.combiners.trimmed_mean(2, num_trimmed=0)
    return link.update(ROWS, link.init(COMPLEX), COMPLEX)


def of_clipping() -> Any:
    link: Any = dtp_jax.clip_each_task(1.0)
    return link.update(ROWS, link.init(COMPLEX), COMPLEX)


@pytest.mark.parametrize(
    ("make", "leaf"),
    [
        (of_complex_params, "parameter['w']"),
        (of_complex_params_at_features, "parameter['w']"),
        (of_complex_features, "feature['z']"),
        (of_complex_heads, "parameter of the heads"),
        (of_complex_rows, "gradient['w']"),
        (of_changed_rows, "gradient['w']"),
        (of_a_plain_pytree, "gradient['w']"),
        (of_a_combiner, "gradient['w']"),
        (of_clipping, "gradient['w']"),
    ],
)
def test_complex_numbers_are_refused_by_name(make: Any, leaf: str) -> None:
    with pytest.raises(
        ValueError, match="the imaginary part as two real arrays"
    ) as error:
        make()
    assert f"The {leaf} has dtype complex64" in str(error.value)


def test_two_real_arrays_in_place_of_a_complex_one() -> None:
    # The steepest descent of a real loss of w = u + iv is that in (u, v).
    def losses(params: Any) -> dict[str, jax.Array]:
        return complex_losses({"w": jax.lax.complex(params["re"], params["im"])})

    w = COMPLEX["w"]
    gradients = task_gradients(losses)({"re": w.real, "im": w.imag})
    first = 2 * np.asarray(w)  # of |w|^2, as a complex number
    second = np.array([2 - 1j, 2 - 1j])  # of Re(w (2 + i))
    products = [[np.vdot(x, y).real for y in (first, second)] for x in (first, second)]
    np.testing.assert_allclose(gradients.gramian(), products, rtol=1e-6)


# Functions, strings and integers.


class Layer:
    """Stands for a module of equinox: arrays and functions are leaves alike."""

    def __init__(self, weight: Any, activation: Any) -> None:
        self.weight, self.activation = weight, activation


jax.tree_util.register_pytree_with_keys(
    Layer,
    lambda layer: (
        [
            (jax.tree_util.GetAttrKey("weight"), layer.weight),
            (jax.tree_util.GetAttrKey("activation"), layer.activation),
        ],
        None,
    ),
    lambda _, children: Layer(*children),
)


@pytest.mark.parametrize(
    ("activation", "what"),
    [(jnp.tanh, "tanh"), ("relu", "a str, 'relu'"), (object(), "object")],
)
def test_a_leaf_that_is_no_array_is_named(activation: Any, what: str) -> None:
    params = {"layer": Layer(jnp.ones(2), activation)}
    makes: list[Any] = [
        task_gradients(lambda params: {"a": 1.0}),
        feature_task_gradients(lambda params: jnp.ones(2), lambda p, z: {"a": z.sum()}),
    ]
    for make in makes:
        with pytest.raises(ValueError, match=r"eqx.partition\(model") as error:
            make(params)
        assert "parameter['layer'].activation is no array" in str(error.value)
        assert what in str(error.value)


def test_features_and_rows_that_are_no_arrays_are_named() -> None:
    def encoder(params: jax.Array) -> Any:
        return {"z": params, "kind": "dense"}

    with pytest.raises(ValueError, match=r"feature\['kind'\] is no array but a str"):
        feature_task_gradients(encoder, lambda p, z: {"a": z["z"]})(jnp.array(1.0))
    with pytest.raises(ValueError, match=r"gradient\['f'\] is no array but a"):
        TaskGradients.from_stacked({"f": jnp.tanh, "w": jnp.eye(2)})


@pytest.mark.parametrize("loss", ["high", jnp.tanh, object()])
def test_a_loss_that_is_no_array_is_named(loss: Any) -> None:
    message = rf"losses\['b'\] is a {type(loss).__name__}; a loss must be a real float"
    with pytest.raises(ValueError, match=message):
        task_gradients(lambda p: {"a": p, "b": loss})(1.0)
    with pytest.raises(ValueError, match=message):
        feature_task_gradients(lambda p: p, lambda p, z: {"a": z, "b": loss})(1.0)


def test_parameters_of_integers_are_named_at_features_too() -> None:
    params = {"w": jnp.ones(2), "n": jnp.array(1)}
    make = feature_task_gradients(lambda p: p["w"], lambda p, z: {"a": z.sum()})
    with pytest.raises(ValueError, match=r"parameter\['n'\] has dtype int32 and no"):
        make(params)


def test_features_without_a_float_have_no_gradient() -> None:
    make = feature_task_gradients(
        lambda w: w > 0, lambda w, z: {"a": w.sum() + z.sum()}
    )
    with pytest.raises(ValueError, match="no feature of real floats"):
        make(jnp.ones(2))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_rows_of_integers_are_not_combined_as_integers(dtype: Any) -> None:
    rows = np.array([[1, 0], [1, 1]], dtype)
    gradients = TaskGradients.from_stacked(rows)
    assert gradients.combine([0.5, 0.25]).tolist() == [0.75, 0.25]
    assert gradients.gramian().tolist() == [[1, 1], [1, 2]]


def test_rows_of_parameters_without_a_derivative_are_named() -> None:
    rows = {"w": jnp.eye(2), "n": np.zeros((2, 3), jax.dtypes.float0)}
    with pytest.raises(ValueError, match=r"gradient\['n'\] has dtype float0"):
        TaskGradients.from_stacked(rows)


# The digits of the data.


def test_weights_have_the_digits_of_the_rows() -> None:
    weights = [1 / 3, 2 / 3]
    with jax.enable_x64(True):
        double, single = jnp.eye(2, dtype=jnp.float64), jnp.zeros(2, jnp.float32)
        for losses in (None, single):
            found = TaskGradients.from_stacked(double, losses).combine(weights)
            assert found.tolist() == weights
        # One parameter of two is enough.
        mixed = {"half": jnp.eye(2, dtype=jnp.bfloat16), "double": double}
        found = TaskGradients.from_stacked(mixed).combine(weights)
        assert found["double"].tolist() == weights
        assert found["half"].dtype == jnp.bfloat16


def test_weights_have_the_digits_of_the_features_and_of_kept_rows() -> None:
    weights = [1 / 3, 2 / 3]

    def losses(z: jax.Array) -> list[jax.Array]:
        return [z[0].astype(jnp.float32), z[1].astype(jnp.float32)]

    with jax.enable_x64(True):
        params = jnp.ones(2, jnp.float64)
        kept = task_gradients(losses)(params)
        kept.gramian()
        assert kept.combine(weights).tolist() == weights
        at_features = feature_task_gradients(lambda p: p, lambda p, z: losses(z))(
            params
        )
        # The features are where the rows are known; the heads have no parameters here.
        assert at_features.combine(weights).tolist() == weights
        assert at_features.gramian().dtype == jnp.float64


def test_near_parallel_rows_in_double_precision() -> None:
    # The combination of aligned_mtl cancels: float32 weights leave five digits.
    with jax.enable_x64(True):
        rows = jnp.array([[1.0, 0.0], [1.0, 1e-3]], jnp.float64)
        gradients = TaskGradients.from_stacked(rows)
        weights = dtp_jax.balancers.aligned_mtl_weights(gradients.gramian())
        found = gradients.combine(weights)
        np.testing.assert_allclose(found, weights @ rows, rtol=1e-14)
