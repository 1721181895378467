"""Solvers as one kernel: the same answers, and programs that never wait for a host."""

import functools
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, balancers
from dtp_jax.solvers import _kernel
from tests import devices
from tests.solvers.problems import correlated, draw, independent

# Each rule of a problem that has a kernel, from the Gramian to the weights.
RULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cagrad": balancers.cagrad_weights,
    "config": balancers.config_weights,
    "dual_projection": balancers.dual_projection_weights,
    "fair_grad": functools.partial(balancers.fair_grad_weights, alpha=2.0),
    "imtl_g": balancers.imtl_g_weights,
    "mgda": balancers.mgda_weights,
    "nash_mtl": balancers.nash_mtl_weights,
    "pcd": functools.partial(balancers.pcd_weights, primary=0),
    "upgrad": balancers.upgrad_weights,
}
# Their solvers are those of others here.
SAME = {"dual_projection", "fair_grad", "imtl_g"}
KEY = jax.random.key(0)
# The others, and what in their programs asks the host and calls a library. The first
# two go from task to task, as often as there are tasks, which nobody has to be asked.
# The last one needs all eigenvalues and vectors, which is one call.
OTHERS: dict[str, tuple[Callable[[jax.Array], Any], int, int]] = {
    "pcgrad": (functools.partial(balancers.pcgrad_weights, key=KEY), 0, 0),
    "grad_vac": (functools.partial(balancers.grad_vac_weights, key=KEY), 0, 0),
    "aligned_mtl": (balancers.aligned_mtl_weights, 0, 1),
}
TRITON = "__gpu$xla.gpu.triton"

pytestmark = pytest.mark.skipif(
    _kernel._pallas() is None, reason="this version of JAX makes no kernels"
)


def gramians(num_tasks: int) -> jax.Array:
    """Of several kinds, the last one of more tasks than parameters."""
    rows = [
        draw(independent, num_tasks, num_tasks + 3),
        draw(correlated, num_tasks, num_tasks + 3),
        draw(independent, num_tasks, 2),
    ]
    return jnp.stack([jnp.asarray(x @ x.T, jnp.float32) for x in rows])


def answers(rule: Callable[[jax.Array], jax.Array], given: jax.Array) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(rule))(given))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SAME)) for n in RULES],
)
@pytest.mark.parametrize(
    "num_tasks", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 16, 33))]
)
def test_a_kernel_answers_as_the_library_does(name: str, num_tasks: int) -> None:
    given = gramians(num_tasks)
    real = _kernel.available()
    with devices.kernels(False):
        expected = answers(RULES[name], given)
    with devices.kernels(True, interpreted=not real):
        found = answers(RULES[name], given)
    # Weights of more tasks than parameters are not unique, their vector is.
    for gramian, x, y in zip(np.asarray(given), found, expected, strict=True):
        lengths = np.sqrt(np.diagonal(gramian))
        cosines = gramian / lengths[:, None] / lengths[None, :]
        vectors = cosines @ (lengths * x), cosines @ (lengths * y)
        size = np.abs(lengths * y).sum()
        np.testing.assert_allclose(*vectors, rtol=0, atol=2e-5 * size)


def exported(rule: Callable[..., Any], *given: jax.Array) -> str:
    """The program for a CUDA device, which any machine can make."""
    checks = [jax.export.DisabledSafetyCheck.custom_call(TRITON)]
    with devices.kernels(True), devices.compiling_for_a_gpu():
        program = jax.export.export(
            jax.jit(rule), platforms=("cuda",), disabled_checks=checks
        )(*given)
    return program.mlir_module()


def asks_the_host(text: str) -> int:
    """How many loops of unknown length there are, and branches not by the platform."""
    found = len(re.findall(r'stablehlo\.while"?\(', text)) - counted_loops(text)
    for function in text.split("func.func")[1:]:
        known = set(re.findall(r"(%\w+) = stablehlo\.constant", function))
        for line in function.splitlines():
            branch = re.search(
                r'(%\w+)(?::\d+)? = "stablehlo\.(?:case|if)"\((%\w+)\)', line
            )
            if branch and branch[2] in known:
                # The choice by platform is a branch that gives the number of the next.
                known.add(branch[1])
            elif branch:
                found += 1
    return found


