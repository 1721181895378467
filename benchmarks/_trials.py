"""Trials of every method: devices, bad steps, long runs, checkpoints."""

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dtp_jax import task_gradients
from tests import saving, toys
from tests.catalogue import METHODS
from tests.combiner_catalogue import COMBINERS

NAMES = toys.NAMES
STEPS = toys.random_steps(len(NAMES), num_steps=4, seed=5)
PARAMS = jnp.zeros(STEPS.jacobians.shape[-1])

LINKS: dict[str, Callable[[Any], Any]] = {
    "dynamic_task_prioritization": lambda names: toys.dynamic_task_prioritization(
        names, warmup_steps=1, ramp_steps=2
    ),
    **{
        m.name: lambda names, m=m: toys.balance(m.make(names), names)
        for m in METHODS
        if not m.name.startswith("toy")
    },
    **{m.name: lambda names, m=m: m.make(names, len(names)) for m in COMBINERS},
}
# They are settings of others.
VARIANTS = {m.name for m in (*METHODS, *COMBINERS) if m.variant}
# Made for parameters of another shape than those that are spread here.
NOT_SPREAD = {"excess_mtl-params"}

# How the two parameters, trunk [8, 16] and heads [4, 16], and the batch are spread.
MESHES: dict[str, tuple[tuple[int, ...], P, P, P]] = {
    "data parallel": ((8,), P(), P(), P("x")),
    "fully sharded": ((8,), P("x", None), P(None, "x"), P("x")),
    "sharded on the last axis": ((8,), P(None, "x"), P(None, "x"), P("x")),
    "tensor parallel": ((8,), P(None, "x"), P(None, "x"), P()),
    "2 x 4": ((2, 4), P("x", "y"), P(None, "y"), P("x")),
}
_KEYS = jax.random.split(jax.random.key(0), 3)
MODEL = {
    "heads": jax.random.normal(_KEYS[0], (4, 16)),
    "trunk": jax.random.normal(_KEYS[1], (8, 16)) / 3,
}
X = jax.random.normal(_KEYS[2], (16, 8))


def losses_fn(params: Any, x: jax.Array) -> tuple[Any, Any]:
    """Losses and KPIs of one layer and four heads."""
    trunk, heads = params["trunk"], params["heads"]
    if not jax.sharding.get_abstract_mesh().empty and _explicit():
        # On explicit axes the layers say what they gather.
        trunk, heads = jax.sharding.reshard((trunk, heads), P())
    errors = jnp.tanh(x @ trunk) @ heads.T - 1
    losses = jnp.mean(errors**2, axis=0)
    kpis = jnp.mean(jnp.abs(errors) < 1, axis=0)
    by_name = [{n: of[i] for i, n in enumerate(NAMES)} for of in (losses, kpis)]
    return by_name[0], by_name[1]


def _explicit() -> bool:
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def step_of(link: Any) -> Callable[..., Any]:
    """A step of training that supplies what any method reads."""

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        gradients, kpis = task_gradients(losses_fn, has_aux=True)(params, x)
        second, _ = task_gradients(losses_fn, has_aux=True)(params, x + 0.1)
        updates, state = link.update(
            gradients,
            state,
            params,
            kpis=kpis,
            key=jax.random.key(3),
            second_task_gradients=second,
        )
        return optax.apply_updates(params, updates), state

    return step


def trained(link: Any, params: Any, x: jax.Array) -> Any:
    """Parameters and state after two steps of a tenth of the gradient."""
    tx = optax.chain(link, optax.sgd(0.1))
    step, state = jax.jit(step_of(tx)), tx.init(params)
    for _ in range(2):
        params, state = step(params, state, x)
    return params, state


@functools.cache
def on_one_device(name: str) -> Any:
    """What `trained` returns on one device."""
    return trained(LINKS[name](NAMES), MODEL, X)


def deviation(found: Any, expected: Any) -> float:
    """The largest distance of two pytrees, as a share of each array's largest entry."""
    worst = 0.0
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for ours, theirs in pairs:
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        if same.all():
            continue
        finite = np.isfinite(ours).all() and np.isfinite(theirs).all()
        share = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
        worst = max(worst, float(share) if finite else np.inf)
    return worst


@contextlib.contextmanager
def spread(mesh_name: str, kind: AxisType) -> Any:
    """Sets a mesh; yields model and batch on it."""
    sizes, trunk, heads, batch = MESHES[mesh_name]
    axes = ("x", "y")[: len(sizes)]
    mesh = jax.make_mesh(sizes, axes, axis_types=(kind,) * len(sizes))
    specs = {"heads": heads, "trunk": trunk}
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(MODEL[name], NamedSharding(mesh, spec))
            for name, spec in specs.items()
        }
        yield params, jax.device_put(X, NamedSharding(mesh, batch))


