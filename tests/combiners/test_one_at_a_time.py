from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from dtp_jax import task_gradients
from tests import devices, toys
from tests.combiner_catalogue import combiners
from tests.toys import assert_near, balancers

TURNS = [0, 1, 2, 0, 2, 1, 1, 0, 2, 2, 1, 0]
ROWS = np.random.default_rng(0).normal(size=(len(TURNS), 8)).astype(np.float32)
PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}


def tree(vector: Any) -> Any:
    return {"w": jnp.asarray(vector[2:]).reshape(2, 3), "b": jnp.asarray(vector[:2])}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(tree["b"]), np.ravel(tree["w"])])


def config_direction(rows: np.ndarray) -> np.ndarray:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    best = np.linalg.pinv(units) @ np.ones(len(rows))
    best /= np.linalg.norm(best)
    return np.sum(rows @ best) * best


def by_the_paper(
    rows: np.ndarray, turns: list[int], b1: float, b2: float
) -> list[np.ndarray]:
    """Momentum ConFIG, with the second moment of its pseudo gradient, divided by it."""
    m, counts = np.zeros((3, 8)), np.zeros(3)
    t, v, before, found = 0, np.zeros(8), np.zeros(8), []
    for row, task in zip(rows.astype(np.float64), turns, strict=True):
        m[task] = b1 * m[task] + (1 - b1) * row
        counts[task] += 1
        if (counts == 0).any():
            found.append(np.zeros(8))
            continue
        t += 1
        direction = config_direction(m / (1 - b1**counts)[:, None])
        now = direction * (1 - b1**t)
        pseudo = (now - b1 * before) / (1 - b1)
        before = now
        v = b2 * v + (1 - b2) * pseudo**2
        found.append(direction / (np.sqrt(v / (1 - b2**t)) + 1e-8))
    return found


def scanned(tx: Any, rows: Any = ROWS, turns: Any = TURNS, **extra: Any) -> Any:
    extra = {name: jnp.asarray(value) for name, value in extra.items()}

    def one(state: Any, step: Any) -> tuple[Any, Any]:
        row, task, more = step
        update, state = tx.update(tree(row), state, PARAMS, task=task, **more)
        return state, update

    steps = jnp.asarray(rows), jnp.asarray(turns), extra
    run = jax.jit(lambda steps: jax.lax.scan(one, tx.init(PARAMS), steps))
    state, updates = run(steps)
    found = [flat(jax.tree.map(lambda x, i=i: x[i], updates)) for i in range(len(rows))]
    return np.array(found), state


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.9)])
def test_adam_makes_momentum_config_of_it(b1: float, b2: float) -> None:
    # Adam stands still for the two steps in which there is nothing to say.
    adam = optax.conditionally_transform(
        optax.scale_by_adam(b1, b2), lambda step, **extra_args: jnp.asarray(step) >= 2
    )
    link = combiners.one_at_a_time(3, balancers.config(), decay=b1)
    found, _ = scanned(optax.chain(link, adam))
    assert_near(found, by_the_paper(ROWS, TURNS, b1, b2), rtol=2e-3)


def test_the_first_moment_is_the_answer_to_the_averages() -> None:
    link = combiners.one_at_a_time(3, balancers.upgrad(), decay=0.8)
    found, state = scanned(link)
    m, counts, moment = np.zeros((3, 8)), np.zeros(3), np.zeros(8)
    for step, (row, task) in enumerate(zip(ROWS, TURNS, strict=True)):
        m[task] = 0.8 * m[task] + 0.2 * row
        counts[task] += 1
        moment = 0.8 * moment + 0.2 * found[step]
        if step < 2:
            np.testing.assert_array_equal(found[step], 0)
            continue
        averages = m / (1 - 0.8**counts)[:, None]
        weights = balancers.upgrad_weights(jnp.asarray(averages @ averages.T))
        corrected = moment / (1 - 0.8 ** (step - 1))
        assert_near(corrected, np.asarray(weights) @ averages, rtol=1e-4)
    rows = np.array(
        [flat(jax.tree.map(lambda x, i=i: x[i], state.tracked)) for i in range(3)]
    )
    assert_near(rows, m, rtol=1e-5)
    assert_near(state.gramian, m @ m.T, rtol=1e-5)


def test_without_averages_one_task_is_plain_training() -> None:
    link = combiners.one_at_a_time(1, balancers.constant(1.0), decay=0.7)
    found, _ = scanned(link, turns=[0] * len(TURNS))
    # The average of one task, corrected, and made of it again.
    m, before = np.zeros(8), np.zeros(8)
    for step, row in enumerate(ROWS):
        m = 0.7 * m + 0.3 * row
        now = m
        assert_near(found[step], (now - 0.7 * before) / 0.3, rtol=1e-4)
        assert_near(found[step], row, rtol=1e-4)
        before = now


def test_eager_named_and_vmapped_steps_agree() -> None:
    tx = combiners.one_at_a_time(["a", "b", "c"], balancers.mgda())
    expected, _ = scanned(tx)
    state = tx.init(PARAMS)
    for step in range(6):
        update, state = tx.update(
            tree(ROWS[step]), state, PARAMS, task="abc"[TURNS[step]]
        )
        assert_near(flat(update), expected[step], rtol=1e-4)

    def total(scale: jax.Array) -> jax.Array:
        state, update = tx.init(PARAMS), PARAMS
        for step in range(4):
            row = tree(scale * ROWS[step])
            update, state = tx.update(row, state, PARAMS, task=TURNS[step])
        return update["w"]

    found = jax.jit(jax.vmap(total))(jnp.array([1.0, 3.0]))
    assert_near(found[0], tree(expected[3])["w"], rtol=1e-3)
    assert_near(found[1], 3 * found[0], rtol=1e-3)


