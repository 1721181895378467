from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import TaskGradients, curricula, focal_weights, task_gradients
from tests import devices, toys
from tests.toys import assert_near, balance, balancers, dynamic_task_prioritization

KPIS = {"a": jnp.array(0.3), "b": jnp.array(0.7), "c": jnp.array(0.9)}
NAMES = tuple(KPIS)
PARAMS = {
    "trunk": jnp.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]]),
    "heads": {"a": jnp.array([1.0, 0.5, -0.3]), "b": jnp.ones(3), "c": jnp.zeros(3)},
}
X = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7]])


def losses_fn(params: Any, x: jax.Array = X) -> dict[str, jax.Array]:
    hidden = jnp.tanh(x @ params["trunk"])
    heads = params["heads"].items()
    return {k: jnp.mean((hidden @ head - 1.0) ** 2) for k, head in heads}


def weighted(weights: Any) -> Any:
    def total(params: Any) -> jax.Array:
        return dtp_jax.combine_losses(losses_fn(params), weights)

    return jax.grad(total)(PARAMS)


def updated(link: Any, state: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    state = link.init(PARAMS) if state is None else state
    return link.update(task_gradients(losses_fn)(PARAMS), state, PARAMS, **extra_args)


def assert_close(a: Any, b: Any) -> None:
    assert_near(a, b, rtol=1e-5)


def test_the_update_is_the_gradient_of_the_weighted_sum() -> None:
    updates, state = updated(balance(balancers.focal(), NAMES), kpis=KPIS)
    weights = focal_weights(KPIS)
    assert_close(state.task_weights, weights)
    assert_close(updates, weighted(weights))


def test_ones_are_plain_training() -> None:
    updates, _ = updated(balance(optax.identity(), NAMES))
    assert_close(updates, weighted(dict.fromkeys(NAMES, 1.0)))


def test_a_step_costs_what_a_fixed_weighted_sum_costs() -> None:
    wide = {
        "trunk": jnp.ones((2, 512)),
        "deep": jnp.ones((512, 512)),
        "heads": {k: jnp.ones(512) for k in NAMES},
    }
    x = jnp.ones((64, 2))

    def deep_losses(params: Any) -> dict[str, jax.Array]:
        hidden = jnp.tanh(jnp.tanh(x @ params["trunk"]) @ params["deep"])
        return {k: jnp.mean((hidden @ w) ** 2) for k, w in params["heads"].items()}

    link = dynamic_task_prioritization(NAMES)
    tx = optax.chain(link, optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    plain_tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    def ours(params: Any, state: Any, kpis: Any) -> Any:
        gradients = task_gradients(deep_losses)(params)
        updates, state = tx.update(gradients, state, params, kpis=kpis)
        return optax.apply_updates(params, updates), state, gradients.losses

    def plain(params: Any, state: Any, weights: Any) -> Any:
        def total(params: Any) -> tuple[jax.Array, Any]:
            losses = deep_losses(params)
            return dtp_jax.combine_losses(losses, weights), losses

        gradient, losses = jax.grad(total, has_aux=True)(params)
        updates, state = plain_tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, losses

    flops, memory = toys.cost(ours, wide, tx.init(wide), KPIS)
    state = plain_tx.init(wide)
    plain_flops, plain_memory = toys.cost(plain, wide, state, KPIS)
    assert flops <= 1.01 * plain_flops
    assert memory <= 1.01 * plain_memory


def test_task_mask_and_none_kpis_take_a_task_out() -> None:
    link = balance(balancers.focal(), NAMES)
    mask = {"a": True, "b": False, "c": True}
    updates, state = updated(link, kpis=KPIS, task_mask=mask)
    assert float(state.task_weights["b"]) == 0
    assert state.balancer.kpis.count.tolist() == [1, 0, 1]
    assert_close(updates, weighted({**focal_weights(KPIS), "b": 0.0}))
    _, state = updated(link, kpis={**KPIS, "b": None})
    assert float(state.task_weights["b"]) == 1.0


def test_preferences_run_first_and_the_balancer_has_the_last_word() -> None:
    link = balance(toys.equal_norms(), NAMES, preferences=balancers.focal())
    _, state = updated(link, kpis=KPIS)
    gramian = task_gradients(losses_fn)(PARAMS).gramian()
    focal = jnp.stack([focal_weights(KPIS)[k] for k in NAMES])
    expected = focal / jnp.sqrt(jnp.diagonal(gramian))
    found = jnp.stack([state.task_weights[k] for k in NAMES])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A chain says the same.
    chained = balance(optax.chain(balancers.focal(), toys.equal_norms()), NAMES)
    _, other = updated(chained, kpis=KPIS)
    assert_close(state.task_weights, other.task_weights)


@pytest.mark.parametrize("heads", ["weights", "preferences"])
def test_heads_outside_of_the_shared_parameters(heads: Any) -> None:
    link = balance(
        toys.equal_norms(), NAMES, preferences=balancers.focal(), heads=heads
    )
    shared = {"trunk": True, "heads": False}
    gradients = task_gradients(losses_fn, shared=shared)(PARAMS)
    updates, state = link.update(gradients, link.init(PARAMS), PARAMS, kpis=KPIS)
    assert_close(updates["trunk"], weighted(state.task_weights)["trunk"])
    of_heads = state.task_weights if heads == "weights" else focal_weights(KPIS)
    assert_close(updates["heads"], weighted(of_heads)["heads"])


def test_unscaled_heads_by_default_preferences() -> None:
    link = balance(balancers.focal(), NAMES, heads="preferences")
    shared = {"trunk": True, "heads": False}
    gradients = task_gradients(losses_fn, shared=shared)(PARAMS)
    mask = {"a": True, "b": True, "c": False}
    state = link.init(PARAMS)
    updates, _ = link.update(gradients, state, PARAMS, kpis=KPIS, task_mask=mask)
    assert_close(updates["heads"], weighted({"a": 1.0, "b": 1.0, "c": 0.0})["heads"])
    with pytest.raises(ValueError, match="Every parameter is shared"):
        updated(link, kpis=KPIS)


# The transformations of optax, applied to task weights.


def test_ema_smooths_task_weights() -> None:
    chained = optax.chain(balancers.focal(alpha=1.0), optax.ema(0.9, debias=False))
    link = balance(chained, NAMES)
    _, state = updated(link, kpis=KPIS)
    _, state = updated(link, state, kpis=dict.fromkeys(NAMES, 0.5))
    first, second = focal_weights(KPIS), focal_weights(jnp.array(0.5))
    expected = {k: 0.9 * 0.1 * first[k] + 0.1 * second for k in NAMES}
    assert_close(state.task_weights, expected)


def test_an_ema_leaks_no_weight_to_a_missing_task() -> None:
    link = balance(optax.chain(balancers.focal(), optax.ema(0.9)), NAMES)
    _, state = updated(link, kpis=KPIS)
    mask = {"a": True, "b": False, "c": True}
    _, state = updated(link, state, kpis=KPIS, task_mask=mask)
    assert float(state.task_weights["b"]) == 0


def test_a_schedule_scales_task_weights() -> None:
    fade = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 2))
    link = balance(optax.chain(balancers.focal(), fade), NAMES)
    _, state = updated(link, kpis=KPIS)
    assert_close(state.task_weights, focal_weights(KPIS))
    _, state = updated(link, state, kpis=KPIS)
    half = jax.tree.map(lambda w: w / 2, focal_weights(KPIS))
    assert_close(state.task_weights, half)


