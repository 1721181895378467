"""Tasks that are masked, poisoned, saved and resized in any order, against a model."""

import math
from typing import Any

import flax.serialization
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from dtp_jax import TaskGradients, balance, balancers, resize_tasks

POOL = ("a", "b", "c", "d", "e")
GAMMA, ALPHA, KPI_MIN = 2.0, 0.25, 0.01
tasks = st.sets(st.sampled_from(POOL), min_size=1).map(lambda s: tuple(sorted(s)))
kpis = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, None])


def link_of(names: tuple[str, ...]) -> Any:
    # The types of optax admit no TaskGradients.
    return balance(balancers.focal(gamma=GAMMA, alpha=ALPHA, kpi_min=KPI_MIN), names)


class Machine(RuleBasedStateMachine):
    """The core in plain Python: a mean per task, and the weights that it makes."""

    @initialize(names=tasks)
    def start(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.state = link_of(names).init(None)
        self.means: dict[str, float | None] = dict.fromkeys(names)

    @rule(
        data=st.data(),
        bad=st.sampled_from([None, math.nan, math.inf]),
    )
    def step(self, data: st.DataObject, bad: float | None) -> None:
        number = len(self.names)
        seen = data.draw(st.lists(kpis, min_size=number, max_size=number))
        mask = data.draw(st.lists(st.booleans(), min_size=number, max_size=number))
        at_fault = data.draw(st.sampled_from(self.names))
        losses = {name: jnp.array(1.0) for name in self.names}
        if bad is not None:
            losses[at_fault] = jnp.array(bad)
        rows = jnp.eye(number)
        _, self.state = link_of(self.names).update(
            TaskGradients.from_stacked(rows, losses),
            self.state,
            kpis=dict(zip(self.names, seen, strict=True)),
            task_mask=dict(zip(self.names, mask, strict=True)),
        )
        for name, kpi, active in zip(self.names, seen, mask, strict=True):
            present = active and not (bad is not None and name == at_fault)
            if present and kpi is not None:
                mean = self.means[name]
                new = kpi if mean is None else ALPHA * kpi + (1 - ALPHA) * mean
                self.means[name] = new
            weight = float(self.state.task_weights[name])
            assert weight == pytest.approx(self.weight(name) * present, rel=1e-4)

    def weight(self, name: str) -> float:
        mean = self.means[name]
        if mean is None:
            return 1.0
        mean = max(mean, KPI_MIN)
        # Of an active task that is solved: not zero, which would say "not active".
        return max(-((1 - mean) ** GAMMA) * math.log(mean), 1e-30)

    @rule()
    def save_and_restore(self) -> None:
        data = flax.serialization.to_bytes(self.state)
        start = link_of(self.names).init(None)
        self.state = flax.serialization.from_bytes(start, data)

    @rule(names=tasks, rename=st.booleans())
    def resize(self, names: tuple[str, ...], rename: bool) -> None:
        renamed = {}
        gone = [name for name in self.names if name not in names]
        come = [name for name in names if name not in self.names]
        if rename and gone and come:
            renamed = {gone[0]: come[0]}
        links = link_of(self.names), link_of(names)
        self.state = resize_tasks(links[0], self.state, links[1], None, renamed=renamed)
        old = {renamed.get(name, name): mean for name, mean in self.means.items()}
        self.means = {name: old.get(name) for name in names}
        self.names = names
        counts = np.asarray(self.state.balancer.kpis.count)
        assert [count > 0 for count in counts] == [
            self.means[name] is not None for name in names
        ]


def run(examples: int, steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_few_runs() -> None:
    run(examples=3, steps=8)


@pytest.mark.slow
def test_many_runs() -> None:
    run(examples=60, steps=30)