def on_a_mesh(name: str, mesh_name: str, kind: AxisType) -> float:
    """How far training on eight devices is from training on one.

    Args:
        name: Of a link.
        mesh_name: Of a mesh.
        kind: Of its axes.

    Returns:
        The largest distance, relative to the largest entry; infinite if devices
        disagree, or if what is remembered of each parameter is not spread as it is.
    """
    link = LINKS[name](NAMES)
    with spread(mesh_name, kind) as (params, x):
        for leaf in jax.tree.leaves(link.init(params)):
            for param in params.values():
                remembered = leaf.shape == (len(NAMES), *param.shape)
                if remembered and leaf.sharding.shard_shape(leaf.shape)[1:] != (
                    param.sharding.shard_shape(param.shape)
                ):
                    return np.inf
        found = trained(link, params, x)
    for leaf in jax.tree.leaves(optax.tree.get(found[1], "task_weights", {})):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        if any(not np.array_equal(shard, shards[0]) for shard in shards):
            return np.inf
    return deviation(found, on_one_device(name))


POISONS = (np.nan, np.inf, -np.inf)


@functools.cache
def _stacked_run(name: str) -> Any:
    link = LINKS[name](NAMES)

    def run(steps: toys.Steps, masks: jax.Array) -> Any:
        def one(state: Any, xs: Any) -> Any:
            step, mask = xs
            task_mask = dict(zip(NAMES, mask, strict=True))
            gradient, state = toys.update(link, state, step, NAMES, task_mask=task_mask)
            return state, gradient

        return jax.lax.scan(one, link.init(PARAMS), (steps, masks))

    return jax.jit(jax.vmap(run))


def poisoned_steps(name: str) -> tuple[float, int]:
    """How far runs with one bad step are from runs in which the task was masked.

    Each task in turn has a loss, or an entry of its gradient, that is not finite.

    Args:
        name: Of a link.

    Returns:
        The largest relative distance of all later gradients and of the state, and the
        number of runs.
    """
    runs, masks = [], []
    clean = jnp.ones((STEPS.losses.shape[0], len(NAMES)), bool)
    for task in range(len(NAMES)):
        mask = clean.at[1, task].set(False)
        runs.append(STEPS)
        masks.append(mask)
        for bad in POISONS:
            runs.append(STEPS._replace(losses=STEPS.losses.at[1, task].set(bad)))
            runs.append(
                STEPS._replace(jacobians=STEPS.jacobians.at[1, task, 3].set(bad))
            )
            masks += [clean, clean]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    found = jax.tree.map(np.asarray, _stacked_run(name)(batch, jnp.stack(masks)))
    per_task = 1 + 2 * len(POISONS)
    worst = 0.0
    for number in range(len(runs)):
        masked = number - number % per_task
        pair = [jax.tree.map(lambda x, i=i: x[i], found) for i in (number, masked)]
        worst = max(worst, deviation(*pair))
    return worst, len(runs) - len(NAMES)


def long_run(name: str, num_steps: int) -> float:
    """Trains on noise for many steps.

    Args:
        name: Of a link.
        num_steps: How many.

    Returns:
        The largest absolute value in the state but counters; infinite if one is not
        finite, or a counter is negative.
    """
    link = LINKS[name](NAMES)

    @jax.jit
    def run(key: jax.Array) -> Any:
        def one(state: Any, number: jax.Array) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            step = toys.Steps(
                jax.random.uniform(keys[0], (4,), minval=0.1, maxval=3.0),
                jax.random.uniform(keys[1], (4,), minval=0.05, maxval=0.95),
                jax.random.normal(keys[2], (4, 16)),
            )
            _, state = toys.update(link, state, step, NAMES)
            return state, None

        state, _ = jax.lax.scan(one, link.init(PARAMS), jnp.arange(num_steps))
        return state

    state = run(jax.random.key(7))
    largest = 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        values = np.asarray(leaf, np.float64)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            largest = np.inf if (values < 0).any() else largest
        elif not jax.tree_util.keystr(path).endswith(("lowest", "highest")):
            size = float(np.abs(values).max(initial=0))
            largest = max(largest, size) if np.isfinite(values).all() else np.inf
    return largest


def checkpointed(name: str) -> bool:
    """Whether a run goes on bit for bit from a state that was saved and restored.

    Args:
        name: Of a link.

    Returns:
        True if the state, and the parameters after another step, have the same bits,
        saved by flax and by Orbax.
    """
    tx = optax.chain(LINKS[name](NAMES), optax.adam(0.1))
    if name in NOT_SPREAD:
        model: Any = PARAMS
        step = jax.jit(lambda params, state, x: _stacked_step(tx, params, state))
    else:
        model, step = MODEL, jax.jit(step_of(tx))
    middle = step(model, tx.init(model), X)
    fresh, after = (model, tx.init(model)), step(*middle, X)
    with tempfile.TemporaryDirectory() as folder:
        restored = [
            round_trip(middle, fresh, Path(folder))
            for round_trip in (saving.by_flax, saving.by_orbax)
        ]
    pairs = [(each, middle) for each in restored]
    pairs += [(step(*each, X), after) for each in restored]
    return all(
        np.array_equal(ours, theirs, equal_nan=True)
        for pair in pairs
        for ours, theirs in zip(*map(jax.tree.leaves, pair), strict=True)
    )


def _stacked_step(tx: Any, params: Any, state: Any) -> Any:
    one = jax.tree.map(lambda x: x[0], STEPS)
    update, state = toys.update(tx, state, one, NAMES)
    return optax.apply_updates(params, update), state
