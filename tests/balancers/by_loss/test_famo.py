from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers.by_loss import _famo
from tests.balancers.sequences import LOSSES, over

famo: Any = _famo.famo
DEFAULT = famo()
ONES = jnp.ones(3)
update = jax.jit(DEFAULT.update)

# The losses of each batch after the step, which the paper measures.
AFTER = LOSSES * np.linspace(0.7, 1.1, 30).reshape(10, 3)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def authors_weights(
    before: np.ndarray,
    after: np.ndarray,
    lowest: Any = 0.0,
    gamma: float = 1e-3,
    rate: float = 0.025,
) -> tuple[np.ndarray, np.ndarray]:
    """The authors' loop: weights from the losses, logits by Adam with L2 decay.

    `after[t]` is what the batch of step t has become after the step.
    """
    x, m, v = np.zeros((3, before.shape[1]))
    weights = np.zeros_like(before)
    for t in range(len(before)):
        z = softmax(x)
        gaps = before[t] - lowest + 1e-8
        weights[t] = z / gaps / np.sum(z / gaps)
        if t == len(before) - 1:
            break
        delta = np.log(before[t] - lowest + 1e-8) - np.log(after[t] - lowest + 1e-8)
        jacobian = np.diag(z) - np.outer(z, z)
        gradient = jacobian @ delta + gamma * x
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        m_hat, v_hat = m / (1 - 0.9 ** (t + 1)), v / (1 - 0.999 ** (t + 1))
        x = x - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    return weights, x


def test_the_next_losses_as_in_the_authors_loop() -> None:
    weights, state = over(DEFAULT, LOSSES)
    expected, logits = authors_weights(LOSSES, np.roll(LOSSES, -1, axis=0))
    np.testing.assert_allclose(weights, expected, rtol=2e-5)
    np.testing.assert_allclose(state.logits, logits, rtol=1e-4)


def test_the_previous_batch_as_in_the_paper() -> None:
    arguments = {"weight_decay": 0.1, "learning_rate": 0.2}
    lowest = np.array([0.1, 0.5, 10.0])
    # What is passed to update t belongs to the batch of step t - 1.
    previous = jnp.asarray(np.roll(AFTER, 1, axis=0), jnp.float32)
    weights, state = over(
        famo(min_losses=jnp.asarray(lowest), **arguments),
        LOSSES,
        previous_losses=previous,
    )
    expected, logits = authors_weights(LOSSES, AFTER, lowest, gamma=0.1, rate=0.2)
    np.testing.assert_allclose(weights, expected, rtol=5e-5)
    np.testing.assert_allclose(state.logits, logits, rtol=1e-4)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 9, (1000, num_tasks))
    weights, state = over(DEFAULT, losses)
    _, logits = authors_weights(losses, np.roll(losses, -1, axis=0))
    np.testing.assert_allclose(state.logits, logits, atol=2e-4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(state.losses, losses[-1], rtol=1e-6)


def test_the_weights_are_the_gradient_of_the_authors_loss() -> None:
    balancer = famo(optimizer=optax.sgd(3.0))
    _, state = over(balancer, LOSSES)
    losses = jnp.array([0.4, 0.9, 30.0])
    weights, new = jax.jit(balancer.update)(ONES, state, losses)
    z = jax.nn.softmax(new.logits)
    scale = jnp.sum(z / losses)
    loss = jax.jit(jax.grad(lambda x: jnp.sum(z * jnp.log(x)) / scale))
    np.testing.assert_allclose(weights, loss(losses), rtol=1e-5)


def test_a_task_that_improves_more_loses_weight() -> None:
    before, after = jnp.array([2.0, 2.0, 2.0]), jnp.array([1.0, 2.0, 2.0])
    first, state = update(ONES, DEFAULT.init(before), before)
    np.testing.assert_allclose(first, 1 / 3, rtol=1e-6)
    weights, _ = update(ONES, state, before, previous_losses=after)
    assert float(weights[0]) < float(weights[1]) == float(weights[2])


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e38])
def test_equal_losses_have_equal_weights(value: float) -> None:
    weights, state = over(DEFAULT, np.full((10, 3), value))
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-5)
    np.testing.assert_array_equal(state.logits, 0)


