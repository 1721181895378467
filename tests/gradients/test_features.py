from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import feature_task_gradients, task_gradients
from tests import toys
from tests.toys import assert_near, balance, balancers

KEYS = jax.random.split(jax.random.key(0), 4)
NUM_TASKS = 3
PARAMS = {
    "trunk": jax.random.normal(KEYS[0], (5, 7)) / 2,
    "heads": jax.random.normal(KEYS[1], (NUM_TASKS, 7)),
}
X = jax.random.normal(KEYS[2], (6, 5))
Y = jax.random.normal(KEYS[3], (NUM_TASKS, 6))


def encoder(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["trunk"])


def head(weight: jax.Array, features: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((features @ weight - y) ** 2)


def heads(params: Any, features: jax.Array, x: jax.Array) -> jax.Array:
    del x
    return jnp.stack(
        [head(params["heads"][t], features, Y[t]) for t in range(NUM_TASKS)]
    )


def losses_fn(params: Any, x: jax.Array) -> jax.Array:
    return heads(params, encoder(params, x), x)


SEPARATE = feature_task_gradients(encoder, heads)
STACKED = feature_task_gradients(
    encoder, head, stacked=lambda params, x: (params["heads"], Y)
)
both = pytest.mark.parametrize("make", [SEPARATE, STACKED], ids=["separate", "stacked"])


def feature_rows(params: Any) -> np.ndarray:
    def of_features(features: jax.Array) -> jax.Array:
        return heads(params, features, X)

    rows = jax.jacrev(of_features)(encoder(params, X))
    return np.asarray(rows).reshape(NUM_TASKS, -1)


@both
@pytest.mark.parametrize("jit", [True, False])
def test_losses_and_gramian_at_the_features(make: Any, jit: bool) -> None:
    def both_of(params: Any) -> Any:
        gradients = make(params, X)
        return gradients.losses, gradients.gramian()

    losses, gramian = (jax.jit(both_of) if jit else both_of)(PARAMS)
    np.testing.assert_allclose(losses, losses_fn(PARAMS, X), rtol=1e-6)
    rows = feature_rows(PARAMS)
    assert_near(gramian, rows @ rows.T, rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [8, 9, pytest.param(65, marks=pytest.mark.slow)])
def test_any_number_of_heads(num_tasks: int) -> None:
    weights = jax.random.normal(KEYS[0], (num_tasks, 7))
    targets = jax.random.normal(KEYS[1], (num_tasks, 6))

    def each(params: Any, features: jax.Array) -> list[jax.Array]:
        return [head(w, features, y) for w, y in zip(params, targets, strict=True)]

    @jax.jit
    def gramian(params: Any) -> jax.Array:
        return feature_task_gradients(lambda params: X @ PARAMS["trunk"], each)(
            params
        ).gramian()

    @jax.jit
    def of_params(trunk: Any) -> jax.Array:
        return task_gradients(lambda trunk: each(weights, X @ trunk))(trunk).gramian()

    features = X @ PARAMS["trunk"]
    rows = jax.vmap(jax.grad(head, 1), (0, None, 0))(weights, features, targets)
    flat = rows.reshape(num_tasks, -1)
    np.testing.assert_allclose(gramian(list(weights)), flat @ flat.T, 1e-4, 1e-5)
    flat = (X.T @ rows).reshape(num_tasks, -1)
    found = of_params(PARAMS["trunk"])
    np.testing.assert_allclose(found, flat @ flat.T, 1e-4, 1e-4)


@both
def test_combine_is_the_gradient_of_the_weighted_sum(make: Any) -> None:
    weights = jnp.array([0.3, 2.0, -1.0])
    expected = jax.grad(lambda p: weights @ losses_fn(p, X))(PARAMS)
    found = make(PARAMS, X).combine(weights)
    assert_near(found, expected, rtol=1e-5)


@both
def test_heads_take_their_own_weights(make: Any) -> None:
    weights, ones = jnp.array([0.3, 2.0, 0.0]), jnp.ones(NUM_TASKS)
    found = make(PARAMS, X).combine(weights, ones)
    of_weights = jax.grad(lambda p: weights @ losses_fn(p, X))(PARAMS)
    of_ones = jax.grad(lambda p: ones @ losses_fn(p, X))(PARAMS)
    np.testing.assert_allclose(found["trunk"], of_weights["trunk"], 1e-5, 1e-7)
    np.testing.assert_allclose(found["heads"], of_ones["heads"], 1e-5, 1e-7)


@both
def test_stack_is_the_jacobian(make: Any) -> None:
    expected = jax.jacrev(losses_fn)(PARAMS, X)
    assert_near(make(PARAMS, X).stack(), expected, rtol=1e-5)


@both
def test_in_a_chain_with_unscaled_heads(make: Any) -> None:
    link = balance(toys.equal_norms(), NUM_TASKS, heads="preferences")
    tx = optax.chain(link, optax.sgd(1.0))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        return tx.update(make(params, X), state, params)

    updates, state = step(PARAMS, tx.init(PARAMS))
    weights = 1 / np.linalg.norm(feature_rows(PARAMS), axis=1)
    np.testing.assert_allclose(state[0].task_weights, weights, rtol=1e-5)
    of_weights = jax.grad(lambda p: jnp.array(weights) @ losses_fn(p, X))(PARAMS)
    of_ones = jax.grad(lambda p: losses_fn(p, X).sum())(PARAMS)
    np.testing.assert_allclose(updates["trunk"], -of_weights["trunk"], 1e-4, 1e-6)
    np.testing.assert_allclose(updates["heads"], -of_ones["heads"], 1e-5, 1e-7)


def named_heads(params: Any, features: jax.Array, x: jax.Array) -> dict[str, Any]:
    del x
    return {str(t): head(params["heads"][t], features, Y[t]) for t in range(NUM_TASKS)}


@pytest.mark.parametrize(
    "make", [feature_task_gradients(encoder, named_heads), STACKED]
)
def test_a_bad_task_does_not_reach_the_encoder(make: Any) -> None:
    bad = {**PARAMS, "heads": PARAMS["heads"].at[1].set(jnp.nan)}
    weights = jnp.array([0.5, 0.0, 2.0])
    found = jax.jit(lambda p: make(p, X).combine(weights))(bad)
    expected = make(PARAMS, X).combine(weights)
    np.testing.assert_allclose(found["trunk"], expected["trunk"], 1e-5, 1e-7)


def test_named_tasks_several_features_and_aux() -> None:
    def two(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return {"z": encoder(params, x), "mean": x.mean() * params["trunk"].sum()}

    def named(params: Any, features: Any, x: jax.Array) -> Any:
        losses = {
            "b": head(params["heads"][0], features["z"], Y[0]),
            "a": features["mean"] ** 2,
        }
        return losses, {"kpi": x.shape[0], "a": losses["a"]}

    gradients, aux = feature_task_gradients(two, named, has_aux=True)(PARAMS, X)
    assert aux["kpi"] == 6
    mean = two(PARAMS, X)["mean"]
    np.testing.assert_allclose(gradients.gramian()[0, 0], (2 * mean) ** 2, rtol=1e-5)
    assert float(gradients.gramian()[0, 1]) == 0

    def direct(params: Any) -> jax.Array:
        losses, _ = named(params, two(params, X), X)
        return 2 * losses["a"] + 3 * losses["b"]

    found = gradients.combine({"a": 2.0, "b": 3.0})
    assert_near(found, jax.grad(direct)(PARAMS), rtol=1e-4)


def test_focal_weights_cost_one_pass() -> None:
    # Without a Gramian-driven rule this is plain training, up to the sum over tasks.
    link = balance(balancers.focal(), NUM_TASKS)
    wide = {
        "trunk": jnp.ones((5, 256)) / 5,
        "heads": jnp.ones((NUM_TASKS, 256)) / 256,
    }
    kpis, x = jnp.array([0.2, 0.5, 0.8]), jnp.ones((64, 5))
    labels = jnp.ones((NUM_TASKS, 64))

    def of_losses(params: Any, x: jax.Array) -> jax.Array:
        features = encoder(params, x)
        return jax.vmap(head, (0, None, 0))(params["heads"], features, labels)

    make = feature_task_gradients(
        encoder, head, stacked=lambda params, x: (params["heads"], labels)
    )

    def step(make: Any) -> Any:
        return lambda p: link.update(make(p, x), link.init(p), p, kpis=kpis)[0]

    flops, _ = toys.cost(step(make), wide)
    plain, _ = toys.cost(step(task_gradients(of_losses)), wide)
    assert flops <= 1.15 * plain


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must be a real float"):
        feature_task_gradients(encoder, lambda p, z, x: jnp.array(1))(PARAMS, X)
    with pytest.raises(ValueError, match="a head must return one loss, a scalar"):
        feature_task_gradients(
            encoder,
            lambda w, z, y: {"a": z.sum()},
            stacked=lambda p, x: (p["heads"], Y),
        )(PARAMS, X)
    with pytest.raises(ValueError, match="inconsistent sizes"):
        feature_task_gradients(encoder, head, stacked=lambda p, x: (p["heads"], Y[:2]))(
            PARAMS, X
        )


def linear_problem(jacobian: np.ndarray, heads: Any) -> Any:
    """Gradients at the features and at the parameters for features ``J params``."""
    params = jnp.zeros(2)
    matrix = jnp.asarray(jacobian, jnp.float32)

    def of_features(params: jax.Array) -> jax.Array:
        return matrix @ params

    at_features = feature_task_gradients(of_features, lambda p, z: heads(z))(params)
    return at_features, task_gradients(lambda p: heads(of_features(p)))(params)


@pytest.mark.parametrize("point", [[0.5, 0.25], [0.9, 0.9]])
def test_stationary_at_the_features_means_stationary_at_the_parameters(
    point: list[float],
) -> None:
    # Two half squared distances: stationary exactly on the segment between the goals.
    left, right = jnp.array([0.0, 0.0]), jnp.array([1.0, 0.5])
    offset = jnp.array(point)

    def losses(z: jax.Array) -> dict[str, jax.Array]:
        z = z + offset
        return {"l": jnp.sum((z - left) ** 2) / 2, "r": jnp.sum((z - right) ** 2) / 2}

    norms = []
    for gradients in linear_problem(np.array([[2.0, 1.0], [0.5, 3.0]]), losses):
        gramian = gradients.gramian()
        weights = dtp_jax.balancers.mgda_weights(gramian)
        norms.append(float(jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0))))
    stationary = point == [0.5, 0.25]
    assert all((norm < 1e-3) == stationary for norm in norms)


def test_descent_at_the_features_need_not_be_descent_at_the_parameters() -> None:
    # The counterexample of the docstring.
    rows = jnp.array([[1.0, 2.0], [1.0, -1.0]])
    jacobian = np.linalg.cholesky(np.array([[1.0, -0.9], [-0.9, 1.0]]))
    at_features, at_params = linear_problem(jacobian, lambda z: rows @ z)
    weights = dtp_jax.balancers.mgda_weights(at_features.gramian())
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], rtol=1e-5)
    np.testing.assert_allclose(weights @ rows, [1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(at_features.gramian() @ weights, [1, 1], rtol=1e-5)
    direction = at_features.combine(weights)
    products = at_params.stack() @ direction
    np.testing.assert_allclose(products, [-0.8, 1.9], rtol=1e-4)
