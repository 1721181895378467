import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients
from dtp_jax._core.orders import visiting_orders
from dtp_jax.balancers.by_gramian import _grad_vac
from dtp_jax.balancers.by_gramian._pcgrad import pcgrad_weights
from tests.toys import assert_near

grad_vac: Any = _grad_vac.grad_vac
KEYS = jax.random.split(jax.random.key(5), 2000)
ONES, ZEROS = jnp.ones(3), jnp.zeros((3, 3))


@jax.jit
def jitted(*given: jax.Array) -> tuple[jax.Array, jax.Array]:
    def of_key(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        gramian, similarities, preferences, beta = given
        return _grad_vac.grad_vac_weights(
            gramian, preferences, similarities=similarities, beta=beta, key=key
        )

    return jax.vmap(of_key)(KEYS)


def over_keys(
    gramian: Any, similarities: Any, preferences: Any = ONES, beta: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """The weights [N, 3] and the similarities [N, 3, 3] for each of the keys."""
    given = (gramian, similarities, preferences, beta)
    found = jitted(*[jnp.asarray(x, jnp.float32) for x in given])
    return np.asarray(found[0]), np.asarray(found[1])


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [3, P], and similarities [3, 3] above and below their cosines."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, 5)) * 10 ** rng.uniform(-0.5, 0.5, (3, 1))
    similarities = rng.uniform(-0.8, 0.8, (3, 3)) * (1 - np.eye(3))
    return rows, similarities


def gramian_of(rows: np.ndarray) -> jax.Array:
    return jnp.asarray(rows @ rows.T, jnp.float32)


def vaccinated(
    rows: np.ndarray, task: int, order: Any, similarities: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """A changed gradient and the new averages of its task, in the paper's words."""
    gradient, averages = rows[task].copy(), similarities[task].copy()
    for other in order:
        norm, length = np.linalg.norm(gradient), np.linalg.norm(rows[other])
        cosine, target = gradient @ rows[other] / (norm * length), averages[other]
        if cosine < target:
            sines = np.sqrt(1 - cosine**2), np.sqrt(1 - target**2)
            excess = target * sines[0] - cosine * sines[1]
            gradient += norm * excess / (length * sines[1]) * rows[other]
        averages[other] = (1 - beta) * target + beta * cosine
    return gradient, averages


def test_the_definition() -> None:
    preferences, beta = np.array([0.5, 1.0, 2.0]), 0.3
    for seed in range(4):
        rows, similarities = problem(seed)
        weights, averages = over_keys(gramian_of(rows), similarities, preferences, beta)
        for index in range(4):
            orders = np.asarray(visiting_orders(KEYS[index], 3)).T
            scaled = preferences[:, None] * rows
            expected = [
                vaccinated(scaled, task, orders[task], similarities, beta)
                for task in range(3)
            ]
            found = np.asarray(weights[index], np.float64) @ rows
            total = sum(gradient for gradient, _ in expected)
            assert_near(found, total, rtol=1e-4)
            rule = [averages for _, averages in expected]
            assert_near(averages[index], rule, rtol=1e-4)


def test_with_targets_of_zero_it_is_pcgrad() -> None:
    rows, _ = problem()
    surgery = jax.jit(jax.vmap(lambda key: pcgrad_weights(gramian_of(rows), key=key)))
    weights, averages = over_keys(gramian_of(rows), ZEROS, beta=0.0)
    np.testing.assert_allclose(weights, surgery(KEYS), rtol=1e-6)
    np.testing.assert_array_equal(averages, 0)


def test_orders_are_drawn_uniformly_and_absent_tasks_have_no_influence() -> None:
    rows, similarities = problem(2)
    expected, error = np.zeros(5), 0.0
    for task, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        changed = [
            vaccinated(rows, task, order, similarities, 0.5)[0]
            for order in itertools.permutations(others)
        ]
        expected += np.mean(changed, axis=0)
        error += np.var(changed, axis=0).max() / len(KEYS)
    weights, _ = over_keys(gramian_of(rows), similarities)
    found = np.asarray(weights, np.float64).mean(axis=0) @ rows
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(error) + 1e-5)

    gramian = np.array(gramian_of(rows))
    gramian[1] = gramian[:, 1] = np.nan
    weights, averages = over_keys(gramian, similarities, [1.0, 0.0, 1.0])
    pair = rows[[0, 2]]
    changed = [
        vaccinated(pair, task, [1 - task], similarities[::2, ::2], 0.5)
        for task in range(2)
    ]
    expected = changed[0][0] + changed[1][0]
    assert_near(weights[0] @ rows, expected, rtol=1e-4)
    new = similarities.copy()
    new[0, 2], new[2, 0] = changed[0][1][1], changed[1][1][0]
    assert_near(averages[0], new, rtol=1e-4)
    # The same for a row that is not finite, and for one that is zero.
    bad, same = over_keys(gramian, similarities)
    np.testing.assert_array_equal(bad, weights)
    np.testing.assert_array_equal(same, averages)
    rows[1] = 0
    zero, same = over_keys(gramian_of(rows), similarities)
    np.testing.assert_allclose(zero[0], weights[0] + np.array([0, 1, 0]), rtol=1e-5)
    assert_near(same, averages, rtol=1e-5)


def test_the_cosine_becomes_the_target() -> None:
    # The third is orthogonal to all, with targets that it exceeds.
    rows = np.array([[2.0, 0.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.0, 1.0]])
    similarities = np.full((3, 3), -0.5)
    similarities[0, 1] = 0.96
    weights, _ = over_keys(gramian_of(rows), similarities)
    # The others stay as they are, so the first changed by what the second is given.
    changed = rows[0] + (np.asarray(weights[0])[1] - 1) * rows[1]
    cosine = changed @ rows[1] / np.linalg.norm(changed) / 0.5
    np.testing.assert_allclose(cosine, 0.96, rtol=1e-5)


def test_lengths_only_scale_the_answer() -> None:
    rows, similarities = problem()
    scales = np.array([1e-6, 1.0, 1e6])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected, averages = over_keys(gramian_of(unit), similarities, scales)
    found, same = over_keys(gramian_of(scales[:, None] * unit), similarities)
    np.testing.assert_allclose(found, expected / scales, rtol=1e-4)
    assert_near(same, averages, rtol=1e-4)


def test_degenerate_gradients() -> None:
    row = problem()[0][0]
    rows = np.array([1.0, -1.0, 1.0])[:, None] * row
    weights, averages = over_keys(gramian_of(rows), ZEROS)
    assert (np.abs(averages) <= 1).all()
    np.testing.assert_allclose(weights @ rows, 0, atol=1e-5)
    # What vanished has no direction left; the average of its next pair stays.
    assert (np.asarray(averages) == 0).mean() > 3 / 9
    # A target of one cannot be reached; what is added stays bounded, and so does a
    # chain of corrections that each multiply the length.
    weights, averages = over_keys(jnp.eye(3), 1 - jnp.eye(3))
    assert (weights <= 1 + 2 * _grad_vac._LARGEST_STEP).all()
    assert (weights > _grad_vac._LARGEST_STEP).all()
    for gramian in (jnp.zeros((3, 3)), jnp.ones((3, 3))):
        weights, averages = over_keys(gramian, 1 - jnp.eye(3))
        np.testing.assert_allclose(weights, 1, rtol=1e-6)
        expected = np.broadcast_to(1 - np.eye(3), averages.shape)
        np.testing.assert_allclose(averages, expected, atol=1e-6)


def test_the_balancer_over_many_steps() -> None:
    balancer, ones = grad_vac(beta=0.25), jnp.ones(2)
    rows = jnp.array([[1.0, 0.0], [0.6, 0.8]])

    @jax.jit
    def run(state: Any) -> Any:
        def one(state: Any, key: jax.Array) -> Any:
            gradients = TaskGradients.from_stacked(rows)
            weights, state = balancer.update(
                ones, state, task_gradients=gradients, key=key
            )
            return state, (weights, state.similarities)

        return jax.lax.scan(one, state, jax.random.split(KEYS[0], 1000))

    state, (weights, averages) = run(balancer.init(ones))
    # Gradients that stay as they are never fall below their average.
    np.testing.assert_array_equal(weights, 1)
    expected = 0.6 * (1 - 0.75 ** np.arange(1, 1001))
    np.testing.assert_allclose(averages[:, 0, 1], expected, rtol=1e-4)
    np.testing.assert_array_equal(jnp.diagonal(state.similarities), 0)
    assert state.similarities.dtype == jnp.float32


def test_missing_or_wrong_arguments() -> None:
    for beta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="beta must be a number in"):
            grad_vac(beta=beta)
    balancer, ones = grad_vac(), jnp.ones(2)
    gradients = TaskGradients.from_stacked(jnp.eye(2))
    with pytest.raises(ValueError, match=r"grad_vac needs `key`.*new jax.random.key"):
        balancer.update(ones, balancer.init(ones), task_gradients=gradients)
    with pytest.raises(ValueError, match="grad_vac needs `task_gradients`"):
        balancer.update(ones, balancer.init(ones), key=KEYS[0])


def test_float64() -> None:
    with jax.enable_x64(True):
        targets = jnp.array([[0.0, 0.6], [0.6, 0.0]])
        weights, averages = _grad_vac.grad_vac_weights(
            jnp.eye(2), similarities=targets, key=jax.random.key(0)
        )
        assert weights.dtype == averages.dtype == jnp.float64
        np.testing.assert_allclose(weights, 1.75, rtol=1e-13)
