"""Steps in which the gradient of a task is not finite, though its loss is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import feature_task_gradients, task_gradients
from tests import toys
from tests.catalogue import METHODS, Method

NAMES = toys.NAMES
ROWS = toys.random_steps(4).jacobians[0]
MODEL = {"trunk": jnp.linspace(0.1, 1.0, 16), "heads": jnp.linspace(0.5, 2.0, 4)}
SHARED = {"trunk": True, "heads": False}


def head(params: Any, hidden: jax.Array, task: int) -> jax.Array:
    return (jnp.sum(hidden * ROWS[task]) * params["heads"][task] - 0.3) ** 2


def losses_of(params: Any, hidden: jax.Array, bad: jax.Array) -> dict[str, jax.Array]:
    losses = {name: head(params, hidden, task) for task, name in enumerate(NAMES)}
    # The root of zero has no slope.
    root = jnp.sqrt(jnp.where(bad, 0.0, 1.0) * hidden[1] ** 2)
    return {**losses, "b": losses["b"] + root * params["heads"][1]}


def losses_fn(params: Any, bad: jax.Array) -> dict[str, jax.Array]:
    return losses_of(params, jnp.tanh(params["trunk"]), bad)


def run(link: Any, bad: bool, masked: bool, make: Any = None) -> Any:
    """Three steps; in the second the gradient of b is NaN, or b is masked."""
    make = task_gradients(losses_fn, shared=SHARED) if make is None else make
    tx = optax.chain(link, optax.adam(0.1))

    @jax.jit
    def step(params: Any, state: Any, bad: jax.Array, mask: jax.Array) -> Any:
        gradients = make(params, bad)
        rows = ROWS + jnp.sum(params["trunk"])
        updates, state = tx.update(
            gradients,
            state,
            params,
            kpis=dict.fromkeys(NAMES, jnp.float32(0.4)),
            task_mask={name: mask if name == "b" else True for name in NAMES},
            **toys.supplies(rows),
        )
        return optax.apply_updates(params, updates), state

    params, state = MODEL, tx.init(MODEL)
    for number in range(3):
        second = number == 1
        params, state = step(params, state, second and bad, not (second and masked))
    return params, state


def guarded(method: Method) -> Any:
    return dtp_jax.balance(method.make(NAMES), NAMES, guard=True)


# Their second batch is of another model.
SECOND = {"auto_lambda", "modo", "sdmgrad", "excess_mtl-params"}
QUICK = {"grad_norm"}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, id=m.name, marks=[] if m.name in QUICK else [pytest.mark.slow])
        for m in METHODS
        if m.name not in SECOND
    ],
)
def test_a_guarded_step_is_one_with_the_task_masked(method: Method) -> None:
    link: Any = guarded(method)
    found = run(link, bad=True, masked=False)
    expected = run(link, bad=False, masked=True)
    # Summed from single gradients in place of one pass, in float32; what is solved for
    # multiplies that by the condition of the Gramian, as in the contract suite.
    toys.assert_close(found, expected, ulps=2.0**16)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "heads", [pytest.param("weights", marks=pytest.mark.slow), "preferences"]
)
def test_the_core_and_the_gradients_of_heads(heads: Any) -> None:
    link = dtp_jax.balance(
        toys.balancers.upgrad(),
        NAMES,
        preferences=toys.balancers.focal(),
        heads=heads,
        guard=True,
    )
    found = run(link, bad=True, masked=False)
    toys.assert_close(found, run(link, bad=False, masked=True), ulps=2.0**12)


def test_without_a_guard_the_gradient_is_nan_and_says_so() -> None:
    params, state = run(toys.dynamic_task_prioritization(NAMES), bad=True, masked=False)
    assert np.isnan(params["trunk"]).any()
    link_state = state[0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(link_state.task_weights))


@pytest.mark.slow
def test_features() -> None:
    make = feature_task_gradients(
        lambda params, bad: jnp.tanh(params["trunk"]), losses_of
    )
    link = dtp_jax.balance(toys.equal_norms(), NAMES, guard=True)
    found = run(link, bad=True, masked=False, make=make)
    expected = run(link, bad=False, masked=True, make=make)
    toys.assert_close(found, expected, ulps=2.0**12)


@pytest.mark.slow
def test_other_steps_do_the_same_with_and_without_a_guard() -> None:
    make = toys.dynamic_task_prioritization
    found = run(make(NAMES, guard=True), bad=False, masked=False)
    expected = run(make(NAMES), bad=False, masked=False)
    toys.assert_close(found, expected, ulps=64)


def test_outside_of_jit_nothing_is_compiled_twice() -> None:
    link: Any = toys.dynamic_task_prioritization(NAMES, guard=True)
    for bad in (True, False):
        gradients = task_gradients(losses_fn)(MODEL, jnp.array(bad))
        updates, _ = link.update(
            gradients, link.init(MODEL), kpis=dict.fromkeys(NAMES, 0.4)
        )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
