"""Programs for platforms that are not here: what they may and may not contain.

A whole step of every method is exported for the CPU, for CUDA and ROCm devices and for
TPUs, which works on any machine. Its losses need no products of matrices, so that all
products in a program are the library's.
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from dtp_jax import task_gradients
from tests import devices, toys
from tests.catalogue import METHODS, Method
from tests.combiner_catalogue import COMBINERS, Combiner

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
NAMES = toys.NAMES
PARAMS = jnp.linspace(-1.0, 1.0, 16)


@pytest.fixture(scope="module", autouse=True)
def _no_kernels() -> Iterator[None]:
    # On a CUDA machine a program with kernels cannot be exported for others, too.
    with devices.kernels(False):
        yield


def exported(function: Any, *args: Any) -> str:
    """The text of the program at the precision that users get."""
    with jax.default_matmul_precision("default"):
        program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    return program.mlir_module()


def losses_fn(params: jax.Array, shift: float) -> dict[str, jax.Array]:
    grid = jnp.arange(params.size)
    return {
        name: jnp.sum(jnp.square(jnp.sin(params + shift * grid) - 0.1 * index))
        for index, name in enumerate(NAMES)
    }


def step_of(link: Any) -> Any:
    """One training step, and the state it starts from."""
    tx = optax.chain(link, optax.adam(1e-3))

    def step(params: jax.Array, state: Any, key: jax.Array) -> Any:
        gradients = task_gradients(losses_fn)(params, 1.0)
        kpis = jax.tree.map(lambda loss: jnp.exp(-loss), gradients.losses)
        supplied = {
            "kpis": kpis,
            "key": jax.random.wrap_key_data(key),
            "second_task_gradients": task_gradients(losses_fn)(params, 1.1),
        }
        updates, state = tx.update(gradients, state, params, **supplied)
        return optax.apply_updates(params, updates), state

    return step, tx.init(PARAMS)


def check(text: str) -> None:
    """What no program may contain, and how precise its products must be."""
    assert not re.search(r"tensor<(\d+x)*f64>", text)
    calls = set(re.findall(r"custom_call @([\w$.]+)", text))
    assert not {name for name in calls if "callback" in name}
    assert "stablehlo.infeed" not in text
    assert "stablehlo.outfeed" not in text
    for product in re.findall(r"stablehlo\.dot_general.*", text):
        assert "precision = [HIGHEST, HIGHEST]" in product


EVERY: list[Method | Combiner] = [*METHODS, *COMBINERS]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=method.name, marks=[pytest.mark.slow] * method.variant)
        for method in EVERY
    ],
)
def test_a_step_is_a_program_for_every_platform(method: Method | Combiner) -> None:
    if isinstance(method, Combiner):
        link = method.make(NAMES, len(NAMES))
    else:
        link = toys.balance(method.make(NAMES), NAMES)
    step, state = step_of(link)
    check(exported(step, PARAMS, state, jax.random.key_data(jax.random.key(0))))
