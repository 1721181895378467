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
from dtp_jax.links import state_from_version_0_1
from tests import toys
from tests.toys import assert_near, dynamic_task_prioritization

NAMES = ("a", "b", "c")
# The weights of the formula as they are, and the average of the paper.
PLAIN = {"alpha": 0.75, "normalize": None, "ramp_steps": 0}


def losses_fn(params: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    return {
        "a": jnp.mean((x @ params - 1.0) ** 2),
        "b": jnp.mean((x @ params[::-1]) ** 2),
        "c": jnp.sum(params**2),
    }


def kpis_of(losses: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.exp(-loss) for name, loss in losses.items()}


def optimizer(**arguments: Any) -> Any:
    arguments = {**PLAIN, "warmup_steps": 2, **arguments}
    link = dynamic_task_prioritization(NAMES, **arguments)
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
    assert_near(scanned, carry, rtol=1e-5)
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
    assert_near(carry, kept, rtol=1e-5)


@pytest.mark.parametrize("tasks", [NAMES, dict.fromkeys(NAMES, 0.0)])
def test_a_schedule_for_gamma_by_inject_hyperparams(tasks: Any) -> None:
    injected = optax.inject_hyperparams(dynamic_task_prioritization)
    schedule: Any = optax.linear_schedule(2.0, 0.0, 4)
    stages = {0: ["a", "b"], 1: ["a", "b", "c"]}
    arguments = {**PLAIN, "alpha": 1.0, "warmup_steps": 0, "stages": stages}
    link = injected(tasks, gamma=schedule, **arguments)
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
    link = dynamic_task_prioritization(toys.NAMES, **{**PLAIN, **arguments})
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


def test_the_defaults_are_those_of_the_study() -> None:
    given = {"warmup_steps": 1, "ramp_steps": 3}
    link = dynamic_task_prioritization(toys.NAMES, **given)
    state, found = link.init(None), []
    for index in range(8):
        step = jax.tree.map(lambda x, i=index: x[i], STEPS)
        _, state = toys.update(link, state, step, toys.NAMES)
        found.append([float(state.task_weights[name]) for name in toys.NAMES])
    focal = np.asarray(focal_weights(jnp.array(averaged(0.05)), 2.0))
    # One step at weight 1, then a third, two thirds and all of the way.
    share = np.clip((np.arange(8) - 1 + 1) / 3, 0, 1)[:, None]
    mixed = 1 + share * (focal - 1)
    expected = 4 * mixed / mixed.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_floor_mixes_with_the_mean_and_keeps_the_sum() -> None:
    given = {"warmup_steps": 0, "normalize": "sum_to_T"}
    plain = weights_of(**given)
    mask_free = weights_of(**given, floor=0.3)
    np.testing.assert_allclose(mask_free, 0.3 + 0.7 * plain, rtol=1e-5)
    np.testing.assert_allclose(weights_of(**given, floor=1.0), 1.0, rtol=1e-6)
    to_one = weights_of(warmup_steps=0, normalize="sum_to_1", floor=0.3)
    np.testing.assert_allclose(to_one, (0.3 + 0.7 * plain) / 4, rtol=1e-5)
    # Over the active tasks only.
    staged = {**given, "stages": {0: ["a"], 1: ["a", "b", "d"]}}
    some = weights_of(**staged, floor=0.5)[1:]
    np.testing.assert_allclose(some, 0.5 * (weights_of(**staged)[1:] + ACTIVE_3))
    np.testing.assert_allclose(some.sum(1), 3, rtol=1e-5)


ACTIVE_3 = np.array([1.0, 1.0, 0.0, 1.0])


def test_a_floor_needs_a_sum() -> None:
    for floor in (0.1, np.float32(0.1)):
        with pytest.raises(ValueError, match=r"floor mixes .*normalize=\"sum_to_T\""):
            dynamic_task_prioritization(NAMES, floor=floor, normalize=None)
    with pytest.raises(ValueError, match="floor must be"):
        dynamic_task_prioritization(NAMES, floor=1.1)


def test_a_task_that_joins_comes_in_over_the_ramp() -> None:
    schedule = {0: ["a", "b"], 2: ["a", "b", "d"], 4: ["a", "b"], 5: ["a", "b", "d"]}
    given = {"stages": schedule, "warmup_steps": 0, "normalize": "sum_to_T"}
    at_once, found = weights_of(**given), weights_of(**given, ramp_steps=2)
    # The tasks of the first stage start at once.
    np.testing.assert_allclose(found[:2], [[1, 1, 0, 0]] * 2, rtol=1e-6)
    # d joins at 2, leaves at 4 and joins anew at 5: half of its weight, then all.
    focal = np.asarray(focal_weights(jnp.array(averaged())))[:, [0, 1, 3]]
    for index, (share_ab, share_d, factor_d) in {
        2: (0.5, 0.5, 0.5),
        3: (1.0, 1.0, 1.0),
        5: (1.0, 0.5, 0.5),
        6: (1.0, 1.0, 1.0),
    }.items():
        share = np.array([share_ab, share_ab, share_d])
        mixed = 1 + share * (focal[index] - 1)
        expected = 3 * mixed / mixed.sum() * np.array([1, 1, factor_d])
        np.testing.assert_allclose(found[index, [0, 1, 3]], expected, rtol=1e-5)
    assert (found[[2, 3, 5, 6, 7], 3] > 0).all()
    assert found[4, 3] == at_once[4, 3] == 0


def test_a_mask_does_not_make_a_task_join_anew() -> None:
    link = dynamic_task_prioritization(
        toys.NAMES, **{**PLAIN, "warmup_steps": 1, "ramp_steps": 0, "gamma": 1.0}
    )
    state = link.init(None)
    for index, present in enumerate([True, False, True]):
        step = jax.tree.map(lambda x, i=index: x[i], STEPS)
        mask = dict.fromkeys(toys.NAMES, True) | {"b": present}
        _, state = toys.update(link, state, step, toys.NAMES, task_mask=mask)
    mean = 0.75 * STEPS.kpis[2, 1] + 0.25 * STEPS.kpis[0, 1]
    expected = focal_weights(mean, 1.0)
    np.testing.assert_allclose(state.task_weights["b"], expected, rtol=1e-5)


def test_steps_without_a_kpi_do_not_count_in_the_average() -> None:
    given = {**PLAIN, "alpha": 0.2, "warmup_steps": 0}
    link = dynamic_task_prioritization(2, **given)
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.ones((2, 3)))

    def mean_after(observed: list[float | None]) -> float:
        state = link.init(None)
        for kpi in observed:
            _, state = link.update(gradients, state, kpis=[kpi, 0.5])
        return float(state.balancer.kpis.mean[0])

    assert mean_after([0.4, None, None, 0.9]) == mean_after([0.4, 0.9])
    np.testing.assert_allclose(mean_after([0.4, 0.9]), 0.2 * 0.9 + 0.8 * 0.4, rtol=1e-6)