def test_zero_negative_and_huge_losses() -> None:
    losses = np.array([[0.0, 1.0, 3e38], [-5.0, 1.0, 1e30], [0.0, 2.0, 3e38]])
    weights, state = over(famo(min_losses=-3e38, eps=1e-30), losses)
    chex.assert_tree_all_finite((weights, state))
    weights, state = over(DEFAULT, losses)
    chex.assert_tree_all_finite((weights, state))
    # Gaps 1e-8, 1 and 3e38.
    np.testing.assert_allclose(weights[0], [1.0, 1e-8, 1e-30], rtol=1e-5)


def test_preferences_multiply_the_weights_of_the_active_tasks() -> None:
    preferences = jnp.array([2.0, 0.0, 0.5])
    active = np.array([0, 2])
    weights, state = over(DEFAULT, LOSSES, preferences)
    pair = LOSSES[:, active]
    expected, logits = authors_weights(pair, np.roll(pair, -1, axis=0))
    np.testing.assert_allclose(
        weights[:, active], expected * np.array([2.0, 0.5]), rtol=2e-5
    )
    np.testing.assert_allclose(state.logits[active], logits, rtol=1e-4)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.logits[1]) == float(state.losses[1]) == 0


def test_a_task_that_joins_later_moves_from_its_second_step_on() -> None:
    preferences = np.ones((10, 3))
    preferences[:9, 1] = 0
    _, joined = over(DEFAULT, LOSSES, preferences)
    assert float(joined.logits[1]) == 0
    assert float(joined.losses[1]) == np.float32(LOSSES[-1, 1])
    later = jnp.asarray(LOSSES[-1], jnp.float32) * 0.9
    _, state = famo(optimizer=optax.sgd(1.0), weight_decay=0.0).update(
        ONES, joined._replace(optimizer=optax.sgd(1.0).init(ONES)), later * ONES
    )
    # All fell alike, so that only rounding moves a logit.
    np.testing.assert_allclose(state.logits, joined.logits, atol=1e-6)
    assert state.known.tolist() == [1, 1, 1]


def test_unknown_previous_losses_keep_the_logit() -> None:
    balancer = DEFAULT
    _, state = over(balancer, LOSSES)
    names = ("a", "b", "c")

    def named(values: Any) -> dict[str, Any]:
        return dict(zip(names, values, strict=True))

    losses = named(LOSSES[-1].tolist())
    previous = named([0.1, None, 24.5])
    _, new = balancer.update(named([1.0] * 3), state, losses, previous_losses=previous)
    assert float(new.logits[1]) == float(state.logits[1])
    assert float(new.logits[0]) != float(state.logits[0])
    none_known = named([None] * 3)
    _, new = balancer.update(
        named([1.0] * 3), state, losses, previous_losses=none_known
    )
    chex.assert_trees_all_equal(new.logits, state.logits)
    chex.assert_trees_all_equal(new.optimizer, state.optimizer)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(DEFAULT, LOSSES)
        assert weights.dtype == state.logits.dtype == jnp.float64
        expected, logits = authors_weights(LOSSES, np.roll(LOSSES, -1, axis=0))
        np.testing.assert_allclose(weights, expected, rtol=1e-10)
        np.testing.assert_allclose(state.logits, logits, rtol=1e-9)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "eps"])
def test_hyperparameters_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number in"):
        famo(**{name: -1.0})


def test_errors_say_what_to_do() -> None:
    balancer = famo()
    state = balancer.init(ONES)
    with pytest.raises(ValueError, match="famo needs `losses`"):
        balancer.update(ONES, state)
    with pytest.raises(ValueError, match="previous_losses has shape"):
        balancer.update(ONES, state, ONES, previous_losses=jnp.ones(2))
