"""Calls outside of `jax.jit` leave no program behind."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dtp_jax import TaskGradients, feature_task_gradients, task_gradients
from tests import toys
from tests.catalogue import METHODS
from tests.combiner_catalogue import COMBINERS

NAMES = toys.NAMES
STEP = jax.tree.map(lambda x: x[0], toys.random_steps(len(NAMES)))
PARAMS = {"w": jnp.full((3, 3), 0.3), "v": jnp.ones(3)}
X = jnp.ones((2, 3))


class Count:
    """The number of programs that were compiled."""

    compiled = 0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        self.compiled += event.endswith("backend_compile_duration")


@pytest.fixture
def count() -> Iterator[Count]:
    counter = Count()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    jax.monitoring.unregister_event_duration_listener(counter)


def assert_nothing_new(count: Count, function: Callable[[], Any]) -> None:
    # The second call may find a state of other types than the first.
    for _ in range(2):
        function()
    before = count.compiled
    for _ in range(2):
        function()
    assert count.compiled == before


def hidden(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"])


def heads(params: Any, features: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    del x
    return {
        str(task): jnp.sum((features * (task + 1) - params["v"]) ** 2)
        for task in range(10)
    }


def losses_fn(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    return heads(params, hidden(params, x), x)


@pytest.mark.parametrize("mode", ["switch", "map", "columns", "features"])
def test_gradients(count: Count, mode: Any) -> None:
    make = (
        feature_task_gradients(hidden, heads)
        if mode == "features"
        else task_gradients(losses_fn, gramian=mode)
    )

    def call() -> None:
        gradients = make(PARAMS, X)
        gradients.gramian()
        gradients.stack()
        gradients.combine(jnp.ones(10))

    assert_nothing_new(count, call)


def test_eager_loops_return_what_compiled_ones_do() -> None:
    def found(mode: Any, params: Any) -> Any:
        gradients = task_gradients(losses_fn, gramian=mode)(params, X)
        return gradients.gramian(), gradients.stack(), gradients.squared_norms()

    for mode in ("switch", "map", "columns"):
        compiled = jax.jit(lambda params, mode=mode: found(mode, params))(PARAMS)
        toys.assert_close(found(mode, PARAMS), compiled, ulps=64)


def test_stacked_gradients_of_many_tasks(count: Count) -> None:
    gradients = TaskGradients.from_stacked(jnp.ones((20, 5)))
    assert_nothing_new(count, lambda: gradients.combine(jnp.ones(20)))


QUICK = {"every_k"}
# Its solver has a loop around its solutions, for problems without one.
LOOPS = {"pcd"}
LINKS = {
    **{m.name: lambda m=m: toys.balance(m.make(NAMES), NAMES) for m in METHODS},
    **{m.name: lambda m=m: m.make(NAMES, len(NAMES)) for m in COMBINERS},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in LINKS
        if name not in LOOPS
    ],
)
def test_updates(count: Count, name: str) -> None:
    link: Any = LINKS[name]()
    states = [link.init(jnp.zeros(16))]

    def call() -> None:
        _, states[0] = toys.update(link, states[0], STEP, NAMES)

    assert_nothing_new(count, call)