def kpi_means(kpi: Any, **given: Any) -> Any:
    link = dynamic_task_prioritization(NAMES, **{**PLAIN, "warmup_steps": 0, **given})
    gradients = task_gradients(losses_fn)(PARAMS, BATCHES[0])
    state = link.init(PARAMS)
    _, state = link.update(gradients, state, PARAMS, kpis=kpi)
    return state.balancer.kpis


def test_a_range_maps_the_raw_kpi_before_it_is_checked() -> None:
    ranges = {"a": (10.0, 90.0), "b": (4.0, 2.0)}
    found = kpi_means({"a": 50.0, "b": 2.5, "c": 0.7}, kpi_range=ranges)
    # (50 - 10) / 80; lower is better: (2.5 - 4) / (2 - 4); as it is.
    np.testing.assert_allclose(found.mean, [0.5, 0.75, 0.7], rtol=1e-6)
    ends = kpi_means({"a": 200.0, "b": 9.0, "c": 1.0}, kpi_range=ranges)
    np.testing.assert_allclose(ends.mean, [0.99, 0.0, 1.0], rtol=1e-6)
    missing = kpi_means({"a": None, "b": jnp.nan, "c": 0.5}, kpi_range=ranges)
    assert missing.count.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"kpis\['c'\] must be in \[0, 1\], got 70"):
        kpi_means({"a": 50.0, "b": 2.5, "c": 70.0}, kpi_range=ranges)


