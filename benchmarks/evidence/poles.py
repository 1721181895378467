"""Reinforcement learning: eight poles of different lengths, one policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.compare import Problem

from . import _net
from ._size import Size, adam, in_trunk

NUM_TASKS = 8
HORIZON = 200
EPISODES = 4  # of each task in a step
TEST_EPISODES = 32
DISCOUNT = 0.98
ENTROPY = 0.01
FORCE, CART, POLE, SECONDS = 10.0, 1.0, 0.1, 0.02
# Half lengths of the poles in metres; long ones answer slowly. Gravity differs, too.
LENGTHS = np.geomspace(0.06, 1.6, NUM_TASKS).astype(np.float32)
GRAVITIES = np.linspace(14.0, 7.0, NUM_TASKS).astype(np.float32)
# Gusts turn the pole in every step, by so many radians per second, normally
# distributed: the long ones are hard to hold.
GUST = 0.25


class Episodes(NamedTuple):
    """What happened, of E episodes of H steps."""

    states: jax.Array  # [H, E, 4]
    actions: jax.Array  # [H, E], 0 or 1
    alive: jax.Array  # [H, E], whether the pole was up before the step


def move(state: jax.Array, action: jax.Array, length: Any, gravity: Any) -> jax.Array:
    """A step of the cart and its pole.

    Args:
        state: ``[..., 4]``: place, speed, angle from upright, speed of the angle.
        action: ``[...]``, 0 to push left or 1 to push right.
        length: Half of that of the pole.
        gravity: In metres per square second.

    Returns:
        The next state.

    References:
        Barto, Sutton & Anderson, "Neuronlike Adaptive Elements That Can Solve Difficult
        Learning Control Problems", 1983, with the usual integration by Euler's method.
    """
    _, speed, angle, turn = jnp.moveaxis(state, -1, 0)
    force = jnp.where(action == 1, FORCE, -FORCE)
    total = CART + POLE
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    push = (force + POLE * length * turn**2 * sine) / total
    bend = (gravity * sine - cosine * push) / (
        length * (4 / 3 - POLE * cosine**2 / total)
    )
    drive = push - POLE * length * bend * cosine / total
    change = jnp.stack([speed, drive, turn, bend], axis=-1)
    return state + SECONDS * change


def is_up(state: jax.Array) -> jax.Array:
    """Whether the cart is on the track and the pole within twelve degrees."""
    return (jnp.abs(state[..., 0]) < 2.4) & (jnp.abs(state[..., 2]) < jnp.pi / 15)


def logits_of(params: Any, task: Any, states: jax.Array) -> jax.Array:
    """The policy of a task, ``[..., 2]``, at states ``[..., 4]``."""
    scale = jnp.array([2.4, 3.0, 0.2, 3.0])
    flat = (states / scale).reshape(-1, 4)
    which = jnp.broadcast_to(jax.nn.one_hot(task, NUM_TASKS), (len(flat), NUM_TASKS))
    features = jnp.concatenate([flat, which], axis=1)
    for layer in params["trunk"]:
        features = jax.nn.relu(features @ layer["w"] + layer["b"])
    heads = params["heads"]
    out = features @ heads["w"][:, task] + heads["b"][task]
    return out.reshape(*states.shape[:-1], 2)


def play(params: Any, task: Any, key: jax.Array, count: int) -> Episodes:
    """Plays episodes of a task; what falls stays where it fell.

    Args:
        params: Of the policy.
        task: Which pole.
        key: Of the starts and of the actions.
        count: Of episodes.

    Returns:
        The episodes.
    """
    length, gravity = jnp.asarray(LENGTHS)[task], jnp.asarray(GRAVITIES)[task]
    start_key, key = jax.random.split(key)
    start = jax.random.uniform(start_key, (count, 4), minval=-0.05, maxval=0.05)
    action_key, gust_key = jax.random.split(key)
    draws = jax.random.uniform(action_key, (HORIZON, count))
    gusts = GUST * jax.random.normal(gust_key, (HORIZON, count))

    def step(carry: Any, drawn: Any) -> Any:
        (state, alive), (draw, gust) = carry, drawn
        left, right = jnp.moveaxis(logits_of(params, task, state), -1, 0)
        action = jnp.asarray(draw < jax.nn.sigmoid(right - left), jnp.int32)
        after = move(state, action, length, gravity).at[:, 3].add(gust)
        kept = jnp.where(alive[:, None], after, state)
        return (kept, alive & is_up(kept)), Episodes(state, action, alive)

    carry = (start, jnp.ones(count, bool))
    return jax.lax.scan(step, carry, (draws, gusts))[1]


def task_loss(params: Any, task: int, episodes: Episodes) -> jax.Array:
    """Minus what REINFORCE raises, with a baseline and a bonus for entropy."""
    alive = episodes.alive.astype(jnp.float32)

    def discounted(after: jax.Array, reward: jax.Array) -> Any:
        now = reward + DISCOUNT * after
        return now, now

    _, returns = jax.lax.scan(discounted, jnp.zeros(EPISODES), alive, reverse=True)
    # The baseline of a step is the mean of the episodes that got there.
    count = jnp.maximum(alive.sum(axis=1, keepdims=True), 1)
    advantage = (returns - (returns * alive).sum(axis=1, keepdims=True) / count) * alive
    spread = jnp.sqrt((advantage**2).sum() / alive.sum()) + 1e-3
    logs = jax.nn.log_softmax(logits_of(params, task, episodes.states))
    chosen = jnp.take_along_axis(logs, episodes.actions[..., None], axis=-1)[..., 0]
    entropy = -(jnp.exp(logs) * logs).sum(axis=-1)
    gain = chosen * advantage / spread + ENTROPY * entropy
    return -(gain * alive).sum() / alive.sum()


def eight_poles(size: Size) -> Problem:
    """A policy with a head for each of eight poles, by policy gradients.

    A KPI is the share of an episode for which the pole is up.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    tasks = np.arange(NUM_TASKS)

    def losses(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, NUM_TASKS)
        still = jax.lax.stop_gradient(params)
        played = jax.vmap(play, (None, 0, 0, None))(still, tasks, keys, EPISODES)
        # One by one, so that the gradient of a task is not computed for all of them.
        found = [
            task_loss(params, task, jax.tree.map(lambda x, task=task: x[task], played))
            for task in range(NUM_TASKS)
        ]
        return jnp.stack(found), played.alive.mean(axis=(1, 2))

    def evaluate(params: Any, seed: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), NUM_TASKS)

        def of_task(task: Any, key: jax.Array) -> jax.Array:
            return play(params, task, key, TEST_EPISODES).alive.mean()

        return jax.vmap(of_task)(tasks, keys)

    steps = size.steps(400)
    return Problem(
        tasks=NUM_TASKS,
        init=lambda key: _net.init(key, (4 + NUM_TASKS, 32, 32), NUM_TASKS, 2),
        losses=losses,
        train=lambda key, step: key,
        validation=np.int32(1),
        test=np.int32(2),
        optimizer=adam(steps),
        num_steps=steps,
        evaluate=evaluate,
        shared=in_trunk,
    )
