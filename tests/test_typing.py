"""What a type checker sees of the package, where pyright is installed."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dtp_jax

ROOT = Path(dtp_jax.__file__).parent.parent

# Each line with "wrong" in it must be an error, and no other.
PROGRAM = """
import jax
import optax
import dtp_jax
from typing import assert_type

dtp_jax.balence  # wrong
dtp_jax.task_gradient  # wrong
dtp_jax.balancers.upgrade  # wrong
dtp_jax.nnx.Optimiser  # wrong
dtp_jax.linen.TrainingState  # wrong
dtp_jax.diagnostics.weights  # wrong
from dtp_jax import haiku  # wrong

def step(state: dtp_jax.linen.TrainState) -> dtp_jax.linen.TrainState:
    state.apply_gradient()  # wrong
    return state.apply_gradients(grads=None, kpis=None)

tx = optax.chain(dtp_jax.dynamic_task_prioritization(["a"]), optax.adam(1e-3))
dtp_jax.dynamic_task_prioritization(["a"], gama=1.0)  # wrong
dtp_jax.nnx.task_gradients(print, shard=None)  # wrong
link = dtp_jax.balance(dtp_jax.balancers.mgda(), ["a", "b"])
init, update = link
assert_type(link, optax.GradientTransformationExtraArgs)
assert_type(dtp_jax.diagnostics.task_weights(()), dict[str, jax.Array])

def losses_fn(params: jax.Array, x: int) -> tuple[dict[str, jax.Array], float]:
    return {"a": params}, 0.5

with_aux = dtp_jax.task_gradients(losses_fn, has_aux=True)
assert_type(with_aux(jax.numpy.ones(2), 1), tuple[dtp_jax.TaskGradients, float])
alone = dtp_jax.task_gradients(losses_fn)
assert_type(alone(jax.numpy.ones(2), x=1), dtp_jax.TaskGradients)
alone(jax.numpy.ones(2), "one")  # wrong
alone(jax.numpy.ones(2), x=1).gramians()  # wrong
nnx_aux = dtp_jax.nnx.task_gradients(losses_fn, has_aux=True)
assert_type(nnx_aux(jax.numpy.ones(2), 1), tuple[dtp_jax.TaskGradients, float])
"""


def test_no_module_answers_to_every_name() -> None:
    # A function `__getattr__` that a type checker sees makes every name right.
    for path in Path(dtp_jax.__file__).parent.rglob("*.py"):
        names = {getattr(node, "name", "") for node in ast.parse(path.read_text()).body}
        assert "__getattr__" not in names, path


@pytest.mark.slow
def test_a_type_checker_finds_misspelt_names(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "pyright", "--outputjson"]
    done = subprocess.run(
        [*command, "--pythonpath", sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    errors = [
        found["range"]["start"]["line"]
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    ]
    lines = PROGRAM.splitlines()
    assert errors == [number for number, line in enumerate(lines) if "wrong" in line]
