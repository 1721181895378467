"""Trains with faults and kills, and compares with a run that was not killed.

python -m benchmarks.soak --seconds 3600 --page docs/reliability.md

Two runs take the same number of steps on a network with two heads for digits, with the
same poisoned batches and masks. One of them is killed by SIGKILL again and again, and
resumes from what it saved last. Both must end in the same parameters, bit for bit;
memory and the number of compiled programs must stay flat.
"""

import argparse
import datetime
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAVE_EVERY = 50
HEADING = "## Faults and kills\n"
TEXT = """
`make soak` trains two heads on digits by `dynamic_task_prioritization` with a guard and
UPGrad, in steps of which some have a poisoned gradient or loss, or a task masked, and
then once more with kills by SIGKILL, each time from what was saved last. On {date}:
{sentence}
"""


def _train(folder: Path, num_steps: int) -> None:
    """Trains from what was saved last, in a process of its own."""
    import flax.serialization
    import jax
    import jax.numpy as jnp
    import optax

    import dtp_jax
    from dtp_jax import task_gradients

    names = ("left", "right")
    link: Any = dtp_jax.dynamic_task_prioritization(
        names, warmup_steps=20, balancer=dtp_jax.balancers.upgrad(), guard=True
    )
    tx = optax.chain(link, optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    def losses_fn(params: Any, x: jax.Array, y: Any, bad: jax.Array) -> Any:
        hidden = jax.nn.relu(x @ params["trunk"])
        losses, kpis = {}, {}
        for name in names:
            logits = hidden @ params[name]
            of = optax.softmax_cross_entropy_with_integer_labels(logits, y[name])
            losses[name] = jnp.mean(of)
            kpis[name] = jnp.mean(jnp.argmax(logits, axis=1) == y[name])
        # In a bad step the loss is finite and its gradient is not, or neither is.
        root = jnp.sqrt(jnp.where(bad == 1, 0.0, 1.0) * params["trunk"][0, 0] ** 2)
        stopped = jax.lax.stop_gradient(root)
        nan = jnp.where(bad == 2, jnp.nan, 0.0)
        return {**losses, "left": losses["left"] + root - stopped + nan}, kpis

    @jax.jit
    def step(params: Any, state: Any, number: jax.Array) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), number), 4)
        digits = jax.random.randint(keys[0], (2, 32), 0, 10)
        y = {name: digits[index] for index, name in enumerate(names)}
        x = sum(jax.nn.one_hot(y[n], 64) * (i + 1) for i, n in enumerate(names))
        x += 0.3 * jax.random.normal(keys[2], (32, 64))
        draw = jax.random.uniform(keys[3])
        bad = jnp.where(draw < 0.02, 1, jnp.where(draw < 0.04, 2, 0))
        gradients, kpis = task_gradients(losses_fn, has_aux=True)(params, x, y, bad)
        mask = {"left": True, "right": draw < 0.95}
        updates, state = tx.update(gradients, state, params, kpis=kpis, task_mask=mask)
        return optax.apply_updates(params, updates), state

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "trunk": jax.random.normal(keys[0], (64, 128)) / 8,
        "left": jax.random.normal(keys[1], (128, 10)) / 11,
        "right": jax.random.normal(keys[2], (128, 10)) / 11,
    }
    carry = (params, tx.init(params), jnp.zeros((), jnp.int32))
    saved = folder / "saved.msgpack"
    if saved.exists():
        carry = flax.serialization.from_bytes(carry, saved.read_bytes())
    params, state, start = jax.tree.map(jnp.asarray, carry)
    for number in range(int(start), num_steps):
        params, state = step(params, state, jnp.asarray(number, jnp.int32))
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == num_steps:
            done = (params, state, jnp.asarray(number + 1, jnp.int32))
            part = saved.with_suffix(".part")
            part.write_bytes(flax.serialization.to_bytes(done))
            # A process that dies between the two leaves the last one whole.
            part.replace(saved)
            size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            jitted: Any = step
            with (folder / "log").open("a") as log:
                log.write(f"{number + 1} {size} {jitted._cache_size()}\n")
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params)):
        sys.exit("The parameters are not finite.")


def _child(folder: Path, num_steps: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.soak", "--train", str(folder)]
    return subprocess.Popen([*command, "--steps", str(num_steps)])


def _finish(folder: Path, num_steps: int) -> None:
    if _child(folder, num_steps).wait() != 0:
        sys.exit("A run failed on its own.")


def _log(folder: Path) -> list[list[int]]:
    file = folder / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [[int(cell) for cell in line.split()] for line in lines]


def soak(num_steps: int, num_kills: int, seed: int = 0) -> str:
    """Runs both, and compares them.

    Args:
        num_steps: How many steps each takes.
        num_kills: How often the second one is killed.
        seed: Of the moments.

    Returns:
        What happened, in a sentence.

    Raises:
        SystemExit: If the two end differently, or memory or programs grow.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        calm, killed = Path(name) / "calm", Path(name) / "killed"
        _finish(calm, num_steps)
        # Spread over the run, each some steps after something was saved.
        marks = sorted(rng.sample(range(1, num_steps // SAVE_EVERY), num_kills))
        for mark in marks:
            process = _child(killed, num_steps)
            while not (log := _log(killed)) or log[-1][0] < mark * SAVE_EVERY:
                if process.poll() is not None:
                    break
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.wait()
        _finish(killed, num_steps)
        files = [folder / "saved.msgpack" for folder in (calm, killed)]
        if files[0].read_bytes() != files[1].read_bytes():
            sys.exit("The run that was killed ended in other bits.")
        log = _log(calm)
    first, last = log[len(log) // 4], log[-1]
    if last[2] != 1 or last[1] > 1.1 * first[1]:
        sys.exit(f"Memory or programs grew: {first}, {last}.")
    return (
        f"{num_steps:,} steps, {num_kills} kills: the same bits; memory "
        f"{last[1] / first[1]:.3f} of that after a quarter, {last[2]} program."
    )


def section_of(page: Path) -> str:
    """What a page says of the last soak, with its heading; empty if nothing."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    _, heading, rest = text.partition(HEADING)
    return (heading + rest.split("\n## ")[0]).rstrip("\n") + "\n" if heading else ""


def write_section(page: Path, sentence: str) -> None:
    """Puts a soak at the end of a page, in the place of the last one."""
    text = page.read_text(encoding="utf-8")
    last = section_of(page).rstrip("\n")
    before = text.replace(last, "") if last else text
    section = HEADING + TEXT.format(date=datetime.date.today(), sentence=sentence)
    page.write_text(f"{before.rstrip()}\n\n{section}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="where to write what came of it")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.train:
        _train(args.train, args.steps)
        return
    steps = args.steps
    if steps is None:
        # How many steps fill the time, for both runs and a share that is taken twice.
        with tempfile.TemporaryDirectory() as name:
            start = time.perf_counter()
            _finish(Path(name) / "few", SAVE_EVERY)
            middle = time.perf_counter()
            _finish(Path(name) / "many", 41 * SAVE_EVERY)
            end = time.perf_counter()
        rate = 40 * SAVE_EVERY / max(end - middle - (middle - start), 1e-3)
        steps = max(10 * SAVE_EVERY, int(rate * args.seconds / 2.2))
    sentence = soak(steps, min(args.kills, steps // SAVE_EVERY - 1))
    print(sentence)
    if args.page:
        write_section(args.page, sentence)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
