"""The recipes of docs/design.md for batches in parts, against the whole batch."""

import re
from pathlib import Path
from typing import Any

import jax
import optax

from dtp_jax import task_gradients
from tests.toys import assert_near, balance, balancers

PAGE = Path(__file__).parents[2] / "docs" / "design.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {"w": jax.random.normal(KEYS[0], (5,))}
BATCH = {
    "x": jax.random.normal(KEYS[1], (32, 5)),
    "y": jax.random.normal(KEYS[2], (32,)),
}


def recipes() -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "design"}
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace


def close(found: Any, expected: Any) -> None:
    # Means over 32 examples, in parts or at once.
    jax.tree.map(
        lambda a, b: assert_near(a, b, rtol=1e-5),
        found,
        expected,
    )


def test_gradients_losses_and_kpis_of_parts_are_those_of_the_batch() -> None:
    page = recipes()
    rows, losses, kpis = jax.jit(page["of_batch"])(PARAMS, BATCH)
    make = task_gradients(page["losses_fn"], has_aux=True)
    gradients, expected = make(PARAMS, BATCH)
    close((rows, losses, kpis), (gradients.stack(), gradients.losses, expected))


def test_steps_by_the_recipes_are_those_of_the_batch() -> None:
    page = recipes()
    tx: Any = optax.chain(
        balance(balancers.upgrad(), ["sign", "square"]), optax.adam(1e-2)
    )

    @jax.jit
    def at_once(params: Any, state: Any) -> Any:
        gradients = task_gradients(page["losses_fn"], has_aux=True)(params, BATCH)[0]
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    expected = by_parts = on_devices = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        expected = at_once(*expected)
        by_parts = page["step_by_parts"](*by_parts, BATCH)
        on_devices = page["step_on_devices"](*on_devices, BATCH)
    close(by_parts, expected)
    close(on_devices, expected)


def test_the_recipe_by_hand_for_devices() -> None:
    page = recipes()

    def local(params: Any, batch: Any) -> Any:
        params = jax.lax.pcast(params, "data", to="varying")
        gradients, _ = task_gradients(page["losses_fn"], has_aux=True)(params, batch)
        rows = jax.lax.pmean((gradients.stack(), gradients.losses), "data")
        return page["TaskGradients"].from_stacked(*rows).gramian()

    for check_vma in (True, False):
        mapped = jax.shard_map(
            local,
            mesh=page["mesh"],
            in_specs=(jax.P(), jax.P("data")),
            out_specs=jax.P(),
            check_vma=check_vma,
        )
        expected = task_gradients(page["losses_fn"], has_aux=True)(PARAMS, BATCH)[0]
        close(jax.jit(mapped)(PARAMS, BATCH), expected.gramian())