def counted_loops(text: str) -> int:
    """How many loops end when a counter that starts at a constant reaches another."""
    found = 0
    for function in text.split("func.func")[1:]:
        known = set(re.findall(r"(%\w+) = stablehlo\.constant", function))
        for loop in re.split(r'stablehlo\.while"?\(', function)[1:]:
            condition = loop.split("cond {")[1].split("} do {")[0].strip().splitlines()
            # Nothing but the comparison and its return.
            compare = re.match(
                r"(%\w+) = stablehlo\.compare +LT, (%\w+), (%\w+), ", condition[0]
            )
            if len(condition) == 2 and compare:
                start = re.search(rf"{compare[2]} = (%\w+)", loop)
                found += compare[3] in known and bool(start and start[1] in known)
    return found


def calls(text: str) -> Counter[str]:
    return Counter(re.findall(r"custom_call @([\w$.]+)", text))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("num_tasks", [2, 3, pytest.param(128, marks=pytest.mark.slow)])
def test_a_solver_is_one_kernel_and_asks_the_host_nothing(
    name: str, num_tasks: int
) -> None:
    if num_tasks > 64 and name in ("config", "imtl_g"):
        pytest.skip("four matrices of this size are too large for one block")
    text = exported(RULES[name], gramians(num_tasks)[0])
    assert asks_the_host(text) == 0
    # Two tasks have a closed form.
    closed = name == "mgda" and num_tasks == 2
    assert calls(text) == ({} if closed else {TRITON: 1})


@pytest.mark.parametrize("make", [balancers.config, balancers.imtl_g])
def test_gradients_that_correct_a_kernel_ask_the_host_nothing(make: Any) -> None:
    balancer, ones = make(), jnp.ones(5)

    def weights(rows: jax.Array) -> jax.Array:
        gradients = TaskGradients.from_stacked(rows)
        state = balancer.init(ones)
        return balancer.update(ones, state, task_gradients=gradients)[0]

    rows = jnp.asarray(draw(independent, 5, 8), jnp.float32)
    text = exported(weights, rows)
    assert asks_the_host(text) == 0
    assert calls(text) == {TRITON: 1}
    with devices.kernels(False):
        expected = jax.jit(weights)(rows)
    with devices.kernels(True, interpreted=True):
        np.testing.assert_allclose(jax.jit(weights)(rows), expected, rtol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_other_rules_ask_and_call(name: str) -> None:
    rule, questions, libraries = OTHERS[name]
    text = exported(rule, gramians(8)[0])
    assert asks_the_host(text) == questions
    assert calls(text).total() == libraries


def test_what_is_no_work_for_a_kernel_takes_the_loops() -> None:
    text = exported(balancers.mgda_weights, gramians(129)[0])
    assert asks_the_host(text) == 1
    assert TRITON not in calls(text)
    with jax.enable_x64(True), devices.kernels(True, interpreted=True):
        program: Any = jax.make_jaxpr(balancers.mgda_weights)(jnp.eye(3))
    assert "pallas_call" not in str(program)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Whether kernels are available, asked anew each time where a GPU seems to be."""

    class Gpu:
        compute_capability = "9.0"

    monkeypatch.delenv("DTP_JAX_KERNELS", raising=False)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [Gpu()])
    monkeypatch.setattr(_kernel, "_available", _kernel._available.__wrapped__)
    with devices.compiling_for_a_gpu():
        yield _kernel.available


def test_kernels_can_be_switched_off(
    gpu: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTP_JAX_KERNELS", "0")
    assert not gpu()
    monkeypatch.setenv("DTP_JAX_KERNELS", "interpret")
    assert gpu()


def test_where_jax_makes_no_kernels_the_loops_take_over(
    gpu: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu()
    # Asked for the first time while a step is traced, which is the usual case.
    assert jax.jit(lambda x: x + gpu())(0) == 1
    monkeypatch.setattr(_kernel, "_pallas", _kernel._pallas.__wrapped__)
    assert gpu()
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    assert _kernel._pallas() is None
    assert not gpu()


def test_kernels_that_jax_refuses_or_warns_of_are_left_out(
    gpu: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("The Pallas Triton backend is deprecated", DeprecationWarning, 2)
        return pallas_call(*args, **kwargs)

    def refusing(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("The Pallas Triton backend is deprecated")

    makers: Any = _kernel._pallas()
    pallas_call, params = makers
    monkeypatch.setattr(_kernel, "_pallas", lambda: (warning, params))
    assert gpu()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu()
    monkeypatch.setattr(_kernel, "_pallas", lambda: (refusing, params))
    assert not gpu()


def test_each_default_device_is_asked_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(_kernel, "_available", asked.append)
    device = jax.devices("cpu")[0]
    _kernel.available()
    with jax.default_device(device):
        _kernel.available()
    assert asked == [None, device]
