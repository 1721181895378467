"""Whole training steps of ours and of TorchJD: time and peak memory.

The same network with the same weights for both: a trunk 64-512-512 and T separate heads
512-10, a batch of 256, SGD. With UPGrad the heads get their own, unscaled gradients.
"""

import ctypes
import functools
import gc
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import _models
from benchmarks._measure import Cost, compiled
from benchmarks._side_by_side import Machine, in_turn, milliseconds, peer, ratio
from dtp_jax import balance, balancers, feature_task_gradients, task_gradients
from dtp_jax.curricula import every_k

WIDTHS, BATCH = (64, 512, 512), 256

# So small that every round meets the same gradients, though the parameters of torch
# are changed in place.
LEARNING_RATE = 1e-6

OURS = ("plain", "trunk", "features", "every 10th")
THEIRS = ("plain", "jacobian", "jacobian by leaf", "autogram", "features")
PAIRS = [
    ("plain", "plain", "plain"),
    ("UPGrad of the trunk", "jacobian", "trunk"),
    ("the same, theirs leaf by leaf", "jacobian by leaf", "trunk"),
    ("the same, theirs by autogram", "autogram", "trunk"),
    ("UPGrad of the features", "features", "features"),
    ("UPGrad of the trunk on every 10th step", None, "every 10th"),
]