def test_a_range_of_tasks_in_one_array() -> None:
    link = dynamic_task_prioritization(2, kpi_range={1: (0.0, 50.0)}, warmup_steps=0)
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.ones((2, 3)))
    _, state = link.update(gradients, link.init(None), kpis=jnp.array([0.5, 20.0]))
    np.testing.assert_allclose(state.balancer.kpis.mean, [0.5, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"z": (0.0, 1.0)}, "kpi_range must be one of a, b, c, got 'z'"),
        ({"a": (0.5, 0.5)}, r"kpi_range\['a'\] must differ"),
        ({"a": 0.5}, r"kpi_range\['a'\] must be a pair \(chance, reference\)"),
        ({"a": (0.0, float("inf"))}, r"kpi_range\['a'\] must be finite"),
        ([("a", 0.0, 1.0)], "kpi_range must be a dict"),
    ],
)
def test_wrong_ranges(ranges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dynamic_task_prioritization(NAMES, kpi_range=ranges)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"normalize": None},
    {"normalize": "sum_to_1", "floor": 0.5},
    {"stages": {0: ["a"], 3: ["a", "b", "c", "d"]}, "ramp_steps": 5},
    {"warmup_steps": 0, "kpi_range": {"a": (0.1, 0.9)}, "gamma": {"a": 1.0, "b": 1.0,
     "c": 0.0, "d": 2.0}},
]  # fmt: skip


def test_a_run_may_be_resumed_with_other_settings() -> None:
    states = [
        dynamic_task_prioritization(toys.NAMES, **given).init(None)
        for given in SETTINGS
    ]
    for state in states[1:]:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, states[0])
    # Three steps with the first setting, then the stages of another: it knows the step.
    first = dynamic_task_prioritization(toys.NAMES, **SETTINGS[0])
    later = dynamic_task_prioritization(toys.NAMES, **SETTINGS[3])
    state = states[0]
    for index in range(4):
        step = jax.tree.map(lambda x, i=index: x[i], STEPS)
        link = later if index == 3 else first
        _, state = toys.update(link, state, step, toys.NAMES)
    assert state.balancer.kpis.count.tolist() == [4] * 4
    # The second stage begins: b to d come in at a fifth of their weight of one.
    weights = [float(state.task_weights[name]) for name in toys.NAMES]
    np.testing.assert_allclose(weights, [1.0, 0.2, 0.2, 0.2], rtol=1e-5)


def test_vmap_over_the_new_arguments() -> None:
    def final(floor: Any, ramp_steps: Any, reference: Any) -> Any:
        link = dynamic_task_prioritization(
            toys.NAMES,
            warmup_steps=1,
            floor=floor,
            ramp_steps=ramp_steps,
            kpi_range={"b": (0.0, reference)},
        )

        def one(state: Any, step: toys.Steps) -> Any:
            _, state = toys.update(link, state, step, toys.NAMES)
            return state, state.task_weights["b"]

        return jax.lax.scan(one, link.init(None), STEPS)[1]

    arguments = (
        jnp.array([0.0, 0.3, 1.0]),
        jnp.array([0, 3, 7]),
        jnp.array([1.0, 2.0, 0.5]),
    )
    found = jax.jit(jax.vmap(final))(*arguments)
    for index, row in enumerate(zip(*arguments, strict=True)):
        one = final(float(row[0]), int(row[1]), float(row[2]))
        np.testing.assert_allclose(found[index], one, rtol=1e-5)


