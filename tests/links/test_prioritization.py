from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import focal_weights, task_gradients
from dtp_jax.diagnostics import task_weights
from tests import toys
from tests.toys import dynamic_task_prioritization

NAMES = ("a", "b", "c")


def losses_fn(params: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    return {
        "a": jnp.mean((x @ params - 1.0) ** 2),
        "b": jnp.mean((x @ params[::-1]) ** 2),
        "c": jnp.sum(params**2),
    }


def kpis_of(losses: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.exp(-loss) for name, loss in losses.items()}


def optimizer(**arguments: Any) -> Any:
    link = dynamic_task_prioritization(NAMES, **{"warmup_steps": 2, **arguments})
    return optax.chain(link, optax.clip_by_global_norm(1.0), optax.adam(0.05))


def make_step(tx: Any) -> Any:
    def step(carry: tuple[Any, Any], x: jax.Array) -> tuple[Any, Any]:
        params, state = carry
        gradients = task_gradients(losses_fn)(params, x)
        kpis = kpis_of(gradients.losses)
        updates, state = tx.update(gradients, state, params, kpis=kpis)
        return (optax.apply_updates(params, updates), state), state[0].task_weights

    return step


PARAMS = jnp.array([0.5, -0.3, 0.8])
BATCHES = jax.random.normal(jax.random.key(0), (6, 4, 3))


def looped(tx: Any) -> tuple[Any, list[Any]]:
    step, carry, found = jax.jit(make_step(tx)), (PARAMS, tx.init(PARAMS)), []
    for x in BATCHES:
        carry, weights = step(carry, x)
        found.append(weights)
    assert toys.num_compilations(step) == 1
    return carry, found


def test_warm_up_then_focal_weights() -> None:
    _, found = looped(optimizer(alpha=1.0, warmup_steps=2))
    assert found[0] == found[1] == dict.fromkeys(NAMES, 1.0)
    # Replay two warm-up steps to know the parameters of the third.
    step, tx = (
        jax.jit(make_step(optimizer(warmup_steps=99))),
        optimizer(warmup_steps=99),
    )
    carry = (PARAMS, tx.init(PARAMS))
    for x in BATCHES[:2]:
        carry, _ = step(carry, x)
    kpis = kpis_of(losses_fn(carry[0], BATCHES[2]))
    chex.assert_trees_all_close(found[2], focal_weights(kpis), rtol=1e-4)


def test_scan_is_the_loop_and_keeps_its_structure() -> None:
    tx = optimizer(stages={0: ["a"], 3: ["a", "b", "c"]}, normalize="sum_to_T")
    carry, found = looped(tx)
    scanned, weights = jax.lax.scan(make_step(tx), (PARAMS, tx.init(PARAMS)), BATCHES)
    chex.assert_trees_all_close(scanned, carry, rtol=1e-5, atol=1e-6)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *found)
    chex.assert_trees_all_close(weights, stacked, rtol=1e-5)


def test_vmap_over_seeds() -> None:
    tx = optimizer()
    seeds = jnp.stack([PARAMS, PARAMS + 1.0])

    def run(params: jax.Array) -> Any:
        carry, _ = jax.lax.scan(make_step(tx), (params, tx.init(params)), BATCHES)
        return carry[0]

    batched = jax.jit(jax.vmap(run))(seeds)
    for index in range(2):
        np.testing.assert_allclose(batched[index], run(seeds[index]), rtol=1e-4)


def test_vmap_over_gamma() -> None:
    def run(gamma: jax.typing.ArrayLike) -> Any:
        tx = optimizer(gamma=gamma, warmup_steps=0)
        carry, weights = jax.lax.scan(make_step(tx), (PARAMS, tx.init(PARAMS)), BATCHES)
        return carry[0], weights

    gammas = jnp.array([0.0, 1.0, 2.0])
    params, weights = jax.jit(jax.vmap(run))(gammas)
    for index, gamma in enumerate([0.0, 1.0, 2.0]):
        expected_params, expected = run(gamma)
        np.testing.assert_allclose(params[index], expected_params, rtol=1e-4)
        one = jax.tree.map(lambda x, i=index: x[i], weights)
        chex.assert_trees_all_close(one, expected, rtol=1e-4)


