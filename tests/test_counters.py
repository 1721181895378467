"""Counters after more steps than int32 holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import diagnostics, focal_weights, init_kpis, update_kpis
from dtp_jax._core.counters import count_up, next_step
from tests import toys
from tests.catalogue import METHODS
from tests.combiner_catalogue import COMBINERS

NAMES = toys.NAMES
LARGEST = 2**31 - 1
STEPS = toys.random_steps(len(NAMES), num_steps=6)
PARAMS = jnp.zeros(STEPS.jacobians.shape[-1])

LINKS = {
    **{m.name: lambda m=m: toys.balance(m.make(NAMES), NAMES) for m in METHODS},
    **{m.name: lambda m=m: m.make(NAMES, len(NAMES)) for m in COMBINERS},
    "prioritization": lambda: toys.dynamic_task_prioritization(NAMES),
    "random-seed": lambda: toys.balance(toys.balancers.random(seed=1), NAMES),
    "relobralo-seed": lambda: toys.balance(
        toys.balancers.relobralo(rho=0.5, seed=1), NAMES
    ),
}


def counters(state: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]


COUNTING = [
    name
    for name, make in LINKS.items()
    if counters(jax.eval_shape(lambda make=make: make().init(PARAMS)))
]
QUICK = {"every_k", "prioritization"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in COUNTING
    ],
)
def test_a_run_past_the_largest_number_is_like_any_other(name: str) -> None:
    link: Any = LINKS[name]()
    start = link.init(PARAMS)

    @jax.jit
    def run(count: jax.Array) -> Any:
        def one(state: Any, step: toys.Steps) -> Any:
            gradient, state = toys.update(link, state, step, NAMES)
            return state, gradient

        state = jax.tree.map(
            lambda x: jnp.full_like(x, count) if x.dtype == jnp.int32 else x, start
        )
        return jax.lax.scan(one, state, STEPS)

    # In float32 both are 2**31, and 64 is a multiple of all periods of the suite.
    state, found = run(jnp.int32(LARGEST - 2))
    other, expected = run(jnp.int32(LARGEST - 2 - 64))
    assert all((count >= 0).all() for count in counters(state))
    if not name.endswith("-seed"):
        toys.assert_close(found, expected, ulps=4)
        floats = [
            [x for x in jax.tree.leaves(s) if x.dtype != jnp.int32]
            for s in (state, other)
        ]
        toys.assert_close(*floats, ulps=4)
    else:
        # Other draws in each step, but draws.
        assert len({row.tobytes() for row in np.asarray(found)}) == len(found)


def test_kpis_of_a_very_long_run() -> None:
    state = init_kpis(["a"])._replace(
        mean={"a": jnp.array(0.5)}, count={"a": jnp.array(LARGEST, jnp.int32)}
    )
    state = update_kpis(state, {"a": 0.5})
    assert state.count["a"] == LARGEST
    assert focal_weights(state.mean)["a"] < 1
    link = toys.dynamic_task_prioritization(["a"])
    start = link.init(None)
    kpis = start.balancer.kpis._replace(
        mean=state.mean["a"][None], count=state.count["a"][None]
    )
    long = start._replace(balancer=start.balancer._replace(kpis=kpis))
    assert diagnostics.kpis(long)["a"] == 0.5


@pytest.mark.parametrize("period", [1, 2, 7, 10, 1000, 2**30 - 3, 2**30, 2**31 - 1])
def test_a_phase_goes_on_after_the_largest_number(period: int) -> None:
    step = jnp.array(LARGEST, jnp.int32)
    for number in range(1, 4):
        step = next_step(step, period)
        assert step % period == (LARGEST + number) % period
        assert step > 0 or period > 2**30


def test_counts_that_are_masked_stay() -> None:
    counts = jnp.array([3, LARGEST, 5], jnp.int32)
    found = count_up(counts, jnp.array([True, True, False]))
    assert found.tolist() == [4, LARGEST, 5]
    assert found.dtype == jnp.int32