def test_masked_leaves_a_task_at_its_preference() -> None:
    mask = {"a": True, "b": False, "c": True}
    link = balance(
        optax.masked(balancers.focal(), mask, mask_compatible_extra_args=True), NAMES
    )
    _, state = updated(link, kpis=KPIS)
    assert_close(state.task_weights, {**focal_weights(KPIS), "b": 1.0})


def test_masked_around_a_gramian_rule_is_an_error() -> None:
    mask = {"a": True, "b": False, "c": True}
    link = balance(optax.masked(toys.equal_norms(), mask), NAMES)
    with pytest.raises(ValueError, match=r"2 preferences for 3 task gradients.*stages"):
        updated(link)


def test_snapshot_records_weights_inside_the_chain() -> None:
    record = optax.snapshot("raw", lambda weights: weights)
    normalize = balancers.normalize_weights()
    link = balance(optax.chain(balancers.focal(), record, normalize), NAMES)
    _, state = updated(link, kpis=KPIS)
    raw = optax.tree.get(state, "raw")
    assert_close(raw, focal_weights(KPIS))
    final = optax.tree.get(state, "task_weights")
    np.testing.assert_allclose(sum(final.values()), 3.0, rtol=1e-6)


def test_injected_hyperparameters_follow_a_schedule() -> None:
    injected = optax.inject_hyperparams(balancers.focal)
    link = balance(injected(gamma=optax.linear_schedule(2.0, 0.0, 2)), NAMES)
    step = jax.jit(lambda state: updated(link, state, kpis=KPIS)[1])
    state = link.init(PARAMS)
    for gamma in (2.0, 1.0, 0.0):
        state = step(state)
        assert_close(state.task_weights, focal_weights(KPIS, gamma))
    assert toys.num_compilations(step) == 1


