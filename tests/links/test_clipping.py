from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import TaskGradients, task_gradients
from tests.toys import balance, balancers

clip_each_task: Any = dtp_jax.clip_each_task
chain: Any = optax.chain
ROWS = {
    "w": jnp.array([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0], [1e30, 0.0]]),
    "b": jnp.array([4.0, 0.4, 0.0, -1e30]),
}
PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(())}


def clipped(rows: Any, max_norm: float = 1.0) -> Any:
    tx = clip_each_task(max_norm)
    return tx.update(rows, tx.init(None), PARAMS)[0]


def test_each_row_is_clipped_by_its_norm_over_all_parameters() -> None:
    found = clipped(ROWS)
    half = 0.5**0.5
    expected = [[0.6, 0.0], [0.3, 0.0], [0.0, 0.0], [half, 0.0]]
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["b"], [0.8, 0.4, 0.0, -half], rtol=1e-6)


def test_one_task_is_the_clip_of_optax() -> None:
    one = {"w": jnp.array([2.0, -1.0]), "b": jnp.array(3.0)}
    clip = optax.clip_by_global_norm(0.7)
    expected: Any = clip.update(one, clip.init(one))[0]
    found = clipped(jax.tree.map(lambda x: x[None], one), 0.7)
    for name, row in found.items():
        np.testing.assert_allclose(row[0], expected[name], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_stays_that_task_s_problem(bad: float) -> None:
    rows = {**ROWS, "b": ROWS["b"].at[1].set(bad)}
    found, expected = clipped(rows), clipped(ROWS)
    np.testing.assert_array_equal(found["b"][1], bad)
    for name in ROWS:
        others = np.array([0, 2, 3])
        np.testing.assert_array_equal(found[name][others], expected[name][others])
    link = balance(optax.identity(), 4)
    tx = chain(clip_each_task(1.0), link)
    _, state = tx.update(rows, tx.init(PARAMS), PARAMS)
    assert state[1].task_weights.tolist() == [1.0, 0.0, 1.0, 1.0]


def losses_fn(params: Any) -> dict[str, jax.Array]:
    return {
        "a": 100 * jnp.sum(params["w"] ** 2),
        "b": jnp.sum(params["w"] + params["b"]),
    }


def test_between_task_gradients_and_a_balancer() -> None:
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    shared = {"w": True, "b": False}
    kpis = {"a": 0.3, "b": 0.6}
    link = balance(
        balancers.mgda(), ["a", "b"], preferences=balancers.focal(), heads="preferences"
    )
    tx = chain(clip_each_task(1.0), link, optax.sgd(1.0))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = task_gradients(losses_fn, shared=shared)(params)
        return tx.update(gradients, state, params, kpis=kpis)

    updates, state = step(params, tx.init(params))
    rows = np.array([[200.0, -400.0, 0.0], [1.0, 1.0, 2.0]])
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    weights = np.array([state[1].task_weights[name] for name in "ab"])
    np.testing.assert_allclose(updates["w"], -weights @ rows[:, :2], rtol=1e-5)
    focal = np.array([dtp_jax.focal_weights(k) for k in (0.3, 0.6)])
    np.testing.assert_allclose(updates["b"], -focal @ rows[:, 2], rtol=1e-5)
    # The Gramian, too, is that of the clipped gradients over the shared parameters.
    gramian = jnp.asarray(rows[:, :2] @ rows[:, :2].T, jnp.float32)
    expected = dtp_jax.balancers.mgda_weights(gramian, jnp.asarray(focal, jnp.float32))
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_before_a_combiner_and_in_half_precision() -> None:
    rows = jax.tree.map(lambda x: x[:2].astype(jnp.bfloat16), ROWS)
    assert clipped(rows)["w"].dtype == jnp.bfloat16
    tx = chain(clip_each_task(1.0), dtp_jax.combiners.trimmed_mean(2, num_trimmed=0))
    gradients = TaskGradients.from_stacked(rows)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(PARAMS))
    np.testing.assert_allclose(updates["w"], [0.45, 0.0], rtol=1e-2)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="max_norm must be a number in"):
        clip_each_task(0.0)
    tx = clip_each_task(1.0)
    with pytest.raises(ValueError, match="no axis of tasks"):
        tx.update(jnp.ones(3), tx.init(None), jnp.ones(3))
    gradients = task_gradients(losses_fn)(PARAMS)
    link = balance(optax.identity(), ["a", "b"])

    # Transformations that are not of optax, before the clip.
    def scaled(by: Any) -> Any:
        first = optax.stateless(lambda updates, _: jax.tree.map(by, updates))
        return chain(first, clip_each_task(1.0), link)

    tx = scaled(lambda leaf: 0.5 * leaf)
    with pytest.raises(ValueError, match="after the balancing link"):
        tx.update(gradients, tx.init(PARAMS))
    tx = scaled(lambda leaf: jnp.asarray(0.5, leaf.dtype) * leaf)
    updates, _ = tx.update(gradients, tx.init(PARAMS))
    assert np.isnan(updates["w"]).all()
