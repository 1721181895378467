"""What is not observed is no NaN where `jax_debug_nans` raises at each of them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

import dtp_jax
from dtp_jax import TaskGradients, metrics, task_gradients
from tests import toys
from tests.catalogue import METHODS
from tests.combiner_catalogue import COMBINERS

NAMES = toys.NAMES
STEPS = toys.random_steps(len(NAMES), num_steps=3)
MISSING = {"a": 0.3, "b": None, "c": 0.4, "d": 0.9}
LINKS = {
    method.name: lambda method=method: toys.balance(method.make(NAMES), NAMES)
    for method in METHODS
} | {c.name: lambda c=c: c.make(NAMES, len(NAMES)) for c in COMBINERS}


@pytest.fixture(scope="module", autouse=True)
def nothing_is_compiled() -> None:
    # Results of what was compiled before, without `jax_debug_nans`, are not looked at.
    jax.clear_caches()


@contextlib.contextmanager
def op_by_op() -> Iterator[None]:
    """Runs every operation on its own and raises at the first NaN."""
    with jax.debug_nans(True), jax.disable_jit():
        yield


def run(link: Any) -> Any:
    """Steps without a KPI, without a task, and without any."""
    state = link.init(jnp.zeros(16))
    for index in range(3):
        losses = dict(zip(NAMES, STEPS.losses[index], strict=True))
        rows = STEPS.jacobians[index]
        _, state = link.update(
            TaskGradients.from_stacked(rows, losses),
            state,
            jnp.zeros(16),
            kpis=MISSING,
            task_mask=dict.fromkeys(NAMES, index < 2) | {"c": index == 0},
            previous_losses=MISSING,
            **toys.supplies(rows),
        )
    return state


@pytest.mark.parametrize("name", ["focal", "famo"])
def test_a_missing_kpi_op_by_op(name: str) -> None:
    with op_by_op():
        state = run(LINKS[name]())
    chex.assert_tree_all_finite(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINKS)
def test_no_method_makes_a_nan_op_by_op(name: str) -> None:
    with op_by_op():
        run(LINKS[name]())


def test_a_missing_kpi_leaves_the_average_alone() -> None:
    with op_by_op():
        state = dtp_jax.init_kpis(2)
        state = dtp_jax.update_kpis(state, [0.5, None], alpha=0.5)
        state = dtp_jax.update_kpis(state, jnp.array([0.7, 0.2]), alpha=0.5)
    assert jnp.allclose(state.mean, jnp.array([0.6, 0.2]))
    assert state.count.tolist() == [2, 1]


def test_a_kpi_of_nothing_counts_as_missing() -> None:
    def accuracy_of_nothing() -> Any:
        logits, labels = jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)
        return metrics.accuracy(logits, labels, where=jnp.zeros(2, bool))

    with op_by_op():
        nothing = accuracy_of_nothing()
        state = dtp_jax.update_kpis(dtp_jax.init_kpis(["a"]), {"a": nothing})
    assert state.count["a"] == 0
    assert jnp.isnan(accuracy_of_nothing())


def test_kpis_are_logged_before_they_are_observed() -> None:
    with op_by_op():
        tx = dtp_jax.dynamic_task_prioritization(["a", "b"])
        found = dtp_jax.diagnostics.kpis(tx.init(jnp.zeros(2)))
    assert not jnp.isfinite(found["a"])


def test_a_loss_without_a_rate_op_by_op() -> None:
    with op_by_op():
        link = toys.balance(toys.balancers.ntk(), 2)
        gradients = TaskGradients.from_stacked(jnp.eye(2), jnp.array([-1.0, 2.0]))
        _, state = link.update(gradients, link.init(None))
    # An unknown trace counts as the mean of the others.
    assert state.task_weights.tolist() == [2.0, 2.0]


def test_a_step_with_task_gradients_op_by_op() -> None:
    def losses_fn(params: Any) -> Any:
        return {"a": jnp.sum(params**2), "b": jnp.sum(params)}

    with op_by_op():
        link = toys.dynamic_task_prioritization(["a", "b"], warmup_steps=0)
        params = jnp.ones(2)
        gradients = task_gradients(losses_fn)(params)
        kpis = {"a": 0.5, "b": None}
        updates, _ = link.update(gradients, link.init(params), params, kpis=kpis)
    assert jnp.isfinite(updates).all()