# Bad values at run time.


def test_apply_if_finite_after_the_link_drops_a_poisoned_step() -> None:
    def poisoned(params: Any, bad: jax.Array) -> dict[str, jax.Array]:
        losses = losses_fn(params)
        # Zero weight times a derivative of NaN is NaN in every shared parameter.
        return {**losses, "c": losses["c"] * jnp.where(bad > 0, jnp.nan, 1.0)}

    link = balance(balancers.focal(), NAMES)
    tx = optax.chain(link, optax.apply_if_finite(optax.adam(0.1), 5))

    @jax.jit
    def step(params: Any, state: Any, bad: jax.Array) -> Any:
        gradients = task_gradients(poisoned)(params, bad)
        kpis = {**KPIS, "c": jnp.where(bad > 0, jnp.nan, 0.9)}
        updates, state = tx.update(gradients, state, params, kpis=kpis)
        return optax.apply_updates(params, updates), state

    params, state = step(PARAMS, tx.init(PARAMS), jnp.array(0.0))
    after, bad_state = step(params, state, jnp.array(1.0))
    chex.assert_trees_all_equal(after, params)
    assert float(bad_state[0].task_weights["c"]) == 0
    chex.assert_tree_all_finite(bad_state[0])
    chex.assert_trees_all_equal(bad_state[1].inner_state, state[1].inner_state)
    after, _ = step(after, bad_state, jnp.array(0.0))
    assert not np.array_equal(after["trunk"], params["trunk"])


def test_stacked_gradients_leave_the_other_tasks_unharmed() -> None:
    rows = {"w": jnp.array([[1.0, 2.0], [jnp.nan, jnp.nan], [0.5, -1.0]])}
    losses = {"a": jnp.array(1.0), "b": jnp.array(jnp.inf), "c": jnp.array(2.0)}
    link = balance(balancers.focal(), NAMES)
    params = {"w": jnp.zeros(2)}
    updates, state = link.update(
        rows, link.init(params), params, kpis=KPIS, losses=losses
    )
    weights = focal_weights(KPIS)
    expected = weights["a"] * rows["w"][0] + weights["c"] * rows["w"][2]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
    assert state.balancer.kpis.count.tolist() == [1, 0, 1]


def test_gradients_accumulated_over_microbatches_are_those_of_the_batch() -> None:
    x = jax.random.normal(jax.random.key(0), (8, 2))

    def stacked(params: Any, x: jax.Array) -> Any:
        gradients = task_gradients(losses_fn)(params, x)
        return gradients.stack(), gradients.losses

    mean = optax.microbatching.AccumulationType.MEAN
    accumulated = optax.microbatching.microbatch(stacked, 1, 2, mean)
    rows, losses = accumulated(PARAMS, x)
    link = balance(optax.chain(balancers.focal(), toys.equal_norms()), NAMES)
    found = link.update(rows, link.init(None), PARAMS, losses=losses, kpis=KPIS)
    whole = task_gradients(losses_fn)(PARAMS, x)
    assert_close(found, link.update(whole, link.init(None), PARAMS, kpis=KPIS))


def test_named_tasks_and_stacked_gradients_without_losses() -> None:
    rows, params = {"w": jnp.arange(6.0).reshape(3, 2)}, {"w": jnp.ones(2)}
    link = balance(balancers.focal(), NAMES)
    weights = jnp.stack([focal_weights(KPIS)[name] for name in NAMES])
    expected = weights @ rows["w"]
    for gradients in (rows, TaskGradients.from_stacked(rows)):
        updates, state = link.update(gradients, link.init(params), params, kpis=KPIS)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
        assert set(state.task_weights) == set(NAMES)


def test_a_solved_task_stays_active_through_a_chain() -> None:
    solved = {"a": 1.0, "b": 0.1, "c": 0.5}
    raw = balancers.focal(gamma=1.0)
    for rest in (balancers.normalize_weights(), optax.scale(1e-3)):
        link = balance(optax.chain(raw, rest, toys.equal_norms()), NAMES)
        _, state = updated(link, kpis=solved)
        assert float(state.task_weights["a"]) > 0