def our_step(
    name: str, num_tasks: int, learning_rate: float = LEARNING_RATE
) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """A training step of ours.

    Args:
        name: One of `OURS`.
        num_tasks: The number of tasks.
        learning_rate: Of SGD.

    Returns:
        A function from parameters, optimizer state and batch to the first two, and
        these three to begin with.
    """
    params = _models.init(num_tasks, WIDTHS)
    batch = _models.batch(num_tasks, WIDTHS[0], BATCH)

    def losses_fn(params: Any, batch: Any) -> Any:
        return _models.losses_and_kpis(params, batch)[0]

    def encoder(params: Any, batch: Any) -> jax.Array:
        hidden = batch["x"]
        for layer in params["trunk"]:
            hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
        return hidden

    def heads(params: Any, features: jax.Array, batch: Any) -> Any:
        no_trunk = {"trunk": [], "heads": params["heads"]}
        return losses_fn(no_trunk, {"x": features, "y": batch["y"]})

    if name == "plain":
        tx: Any = optax.sgd(learning_rate)
        make: Any = jax.grad(lambda p, batch: sum(losses_fn(p, batch).values()))
    else:
        balancer = balancers.upgrad()
        if name == "every 10th":
            balancer = every_k(balancer, 10)
        link = balance(balancer, _models.names(num_tasks), heads="preferences")
        tx = optax.chain(link, optax.sgd(learning_rate))
        make = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
        if name == "features":
            make = feature_task_gradients(encoder, heads)

    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = tx.update(make(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return step, (params, tx.init(params), batch)


def our_program(name: str, num_tasks: int) -> tuple[Callable[[], Any], Cost]:
    """A compiled step of ours, to be called without arguments, and its cost.

    A call of "every 10th" runs ten steps.
    """
    step, (params, state, batch) = our_step(name, num_tasks)
    program, cost = compiled(step, params, state, batch)

    def call() -> Any:
        carry = params, state
        for _ in range(10 if name == "every 10th" else 1):
            carry = jax.block_until_ready(program(*carry, batch))
        return carry

    return call, cost


def their_step(
    name: str, num_tasks: int, learning_rate: float = LEARNING_RATE
) -> tuple[Callable[[], None], Any]:
    """A training step with TorchJD.

    Args:
        name: One of `THEIRS`.
        num_tasks: The number of tasks.
        learning_rate: Of SGD.

    Returns:
        A function that changes a model in place, and the model.
    """
    torch, agg = peer("torch"), peer("torchjd.aggregation")
    autojac, autogram = peer("torchjd.autojac"), peer("torchjd.autogram")
    params = jax.tree.map(np.array, _models.init(num_tasks, WIDTHS))
    batch = jax.tree.map(np.array, _models.batch(num_tasks, WIDTHS[0], BATCH))
    x = torch.from_numpy(batch["x"])
    labels = [torch.from_numpy(y).long() for y in batch["y"].values()]

    def linear(layer: dict[str, np.ndarray]) -> Any:
        module = torch.nn.Linear(*layer["w"].shape)
        module.weight.data = torch.from_numpy(layer["w"].T.copy())
        module.bias.data = torch.from_numpy(layer["b"])
        return module

    layers = [(linear(layer), torch.nn.ReLU()) for layer in params["trunk"]]
    trunk = torch.nn.Sequential(*itertools.chain(*layers))
    heads = torch.nn.ModuleList(map(linear, params["heads"].values()))
    model = torch.nn.ModuleDict({"trunk": trunk, "heads": heads})
    shared = list(trunk.parameters())
    unshared = [list(head.parameters()) for head in heads]
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    # Made once, as its manual asks. The losses are means over the batch, so that no
    # dimension of theirs is that of the batch.
    engine = autogram.Engine(trunk, batch_dim=None) if name == "autogram" else None

    def losses(features: Any) -> list[Any]:
        pairs = zip(heads, labels, strict=True)
        return [
            torch.nn.functional.cross_entropy(head(features), y) for head, y in pairs
        ]

    def plain() -> None:
        torch.stack(losses(trunk(x))).sum().backward()

    def jacobian(by_leaf: bool) -> None:
        features = trunk(x)
        autojac.mtl_backward(
            losses(features),
            features=features,
            tasks_params=unshared,
            shared_params=shared,
        )
        rule = agg.UPGrad()
        autojac.jac_to_grad(shared, rule, optimize_gramian_computation=by_leaf)

    def by_autogram(engine: Any) -> None:
        stacked = torch.stack(losses(trunk(x)))
        stacked.backward(agg.UPGradWeighting()(engine.compute_gramian(stacked)))

    def of_features() -> None:
        features = trunk(x)
        leaf = features.detach().requires_grad_()
        view = leaf.view_as(leaf)
        autojac.mtl_backward(
            losses(view), features=view, tasks_params=unshared, shared_params=[leaf]
        )
        autojac.jac_to_grad([leaf], agg.UPGrad())
        features.backward(leaf.grad)

    backward: Callable[[], None] = {
        "plain": plain,
        "jacobian": functools.partial(jacobian, False),
        "jacobian by leaf": functools.partial(jacobian, True),
        "autogram": functools.partial(by_autogram, engine),
        "features": of_features,
    }[name]

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return step, model


def step_rows(num_tasks: int, rounds: int, best: Machine) -> list[list[str]]:
    """Measures every step for one number of tasks."""
    ours = {name: our_program(name, num_tasks) for name in OURS}
    functions: dict[str, Callable[[], Any]] = {
        f"TorchJD's {name}": their_step(name, num_tasks)[0] for name in THEIRS
    }
    functions |= {name: call for name, (call, _) in ours.items()}
    times = in_turn(functions, rounds, max_seconds=240)
    times["every 10th"] /= 10
    rows = []
    for title, their_name, name in PAIRS:
        their_time = times.get(f"TorchJD's {their_name}")
        floor = floor_flops(name, num_tasks, ours["plain"][1].flops) / best.flops
        rows.append(
            [
                title,
                str(num_tasks),
                milliseconds(their_time),
                milliseconds(times[name]),
                ratio(their_time, times[name]),
                ratio(their_time, times["TorchJD's plain"]),
                ratio(times[name], times["plain"]),
                milliseconds(floor),
            ]
        )
    return rows


def floor_flops(name: str, num_tasks: int, plain: float) -> float:
    """The FLOPs that a step cannot do without, from those of the plain step.

    A backward pass through the trunk for each task instead of one for all, the products
    of the Gramian, and the weighted sum.
    """
    if name == "plain":
        return plain
    layers = list(itertools.pairwise(WIDTHS))
    if name == "features":
        return plain + 2 * num_tasks * (num_tasks + 1) * BATCH * WIDTHS[-1]
    # The gradient of the weights and, but for the first layer, that of the inputs.
    passes = [(2 if number else 1) * a * b for number, (a, b) in enumerate(layers)]
    size = sum((a + 1) * b for a, b in layers)
    more = 2 * BATCH * sum(passes) * (num_tasks - 1)
    more += 2 * num_tasks * (num_tasks + 1) * size
    return plain + (more / 10 if name == "every 10th" else more)


def memory_rows(num_tasks: int) -> list[list[str]]:
    """Measures the peak of every step, each in a process of its own."""
    rows, peaks = [], {}
    for title, their_name, name in PAIRS:
        for side, step in (("theirs", their_name), ("ours", name)):
            if step is not None and (side, step) not in peaks:
                peaks[side, step] = _peak_in_a_process(side, step, num_tasks)
        theirs, ours = peaks.get(("theirs", their_name)), peaks["ours", name]
        temp_bytes = our_program(name, num_tasks)[1].temp_bytes
        rows.append(
            [
                title,
                str(num_tasks),
                "-" if theirs is None else f"{theirs / 2**20:.0f}",
                f"{ours / 2**20:.0f}",
                ratio(ours, theirs),
                f"{temp_bytes / 2**20:.0f}",
            ]
        )
    return rows


def peak_growth(step: Callable[[], Any]) -> int:
    """By how many bytes resident memory rises at most while a step runs thrice."""
    gc.collect()
    # What was freed before, such as by the compiler, would hide what the step takes: it
    # goes back to the system first, and the kernel forgets the peak so far.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return _status("VmHWM") - before


def _peak_in_a_process(side: str, name: str, num_tasks: int) -> int:
    arguments = ["-m", "benchmarks._side_by_side_steps", side, name, str(num_tasks)]
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(found.stdout)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}.")


def _print_peak(side: str, name: str, num_tasks: int) -> None:
    """Prints the peak of a step of "ours" or "theirs", in a process of its own."""

    def build(num_tasks: int) -> Callable[[], Any]:
        if side == "ours":
            return our_program(name, num_tasks)[0]
        return their_step(name, num_tasks)[0]

    # What the libraries set up once, a small step sets up.
    build(2)()
    print(peak_growth(build(num_tasks)))


if __name__ == "__main__":
    _print_peak(sys.argv[1], sys.argv[2], int(sys.argv[3]))