@pytest.mark.parametrize("normalize", ["sum_to_T", "sum_to_1", None])
@pytest.mark.parametrize("name", ["mgda", "upgrad", "nash_mtl", "config"])
def test_a_balancer_gets_preferences_of_mean_one(name: str, normalize: Any) -> None:
    rows = jnp.array([[2.0, 0.0], [0.5, 1.0]])
    gradients = dtp_jax.TaskGradients.from_stacked(rows)
    inner = getattr(toys.balancers, name)()
    link = dynamic_task_prioritization(
        2, normalize=normalize, warmup_steps=0, ramp_steps=0, balancer=inner
    )
    _, state = link.update(gradients, link.init(None), kpis=jnp.array([0.3, 0.6]))
    focal = focal_weights(jnp.array([0.3, 0.6]))
    mean = jnp.mean(focal)
    weights, _ = inner.update(
        focal / mean, inner.init(jnp.ones(2)), task_gradients=gradients
    )
    scale = {"sum_to_T": 1.0, "sum_to_1": 0.5, None: mean}[normalize]
    np.testing.assert_allclose(state.task_weights, weights * scale, rtol=1e-4)
    # All solved: preferences of one, and nothing overflows.
    updates, state = link.update(gradients, link.init(None), kpis=jnp.ones(2))
    assert (jnp.abs(updates) < 10).all()


def test_the_state_keeps_what_was_seen() -> None:
    link = dynamic_task_prioritization(3, warmup_steps=0)
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.ones((3, 2)))
    state = link.init(None)
    for kpis in ([70.0, 0.0, jnp.nan], [-0.5, 0.0, jnp.nan], [0.4, 0.0, jnp.nan]):
        _, state = jax.jit(link.update)(gradients, state, kpis=jnp.array(kpis))
    seen = state.balancer
    np.testing.assert_allclose(seen.lowest, [-0.5, 0.0, np.inf])
    np.testing.assert_allclose(seen.highest, [70.0, 0.0, -np.inf])
    assert seen.at_end.tolist() == [0, 3, 0]
    assert seen.kpis.count.tolist() == [3, 3, 0]


def test_a_state_of_version_0_1_goes_on() -> None:
    focal = toys.curricula.warm_up(toys.balancers.focal(alpha=0.75), 2)
    stages = {0: ["a", "b"], 4: list(toys.NAMES)}
    old_link = toys.balance(
        optax.chain(toys.curricula.stages(stages, focal), toys.balancers.upgrad()),
        toys.NAMES,
    )
    new_link = dynamic_task_prioritization(
        toys.NAMES, stages=stages, warmup_steps=2, balancer=toys.balancers.upgrad()
    )
    state = old_link.init(None)
    for index in range(5):
        step = jax.tree.map(lambda x, i=index: x[i], STEPS)
        _, state = toys.update(old_link, state, step, toys.NAMES)
    new = state_from_version_0_1(state, new_link.init(None))
    assert int(new.balancer.step) == 5
    assert new.balancer.active_steps.tolist() == [5, 5, 1, 1]
    expected = averaged()[4]
    np.testing.assert_allclose(new.balancer.kpis.mean, expected, rtol=1e-5)
    step = jax.tree.map(lambda x: x[5], STEPS)
    _, after = toys.update(new_link, new, step, toys.NAMES)
    assert int(after.balancer.step) == 6


@pytest.mark.parametrize("kpi", [0.5, 0.99, 1.0])
@pytest.mark.parametrize("normalize", [None, "sum_to_T", "sum_to_1"])
def test_a_balancer_gets_no_vanishing_preferences(kpi: float, normalize: Any) -> None:
    # The weights of mgda grow as its preferences shrink: here these are ones.
    link = dynamic_task_prioritization(
        2,
        balancer=toys.balancers.mgda(),
        normalize=normalize,
        warmup_steps=0,
        ramp_steps=0,
    )
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.eye(2), jnp.ones(2))
    update, _ = link.update(gradients, link.init(None), kpis=[kpi, kpi])
    assert (jnp.abs(update) <= 1).all()