def test_donated_buffers() -> None:
    tx = optimizer()
    step = jax.jit(make_step(tx), donate_argnums=0)
    carry = (jnp.array(PARAMS), tx.init(PARAMS))
    donated = carry[0]
    for x in BATCHES[:3]:
        carry, _ = step(carry, x)
    assert donated.is_deleted()
    kept, _ = jax.lax.scan(make_step(tx), (PARAMS, tx.init(PARAMS)), BATCHES[:3])
    chex.assert_trees_all_close(carry, kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tasks", [NAMES, dict.fromkeys(NAMES, 0.0)])
def test_a_schedule_for_gamma_by_inject_hyperparams(tasks: Any) -> None:
    injected = optax.inject_hyperparams(dynamic_task_prioritization)
    schedule: Any = optax.linear_schedule(2.0, 0.0, 4)
    stages = {0: ["a", "b"], 1: ["a", "b", "c"]}
    link = injected(tasks, gamma=schedule, alpha=1.0, warmup_steps=0, stages=stages)
    tx = optax.chain(link, optax.sgd(0.0))
    step = jax.jit(make_step_of_injected(tx))
    state = tx.init(PARAMS)
    for index, x in enumerate(BATCHES):
        state = step(state, x)
        gamma = float(schedule(index))
        np.testing.assert_allclose(state[0].hyperparams["gamma"], gamma)
        if index > 0:
            kpis = kpis_of(losses_fn(PARAMS, x))
            expected = focal_weights(kpis, gamma)
            chex.assert_trees_all_close(task_weights(state), expected, rtol=1e-4)
    assert toys.num_compilations(step) == 1


def make_step_of_injected(tx: Any) -> Any:
    def step(state: Any, x: jax.Array) -> Any:
        gradients = task_gradients(losses_fn)(PARAMS, x)
        kpis = kpis_of(gradients.losses)
        return tx.update(gradients, state, PARAMS, kpis=kpis)[1]

    return step


def test_a_number_of_tasks_is_static_under_inject_hyperparams() -> None:
    link = optax.inject_hyperparams(dynamic_task_prioritization)(3, gamma=1.0)
    with pytest.raises(ValueError, match=r"static_args=\('tasks',\)"):
        link.init(PARAMS)
    named = optax.inject_hyperparams(dynamic_task_prioritization, static_args="tasks")
    state: Any = named(3, gamma=1.0)
    assert state.init(PARAMS).inner_state.task_weights.shape == (3,)


STEPS = toys.random_steps(4, num_steps=8)


def weights_of(**arguments: Any) -> np.ndarray:
    link = dynamic_task_prioritization(toys.NAMES, **arguments)
    state, found = link.init(None), []
    for index in range(8):
        step = jax.tree.map(lambda x, i=index: x[i], STEPS)
        _, state = toys.update(link, state, step, toys.NAMES)
        found.append([float(state.task_weights[name]) for name in toys.NAMES])
    return np.array(found)


def averaged(alpha: float = 0.75) -> np.ndarray:
    means = [np.asarray(STEPS.kpis[0])]
    for kpi in np.asarray(STEPS.kpis[1:]):
        means.append(alpha * kpi + (1 - alpha) * means[-1])
    return np.array(means)


def test_stages_with_warm_up_for_each_task() -> None:
    schedule = {0: ["a", "b"], 4: ["a", "b", "d"]}
    found = weights_of(stages=schedule, warmup_steps=2, gamma=1.0)
    focal = np.asarray(focal_weights(jnp.array(averaged()), 1.0))
    # First stage: ones. Second: a and b are warm, d warms up for two steps.
    np.testing.assert_array_equal(found[:4], [[1, 1, 0, 0]] * 4)
    np.testing.assert_allclose(found[4:, :2], focal[4:, :2], rtol=1e-5)
    np.testing.assert_array_equal(found[4:, 2], 0)
    np.testing.assert_array_equal(found[4:6, 3], 1)
    np.testing.assert_allclose(found[6:, 3], focal[6:, 3], rtol=1e-5)


def test_without_stages_focal_weights_follow_the_warm_up() -> None:
    found = weights_of(warmup_steps=3)
    np.testing.assert_array_equal(found[:3], 1)
    focal = np.asarray(focal_weights(jnp.array(averaged())))
    np.testing.assert_allclose(found[3:], focal[3:], rtol=1e-5)


@pytest.mark.parametrize(("normalize", "total"), [("sum_to_T", 3), ("sum_to_1", 1)])
def test_normalization_is_over_active_tasks(normalize: Any, total: int) -> None:
    schedule = {0: ["a"], 1: ["a", "b", "c"]}
    found = weights_of(stages=schedule, warmup_steps=0, normalize=normalize)
    focal = np.asarray(focal_weights(jnp.array(averaged())))[1:, :3]
    expected = total * focal / focal.sum(1, keepdims=True)
    np.testing.assert_allclose(found[1:, :3], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 3], 0)


def test_solved_tasks_share_a_normalized_weight_equally() -> None:
    link = dynamic_task_prioritization(2, warmup_steps=0, normalize="sum_to_T")
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.ones((2, 3)))
    _, state = link.update(gradients, link.init(None), kpis=jnp.ones(2))
    np.testing.assert_allclose(state.task_weights, [1.0, 1.0], rtol=1e-6)


def test_a_single_normalized_task_is_plain_training() -> None:
    link = dynamic_task_prioritization(1, warmup_steps=0, normalize="sum_to_T")
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.full((1, 3), 2.0))
    updates, _ = link.update(gradients, link.init(None), kpis=jnp.array([0.37]))
    np.testing.assert_allclose(updates, 2.0, rtol=1e-6)


def test_a_conflict_aware_balancer_has_the_last_word() -> None:
    found = weights_of(warmup_steps=0, gamma=1.0, balancer=toys.equal_norms())
    focal = np.asarray(focal_weights(jnp.array(averaged()), 1.0))
    norms = np.linalg.norm(np.asarray(STEPS.jacobians), axis=-1)
    np.testing.assert_allclose(found, focal / norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1.0}, "gamma must be"),
        ({"alpha": 1.5}, "alpha must be"),
        ({"kpi_min": 0.0}, "kpi_min must be"),
        ({"warmup_steps": -1}, "warmup_steps must be"),
        ({"normalize": "sum"}, "normalize must be"),
        ({"stages": {0: ["a"], 5: ["z"]}}, "unknown task 'z'. The tasks are a, b, c"),
        ({"stages": {5: ["a"], 0: ["b"]}}, "start at 0 and increase"),
        ({"gamma": {"a": 1.0, "z": 1.0}}, "gamma does not match"),
        ({"tasks": []}, "tasks is empty"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    def first_step() -> None:
        tx = dynamic_task_prioritization(**{"tasks": NAMES, **arguments})
        gradients = task_gradients(losses_fn)(PARAMS, BATCHES[0])
        kpis = dict.fromkeys(NAMES, 0.5)
        tx.update(gradients, tx.init(PARAMS), PARAMS, kpis=kpis)

    with pytest.raises(ValueError, match=message):
        first_step()


def test_a_balancer_that_was_not_called() -> None:
    with pytest.raises(TypeError, match="call it"):
        dynamic_task_prioritization(NAMES, balancer=toys.equal_norms)
