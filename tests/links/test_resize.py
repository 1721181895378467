"""States taken over to other tasks, against runs in which the tasks were masked."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import TaskGradients, resize_tasks
from tests import toys
from tests.catalogue import METHODS
from tests.combiner_catalogue import COMBINERS

NAMES = toys.NAMES
STEPS = toys.random_steps(len(NAMES), num_steps=6, seed=3)
PARAMS = jnp.zeros(STEPS.jacobians.shape[-1])
HALF = 3
RANDOM = {method.name: method.random for method in METHODS}
ORDERED = {method.name for method in METHODS if method.ordered}

LINKS = {
    **{
        method.name: (
            lambda names, m=method: toys.balance(m.make(names), names),
            method.min_tasks,
        )
        for method in METHODS
        # Its parameters are not those of the optimizer that the suite has.
        if not method.name.startswith("toy")
    },
    **{
        method.name: (
            lambda names, m=method: m.make(names, len(names)),
            2,
        )
        for method in COMBINERS
    },
    "prioritization": (
        lambda names: toys.dynamic_task_prioritization(
            names, warmup_steps=1, ramp_steps=2, balancer=toys.projected()
        ),
        1,
    ),
}


def has_state(name: str) -> bool:
    make = LINKS[name][0]
    return len(jax.tree.leaves(jax.eval_shape(make(NAMES).init, PARAMS))) > len(NAMES)


# One of each kind of state; the others are left to the slow tests.
QUICK = {
    *{"focal-ema", "excess_mtl"},
    *{"moco-focal", "prioritization"},
}
links = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in LINKS
        if has_state(name)
    ],
)


@functools.cache
def optimizer(name: str, names: tuple[str, ...]) -> Any:
    return optax.chain(LINKS[name][0](names), optax.scale_by_adam())


def train(
    name: str,
    names: tuple[str, ...],
    state: Any,
    steps: range,
    absent: Sequence[str] = (),
    called: dict[str, str] | None = None,
) -> tuple[Any, list[Any]]:
    """Trains on the data of the tasks; some may go under other names."""
    called = {} if called is None else called
    rows = [NAMES.index(called.get(task, task)) for task in sorted(names)]
    tx, updates = optimizer(name, names), []
    mask = {task: task not in absent for task in names}
    for number in steps:
        losses, kpis, jacobians = (x[number][np.array(rows)] for x in STEPS)
        of = dict(zip(sorted(names), losses, strict=True))
        update, state = tx.update(
            TaskGradients.from_stacked(jacobians, of),
            state,
            PARAMS,
            kpis=dict(zip(sorted(names), kpis, strict=True)),
            task_mask=mask,
            **toys.supplies(jacobians),
        )
        updates.append(update)
    return state, updates


def assert_close(found: Any, expected: Any) -> None:
    # Sums over as many terms in another order, in each of the steps.
    toys.assert_close(found, expected, ulps=64 * PARAMS.size)


@links
def test_a_task_that_joins_is_one_that_was_masked(name: str) -> None:
    few = ("a", "c", "d")
    if LINKS[name][1] > len(few):
        pytest.skip("needs more tasks")
    if RANDOM.get(name, False):
        pytest.skip("draws depend on the number of tasks")
    state = optimizer(name, few).init(PARAMS)
    state, _ = train(name, few, state, range(HALF))
    state = resize_tasks(optimizer(name, few), state, optimizer(name, NAMES), PARAMS)
    expected = optimizer(name, NAMES).init(PARAMS)
    expected, _ = train(name, NAMES, expected, range(HALF), absent=["b"])
    _, found = train(name, NAMES, state, range(HALF, 6))
    _, wanted = train(name, NAMES, expected, range(HALF, 6))
    assert_close(found, wanted)


@links
def test_a_masked_task_that_leaves_was_never_there(name: str) -> None:
    few = ("a", "c", "d")
    if LINKS[name][1] > len(few):
        pytest.skip("needs more tasks")
    if RANDOM.get(name, False):
        pytest.skip("draws depend on the number of tasks")
    state = optimizer(name, NAMES).init(PARAMS)
    state, _ = train(name, NAMES, state, range(HALF), absent=["b"])
    state = resize_tasks(optimizer(name, NAMES), state, optimizer(name, few), PARAMS)
    expected = optimizer(name, few).init(PARAMS)
    expected, _ = train(name, few, expected, range(HALF))
    assert_close(
        train(name, few, state, range(HALF, 6))[1],
        train(name, few, expected, range(HALF, 6))[1],
    )


@links
def test_a_renamed_task_goes_on_as_itself(name: str) -> None:
    # In the middle of the others before, the last one after.
    other, called = ("a", "c", "d", "z"), {"z": "b"}
    state = optimizer(name, NAMES).init(PARAMS)
    state, _ = train(name, NAMES, state, range(HALF))
    moved = resize_tasks(
        optimizer(name, NAMES),
        state,
        optimizer(name, other),
        PARAMS,
        renamed={"b": "z"},
    )
    weights = [optax.tree.get(s, "task_weights") for s in (moved, state)]
    if weights[0] is not None:
        assert weights[0]["z"] == weights[1]["b"]
    if name in ORDERED:
        pytest.skip("the order of the tasks says something")
    if name.startswith(("lr_annealing", "pcd", "meta_balance")):
        pytest.skip("made with its third task as the main one, here another")
    if RANDOM.get(name, False):
        pytest.skip("draws go by position")
    assert_close(
        train(name, other, moved, range(HALF, 6), called=called)[1],
        train(name, NAMES, state, range(HALF, 6))[1],
    )


def test_one_task_at_a_time() -> None:
    def make(tasks: Any) -> Any:
        return dtp_jax.combiners.one_at_a_time(tasks, toys.balancers.mgda())

    def step(link: Any, state: Any, task: str) -> Any:
        gradient = STEPS.jacobians[0, NAMES.index(task)]
        return link.update(gradient, state, PARAMS, task=task, task_mask=None)

    few, link, more = ("a", "d"), make(("a", "d")), make(NAMES)
    state = link.init(PARAMS)
    for task in few:
        _, state = step(link, state, task)
    found = resize_tasks(link, state, more, PARAMS)
    np.testing.assert_array_equal(found.counts, [1, 0, 0, 1])
    np.testing.assert_array_equal(found.tracked[jnp.array([0, 3])], state.tracked)
    corner = found.gramian[jnp.array([[0], [3]]), jnp.array([0, 3])]
    np.testing.assert_array_equal(corner, state.gramian)
    np.testing.assert_array_equal(found.gramian[1:3], 0)


def test_what_looks_like_tasks_is_not_taken_for_them() -> None:
    # Parameters with the names and number of the tasks, and sizes equal to it.
    params = {"a": jnp.zeros(2), "b": jnp.zeros((2, 2))}
    old, new = (
        optax.chain(toys.balance(toys.balancers.dwa(), tasks), optax.adam(0.1))
        for tasks in (["a", "b"], ["b", "c", "d"])
    )
    state: Any = old.init(params)
    adam: Any = jax.tree.map(lambda x: x + 3, state[1])
    found: Any = resize_tasks(old, (state[0], adam), new, params)
    jax.tree.map(np.testing.assert_array_equal, found[1], adam)
    assert sorted(found[0].task_weights) == ["b", "c", "d"]


def test_tasks_in_one_array_and_averages_between() -> None:
    old, new = (
        toys.balance(optax.chain(optax.ema(0.5), toys.balancers.dwa()), tasks)
        for tasks in (2, 3)
    )
    state = old.init(PARAMS)
    state = state._replace(task_weights=jnp.array([5.0, 7.0]))
    found = resize_tasks(old, state, new, PARAMS)
    np.testing.assert_array_equal(found.task_weights, [5.0, 7.0, 1.0])
    assert found.balancer[0].ema.shape == (3,)


def test_what_does_not_fit_is_loud() -> None:
    old, new = (toys.balance(toys.balancers.dwa(), t) for t in (["a", "b"], ["b", "c"]))
    state = old.init(PARAMS)
    with pytest.raises(ValueError, match="not one of old_link, whose tasks are b, c"):
        resize_tasks(new, state, old, PARAMS)
    with pytest.raises(ValueError, match="renamed names no task: x"):
        resize_tasks(old, state, new, PARAMS, renamed={"x": "c"})
    other = toys.balance(toys.balancers.famo(), ["b", "c"])
    with pytest.raises(ValueError, match="differ in more than their tasks"):
        resize_tasks(old, state, other, PARAMS)
    with pytest.raises(ValueError, match="must hold one link"):
        resize_tasks(optax.adam(0.1), state, new, PARAMS)
    two, three = (toys.balance(toys.balancers.dwa(), number) for number in (2, 3))
    of_three = three.init(None)
    with pytest.raises(ValueError, match=r"has shape \[3\], but one of the tasks"):
        resize_tasks(two, of_three, three, PARAMS)
