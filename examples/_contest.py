"""Trains a problem with many settings and seeds, and compares what they did in pairs.

All methods see the same initial parameters and the same batches, so that the difference
of two methods within a seed says more than the difference of their means.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dtp_jax import task_gradients
from examples._problems import Problem

Setting = Mapping[str, Any]
MakeOptimizer = Callable[[Setting], optax.GradientTransformation]


class Log(NamedTuple):
    """What C settings did with S seeds, measured E times on the way."""

    kpis: dict[str, Any]  # split -> [C, S, E, T], on unseen images
    seen: Any  # [C, S, E, T], on training batches, means between measurements
    weights: Any  # [C, S, E, T], as well
    largest_steps: Any  # [C, S, E], root mean square of an update of all
    params: Any  # at the end, leaves [C, S, ...]

    def last(self, split: str = "test") -> np.ndarray:
        """KPIs at the end, ``[C, S, T]``: means of the last tenth of the measurements.

        At a constant rate single steps move a KPI by a point or more.
        """
        return at_the_end(self.kpis[split])


class Job(NamedTuple):
    """Something to train: one program for all settings and seeds.

    Jobs of the same problem and optimizer share the program, too.
    """

    problem: Problem
    data: Mapping[str, Any]  # split -> batch, on the device
    make_optimizer: MakeOptimizer
    settings: Sequence[Setting]
    seeds: Sequence[int]
    splits: Sequence[str] = ("test",)
    num_measurements: int = 40


def train(jobs: Mapping[Any, Job], title: str) -> dict[Any, Log]:
    """Trains a network for each job, setting and seed, two at a time.

    The networks are so small that one core serves one of them best.

    Args:
        jobs: By any names.
        title: For the progress bar.

    Returns:
        A `Log` for each name.
    """
    num_runs = sum(len(job.settings) * len(job.seeds) for job in jobs.values())
    with (
        ThreadPoolExecutor(2) as pool,
        tqdm(total=num_runs, desc=title, unit="run", mininterval=0.5) as progress,
    ):
        for init_params in {job.problem.init_params for job in jobs.values()}:
            _init(init_params)(0)
        new = {_key(job): job for job in jobs.values() if _key(job) not in _programs}
        _programs.update(zip(new, pool.map(_compiled, new.values()), strict=True))

        def run(name, setting, seed):
            job = jobs[name]
            params = _init(job.problem.init_params)(seed)
            args = (_arrays(setting), params, jnp.int32(seed), _read(job))
            log = jax.device_get(_programs[_key(job)](*args))
            progress.update()
            return log

        runs = {
            name: [
                [pool.submit(run, name, setting, seed) for seed in job.seeds]
                for setting in job.settings
            ]
            for name, job in jobs.items()
        }
        return {
            name: _stack([_stack([run.result() for run in row]) for row in rows])
            for name, rows in runs.items()
        }


_programs: dict[Any, Callable[..., Log]] = {}


def _key(job: Job) -> Any:
    return job.problem, job.make_optimizer, tuple(job.splits), job.num_measurements


def _stack(logs: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *logs)


def _arrays(setting: Setting) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in setting.items()}


def _read(job: Job) -> dict[str, Any]:
    return {split: job.data[split] for split in ("train", *job.splits)}


def _compiled(job: Job) -> Callable[..., Log]:
    def run(setting, params, seed, data):
        return _one_run(job, setting, params, seed, data)

    args = (
        _arrays(job.settings[0]),
        _init(job.problem.init_params)(0),
        jnp.int32(0),
        _read(job),
    )
    return jax.jit(run).lower(*args).compile()


@functools.cache
def _init(init_params: Callable[[jax.Array], Any]) -> Callable[[int], Any]:
    """The initial parameters of a seed; all programs of a problem share them."""
    return jax.jit(lambda seed: init_params(_key_of(seed, 0)))


def _key_of(seed: jax.typing.ArrayLike, what: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), what)


def _one_run(
    job: Job, setting: Setting, params: Any, seed: jax.Array, data: Any
) -> Log:
    problem = job.problem
    per = problem.num_steps // job.num_measurements
    tx = optax.with_extra_args_support(job.make_optimizer(setting))
    num_examples = len(jax.tree.leaves(data["train"])[0])
    shape = (job.num_measurements, per, problem.batch_size)
    rows = jax.random.randint(_key_of(seed, 1), shape, 0, num_examples)

    def step(carry, rows):
        params, opt_state, number = carry
        batch = jax.tree.map(lambda column: column[rows], data["train"])
        batch = problem.prepare(batch, number)
        gradients, kpis = task_gradients(problem.losses_and_kpis, has_aux=True)(
            params, batch
        )
        updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
        params = optax.apply_updates(params, updates)
        weights = optax.tree.get(opt_state, "task_weights")
        log = (vector(kpis), vector(weights), _rms(updates))
        return (params, opt_state, number + 1), log

    def measure(carry, rows):
        carry, (seen, weights, sizes) = jax.lax.scan(step, carry, rows)
        found = {}
        for split in job.splits:
            batch = problem.prepare(data[split], carry[2] - 1)
            found[split] = vector(problem.judged(carry[0], batch))
        return carry, (found, seen.mean(0), weights.mean(0), sizes.max())

    start = (params, tx.init(params), jnp.int32(0))
    (params, _, _), logs = jax.lax.scan(measure, start, rows)
    return Log(*logs, params)


def at_the_end(kpis: np.ndarray) -> np.ndarray:
    """The mean of the last tenth, at least one, of measurements ``[..., E, T]``."""
    return kpis[..., -max(1, kpis.shape[-2] // 10) :, :].mean(axis=-2)


def vector(tree: Any) -> jax.Array:
    """The numbers of all tasks in one ``[T]`` array."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _rms(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
    return jnp.sqrt(total / sum(leaf.size for leaf in leaves))


def learning_rate(setting: Setting, num_steps: int) -> optax.Schedule:
    """``setting["rate"]``, falling to zero like a cosine if ``setting["cosine"]``."""

    def schedule(count):
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / num_steps, 1)))
        return setting["rate"] * jnp.where(setting["cosine"] > 0, falling, 1)

    return schedule


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over the seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def with_error(values: np.ndarray, sign: str = "") -> str:
    """Mean and standard error as text."""
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.1f} ± {error:.1f}"


def steps_to_share(
    kpis: np.ndarray, reference: np.ndarray, share: float, num_steps: int
) -> np.ndarray:
    """When the worst task first has a share of its reference: steps, or infinity.

    Args:
        kpis: ``[S, E, T]``.
        reference: ``[T]``.
        share: Of the reference.
        num_steps: Of the whole run.

    Returns:
        Steps, ``[S]``.
    """
    there = (kpis / reference).min(axis=2) >= share
    first = (there.argmax(axis=1) + 1) * num_steps / there.shape[1]
    return np.where(there.any(axis=1), first, np.inf)