def test_weights_are_constants_to_the_derivative_of_an_update() -> None:
    link = balance(balancers.focal(differentiate_kpis=True), NAMES)

    def size(kpi: jax.Array) -> jax.Array:
        return optax.tree.norm(updated(link, kpis={**KPIS, "a": kpi})[0])

    assert float(jax.grad(size)(jnp.array(0.3))) == 0


def test_preferences_with_a_memory_revive_no_missing_task() -> None:
    first = optax.chain(balancers.focal(), optax.ema(0.9))
    link = balance(toys.equal_norms(), NAMES, preferences=first, heads="preferences")
    make = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
    _, state = link.update(make(PARAMS), link.init(PARAMS), PARAMS, kpis=KPIS)
    mask = {"a": True, "b": False, "c": True}
    updates, _ = link.update(make(PARAMS), state, PARAMS, kpis=KPIS, task_mask=mask)
    assert not updates["heads"]["b"].any()


def test_a_loss_beyond_float32_is_finite() -> None:
    with jax.enable_x64(True):
        link = balance(toys.remember_losses(), ["a", "b"])
        losses = {"a": jnp.float64(1e200), "b": jnp.float64(1.0)}
        rows = TaskGradients.from_stacked(jnp.ones((2, 3)), losses)
        _, state = link.update(rows, link.init(None))
        assert np.isfinite(state.balancer.last).all()
        assert state.task_weights == {"a": 1.0, "b": 1.0}


# Bad input while tracing.


@pytest.mark.parametrize(
    ("kpis", "message"),
    [
        (None, "focal needs `kpis`"),
        ({"a": 0.5}, r"kpis does not match .*without an entry: \['b'\], \['c'\]"),
        ({**KPIS, "d": 0.5}, r"entries of no task: \['d'\]"),
        ({**KPIS, "b": 1.2}, r"kpis\['b'\] must be in \[0, 1\], got 1.2. Divide"),
        ({**KPIS, "b": jnp.ones(2)}, r"kpis\['b'\] has shape \[2\]"),
        (jnp.ones(3), "kpis does not match"),
    ],
)
def test_wrong_kpis(kpis: Any, message: str) -> None:
    link = balance(balancers.focal(), NAMES)
    with pytest.raises(ValueError, match=message):
        updated(link, kpis=kpis)


def test_losses_of_other_tasks() -> None:
    link = balance(balancers.focal(), ["a", "b"])
    with pytest.raises(ValueError, match=r"losses does not match the tasks a, b"):
        updated(link, kpis={"a": 0.5, "b": 0.5})
    of_three = TaskGradients.from_stacked(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"gradients are of 3 tasks.* 2 tasks a, b"):
        link.update(of_three, link.init(PARAMS), kpis={"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 2), r"gradient\['w'\] has the shape of its parameter.*jax.grad"),
        # The first axis of a parameter happens to be the number of tasks.
        ((3, 2), r"gradient\['w'\] has the shape of its parameter"),
        ((2, 3, 2), r"gradient\['w'\] has shape \[2, 3, 2\], expected \[3, 3, 2\]"),
    ],
)
def test_gradients_that_are_not_stacked(shape: Any, message: str) -> None:
    params = {"w": jnp.ones(shape[-2:])}
    link = balance(balancers.focal(), NAMES)
    with pytest.raises(ValueError, match=message):
        link.update({"w": jnp.ones(shape)}, link.init(params), params, kpis=KPIS)


def test_plain_gradients_of_another_structure_or_without_params() -> None:
    link = balance(balancers.focal(), NAMES)
    state, params = link.init(None), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="the parameters"):
        link.update({"v": jnp.ones((3, 2))}, state, params, kpis=KPIS)
    with pytest.raises(ValueError, match="needs the parameters to be checked"):
        link.update({"w": jnp.ones((3, 2))}, state, kpis=KPIS)