def test_masks_bad_gradients_and_tasks_that_join() -> None:
    tx = combiners.one_at_a_time(3, balancers.mgda(), decay=0.5)
    mask = np.ones((len(TURNS), 3), bool)
    mask[:6, 2] = False
    rows = ROWS.copy()
    rows[3] = np.nan
    found, state = scanned(tx, rows, task_mask=mask)
    assert np.isfinite(found).all()
    # Without the third task two turns suffice; in its own turns nothing is counted.
    np.testing.assert_array_equal(found[0], 0)
    assert np.abs(found[1]).max() > 0
    assert state.counts.tolist() == [3, 4, 2]
    plain = np.array([i for i in range(6) if TURNS[i] != 2 and i != 3])
    alone, _ = scanned(
        tx, ROWS[plain], [TURNS[i] for i in plain], task_mask=mask[plain]
    )
    m = alone[:2]
    assert_near(found[[0, 1]], m, rtol=1e-5)

    nobody, state = scanned(tx, task_mask=np.zeros((len(TURNS), 3), bool))
    np.testing.assert_array_equal(nobody, 0)
    assert state.counts.tolist() == [0, 0, 0]


def test_eight_tasks_cost_little_more_than_one() -> None:
    shapes = (64, 256), (256, 256), (256, 8)
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=s) / 16, jnp.float32) for s in shapes]
    x = jnp.ones((256, 64))

    def loss_fn(params: Any, task: jax.Array) -> jax.Array:
        out = jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]) @ params[2]
        return jnp.mean((out[:, task] - 1) ** 2)

    tx = optax.chain(combiners.one_at_a_time(8, balancers.config()), optax.adam(1e-3))
    plain = optax.adam(1e-3)

    def step(params: Any, state: Any, task: jax.Array) -> Any:
        return tx.update(jax.grad(loss_fn)(params, task), state, params, task=task)

    def plain_step(params: Any, state: Any, task: jax.Array) -> Any:
        return plain.update(jax.grad(loss_fn)(params, task), state, params)

    task = jnp.int32(3)
    flops, _ = toys.cost(step, params, tx.init(params), task)
    of_plain, _ = toys.cost(plain_step, params, plain.init(params), task)
    assert flops <= 1.3 * of_plain


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_averages_are_spread_as_the_parameters_are(kind: AxisType) -> None:
    tx = combiners.one_at_a_time(3, balancers.mgda())
    alone, _ = scanned(tx)
    with jax.set_mesh(devices.mesh("x", kind, 2)):
        spec = {"w": jax.P("x"), "b": jax.P()}
        params = jax.device_put(PARAMS, spec)
        state = tx.init(params)
        assert len({str(s.index) for s in state.tracked["w"].addressable_shards}) == 2
        update, found = jax.jit(tx.update), PARAMS
        for step in range(4):
            row = jax.device_put(tree(ROWS[step]), spec)
            found, state = update(row, state, params, task=jnp.int32(TURNS[step]))
        assert toys.num_compilations(update) <= 2
        assert len({str(s.index) for s in state.tracked["w"].addressable_shards}) == 2
        assert_near(flat(found), alone[3], rtol=1e-3)


def test_the_state_survives_serialization() -> None:
    tx = combiners.one_at_a_time(3, balancers.nash_mtl())
    _, state = scanned(tx)
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(tx.init(PARAMS), data)
    toys.assert_close(restored, state, ulps=0)


def test_half_precision_keeps_its_type_and_averages_in_float32() -> None:
    params = {"w": jnp.zeros((2, 3), jnp.bfloat16), "b": jnp.zeros(2)}
    tx = combiners.one_at_a_time(1, balancers.mgda())
    gradient = jax.tree.map(jnp.ones_like, params)
    update, state = tx.update(gradient, tx.init(params), params, task=0)
    assert update["w"].dtype == jnp.bfloat16
    assert state.tracked["w"].dtype == jnp.float32


def test_a_schedule_of_the_decay() -> None:
    inject: Any = optax.inject_hyperparams(
        combiners.one_at_a_time, static_args=("tasks", "balancer")
    )
    balancer = balancers.mgda()
    scheduled, _ = scanned(inject(3, balancer, decay=lambda step: 0.9))
    plain, _ = scanned(combiners.one_at_a_time(3, balancer, decay=0.9))
    assert_near(scheduled, plain, rtol=1e-4)
    falling, _ = scanned(inject(3, balancer, decay=lambda step: 0.9 - 0.01 * step))
    assert np.abs(falling - plain).max() > 1e-3


def test_messages() -> None:
    tx = combiners.one_at_a_time(["a", "b"], balancers.mgda())
    state = tx.init(PARAMS)
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    with pytest.raises(ValueError, match="needs `task`"):
        tx.update(gradient, state, PARAMS)
    with pytest.raises(ValueError, match="task must be one of a, b, got 'c'"):
        tx.update(gradient, state, PARAMS, task="c")
    several: Any = task_gradients(lambda p: {"a": p["b"].sum(), "b": p["w"].sum()})
    with pytest.raises(ValueError, match="differentiate the loss of one task"):
        tx.update(several(PARAMS), state, PARAMS, task="a")
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), gradient)
    with pytest.raises(ValueError, match="a pytree like the parameters"):
        tx.update(stacked, state, PARAMS, task="a")
    with pytest.raises(TypeError, match="already a link"):
        combiners.one_at_a_time(2, combiners.grad_drop(2))
    with pytest.raises(ValueError, match="decay must be"):
        combiners.one_at_a_time(2, balancers.mgda(), decay=1.0)