def test_forgotten_aux_and_wrappers_are_named() -> None:
    link = balance(balancers.focal(), NAMES)
    state = link.init(PARAMS)

    def with_aux(params: Any) -> Any:
        return losses_fn(params), KPIS

    gradients = task_gradients(with_aux)(PARAMS)
    with pytest.raises(ValueError, match=r"has_aux=True"):
        link.update(gradients, state, PARAMS, kpis=KPIS)
    pair = task_gradients(with_aux, has_aux=True)(PARAMS)
    with pytest.raises(ValueError, match=r"unpack it: gradients, aux"):
        link.update(pair, state, PARAMS, kpis=KPIS)
    bare = balancers.focal()
    gradients = task_gradients(losses_fn)(PARAMS)
    with pytest.raises(ValueError, match=r"wrap it, optax.chain\(dtp_jax.balance"):
        bare.update(gradients, bare.init(PARAMS), PARAMS, kpis=KPIS)


def test_a_number_of_tasks_with_named_losses() -> None:
    link = balance(balancers.focal(), 3)
    message = r"expected one array of shape \[3\], got entries \['a'\], \['b'\]"
    with pytest.raises(ValueError, match=message):
        updated(link, kpis=jnp.ones(3))


def test_explicitly_stacked_gradients_are_checked_against_the_parameters() -> None:
    # The first axis of the parameter happens to be the number of tasks.
    params = {"w": jnp.ones((3, 2))}
    link = balance(balancers.focal(), NAMES)
    gradients = TaskGradients.from_stacked({"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="has the shape of its parameter"):
        link.update(gradients, link.init(params), params, kpis=KPIS)


def test_wrong_arguments_of_the_factory() -> None:
    with pytest.raises(TypeError, match=r"call it, as in focal\(\)"):
        balance(balancers.focal, NAMES)
    with pytest.raises(TypeError, match="preferences must be a balancer"):
        balance(balancers.focal(), NAMES, preferences=1.0)
    with pytest.raises(ValueError, match="heads must be"):
        balance(balancers.focal(), NAMES, heads="none")
    with pytest.raises(ValueError, match="tasks is empty"):
        balance(balancers.focal(), [])


def test_a_restored_state_of_another_number_of_tasks() -> None:
    two, three = balance(balancers.focal(), 2), balance(balancers.focal(), 3)
    gradients = TaskGradients.from_stacked(jnp.ones((3, 2)), jnp.ones(3))
    message = r"does not fit the 3 tasks 0, 1, 2: .*has shape \[2\], expected \[3\]"
    with pytest.raises(ValueError, match=message):
        three.update(gradients, two.init(None), kpis=jnp.full(3, 0.5))
    with pytest.raises(ValueError, match="does not fit"):
        three.update(gradients, (), kpis=jnp.full(3, 0.5))


def test_float64_weights_for_float64_tasks() -> None:
    with jax.enable_x64(True):
        tasks = {"a": jnp.float64(0), "b": jnp.float64(0)}
        link = balance(balancers.focal(), tasks)
        gradients = task_gradients(lambda x: {"a": x**2, "b": 3 * x})(jnp.float64(1))
        state = link.init(None)
        kpis = {"a": jnp.float64(0.3), "b": jnp.float64(0.6)}
        updates, new = link.update(gradients, state, kpis=kpis)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
        exact = -(0.7**2) * np.log(0.3)
        np.testing.assert_allclose(new.task_weights["a"], exact, rtol=1e-14)
        assert updates.dtype == jnp.float64


def test_inside_shard_map_with_global_losses_and_kpis() -> None:
    mesh = devices.mesh("data")
    x = jax.random.normal(jax.random.key(0), (64, 2))
    link = balance(balancers.focal(alpha=1.0), NAMES)

    def kpis_of(losses: Any) -> Any:
        return jax.tree.map(lambda loss: jnp.exp(-loss), losses)

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        varying = jax.lax.pcast(params, "data", to="varying")
        gradients = task_gradients(losses_fn)(varying, x)
        losses = jax.lax.pmean(gradients.losses, "data")
        updates, state = link.update(
            gradients, state, losses=losses, kpis=kpis_of(losses)
        )
        return jax.lax.pmean(updates, "data"), state

    everywhere, split = jax.P(), jax.P("data")
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(everywhere, everywhere, split),
        out_specs=(everywhere, everywhere),
    )
    found = jax.jit(mapped)(PARAMS, link.init(PARAMS), x)
    gradients = task_gradients(losses_fn)(PARAMS, x)
    kpis = kpis_of(gradients.losses)
    assert_close(found, link.update(gradients, link.init(PARAMS), PARAMS, kpis=kpis))


def test_a_balancer_in_the_wrong_place() -> None:
    swapped: Any = curricula.every_k
    with pytest.raises(TypeError, match="the balancer comes first"):
        swapped(10, balancers.upgrad())
