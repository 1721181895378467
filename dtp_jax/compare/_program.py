"""The program that trains: a round of steps, of one network or of many at once."""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax._core.layout import TaskLayout
from dtp_jax.gradients import task_gradients

from ._problem import Method, Problem

# A setting is what may differ between networks of one program: {"rate": number,
# "numbers": {name: number}}, where the number of fixed weights is a vector.
Setting = dict[str, Any]


class Log(NamedTuple):
    """What came out of a round of one network."""

    validation: Any  # [T], KPIs at its end
    test: Any  # [T], as well
    weights: Any  # [T], means over the steps of the round


class Data(NamedTuple):
    """What a round reads; `train` is None where batches come from a function."""

    train: Any
    validation: Any
    test: Any


class Program(NamedTuple):
    """A method made ready for training.

    Attributes:
        problem: What is trained.
        method: By what.
        second: Whether the method reads the gradients of a second batch.
        steps: The number of steps in a round.
    """

    problem: Problem
    method: Method
    second: bool
    steps: int

    def init(self, setting: Setting, seed: Any) -> Any:
        """Parameters and optimizer state of a network."""
        params = self.problem.init(_key(seed, 0))
        return params, self.init_optimizer(setting, params)

    def init_optimizer(self, setting: Setting, params: Any) -> Any:
        """The optimizer state of a network."""
        return self.optimizer(setting).init(params)

    def optimizer(self, setting: Setting) -> Any:
        """The chain of the link and of the problem's optimizer."""
        link = self.method.make(self.problem.tasks, **setting["numbers"])
        return optax.chain(link, self.problem.optimizer(setting["rate"]))

    def round(
        self, carry: Any, setting: Setting, seed: Any, start: Any, data: Data
    ) -> tuple[Any, Log]:
        """Some steps from step `start` on, and a measurement."""
        carry, weights = self.train(carry, setting, seed, start, data, self.steps)
        kpis = [kpis_of(self.problem, carry[0], split) for split in data[1:]]
        return carry, Log(*kpis, weights)

    def train(
        self,
        carry: Any,
        setting: Setting,
        seed: Any,
        start: Any,
        data: Data,
        num_steps: int,
    ) -> tuple[Any, Any]:
        """Some steps, and the means of the task weights, NaN where there are none."""
        tx, layout = self.optimizer(setting), self.problem.layout

        def step(carry: Any, number: jax.Array) -> tuple[Any, Any]:
            params, opt_state = carry
            batch = _batch(self.problem, data, _key(seed, 1), number)
            gradients, kpis = self.gradients(params, batch)
            supplied = {"key": jax.random.fold_in(_key(seed, 2), number)}
            if kpis is not None:
                supplied["kpis"] = kpis
            if self.second:
                other = _batch(self.problem, data, _key(seed, 3), number)
                supplied["second_task_gradients"] = self.gradients(params, other)[0]
            updates, opt_state = tx.update(gradients, opt_state, params, **supplied)
            params = optax.apply_updates(params, updates)
            weights = optax.tree.get(opt_state, "task_weights")
            if weights is None:
                weights = layout.full(jnp.nan)
            return (params, opt_state), layout.vector("weights", weights)

        numbers = start + jnp.arange(num_steps, dtype=jnp.int32)
        carry, weights = jax.lax.scan(step, carry, numbers)
        return carry, weights.mean(axis=0)

    def gradients(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """The task gradients, and the KPIs or None."""
        both = functools.partial(losses_and_kpis, self.problem)
        of = task_gradients(both, has_aux=True, shared=self.problem.shared)
        return of(params, batch)


def train_plain(
    problem: Problem,
    carry: Any,
    setting: Setting,
    seed: Any,
    start: Any,
    data: Data,
    num_steps: int,
) -> Any:
    """Training on the sum of the losses without anything of this library.

    Args:
        problem: What is trained.
        carry: Parameters and the state of the problem's optimizer.
        setting: Of which only the rate counts.
        seed: Of the batches.
        start: The number of the first step.
        data: What to train on.
        num_steps: How many steps.

    Returns:
        Parameters and state after them.
    """
    tx = problem.optimizer(setting["rate"])

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        batch = _batch(problem, data, _key(seed, 1), number)

        def total(params: Any) -> jax.Array:
            losses = losses_and_kpis(problem, params, batch)[0]
            return problem.layout.vector("losses", losses).sum()

        updates, opt_state = tx.update(jax.grad(total)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    numbers = start + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(step, carry, numbers)[0]


def losses_and_kpis(problem: Problem, params: Any, batch: Any) -> tuple[Any, Any]:
    """The losses of a batch, and its KPIs or None.

    Args:
        problem: Whose.
        params: Of the network.
        batch: To be judged.

    Returns:
        A pair.
    """
    found = problem.losses(params, batch)
    pair = isinstance(found, tuple) and len(found) == 2
    if pair and jax.tree.structure(found) != problem.layout.treedef:
        return found
    return found, None


def kpis_of(problem: Problem, params: Any, data: Any) -> jax.Array:
    """The KPIs by which methods are compared.

    Args:
        problem: Whose.
        params: Of the network.
        data: Of the validation or of the test.

    Returns:
        ``[T]``.

    Raises:
        ValueError: If there are none, or they do not match the tasks.
    """
    if problem.evaluate is not None:
        kpis = problem.evaluate(params, data)
    else:
        kpis = losses_and_kpis(problem, params, data)[1]
    if kpis is None:
        raise ValueError(
            "There is nothing to compare methods by: losses must return a pair of "
            "losses and KPIs, or the problem needs evaluate=."
        )
    return problem.layout.vector("kpis", kpis)


def data_of(problem: Problem) -> Data:
    """What a round reads, as arrays on the device.

    Args:
        problem: Whose.

    Returns:
        The data.
    """
    train = None if callable(problem.train) else problem.train
    return jax.tree.map(jnp.asarray, Data(train, problem.validation, problem.test))


def fingerprint(program: Program, setting: Setting, data: Data) -> str:
    """What the program of a method is, in a few letters.

    Args:
        program: To be traced.
        setting: Of the right shapes.
        data: What it reads.

    Returns:
        A hash of the traced program and of the arrays that it holds, without names and
        places in memory.
    """
    seed = np.int32(0)
    carry = jax.eval_shape(program.init, setting, seed)
    traced: Any = jax.make_jaxpr(program.round)(carry, setting, seed, seed, data)
    text = re.sub(r"0x[0-9a-f]+", "", str(traced))
    found = hashlib.sha256(text.encode())
    for constant in traced.consts:
        found.update(np.asarray(raw(constant)).tobytes())
    return found.hexdigest()[:16]


def raw(leaf: Any) -> Any:
    """The numbers of an array, also of one of typed PRNG keys.

    Args:
        leaf: An array.

    Returns:
        An array of numbers.
    """
    typed = jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if typed else leaf


def many_at_once(program: Program) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init` and `round` of a program for N networks in one program.

    Args:
        program: Of one network.

    Returns:
        Two functions; settings, seeds and carries have a first axis of N.
    """
    of_round = jax.vmap(program.round, in_axes=(0, 0, 0, None, None))
    init_params = jax.jit(jax.vmap(_params_of(program.problem.init)))

    def init(settings: Any, seeds: Any) -> Any:
        params = init_params(seeds)
        # An optimizer state is zeros and counters, for which a program of its own would
        # take longer to compile than to run.
        return params, jax.vmap(program.init_optimizer)(settings, params)

    return init, jax.jit(of_round)


def one_by_one(program: Program) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The same for a problem that cannot be mapped: a loop outside of the program.

    Args:
        program: Of one network.

    Returns:
        Two functions like those of `many_at_once`.
    """
    init_params, round_one = (
        jax.jit(_params_of(program.problem.init)),
        jax.jit(program.round),
    )

    def pick(tree: Any, place: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[place], tree)

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def init(settings: Any, seeds: Any) -> Any:
        found = []
        for place, seed in enumerate(seeds):
            params, setting = init_params(seed), pick(settings, place)
            found.append((params, program.init_optimizer(setting, params)))
        return stack(found)

    def round_(carry: Any, settings: Any, seeds: Any, start: Any, data: Data) -> Any:
        places = range(len(seeds))
        found = [
            round_one(pick(carry, i), pick(settings, i), seeds[i], start, data)
            for i in places
        ]
        return stack(found)

    return init, round_


def stacked(settings: Sequence[Setting]) -> Setting:
    """Settings of several networks in one.

    Args:
        settings: Of one kind. A list of numbers is one vector.

    Returns:
        A setting of float32 arrays with a first axis of networks.
    """

    def is_number(node: Any) -> bool:
        return isinstance(node, (list, float))

    return jax.tree.map(
        lambda *numbers: jnp.asarray(np.array(numbers, np.float32)),
        *settings,
        is_leaf=is_number,
    )


def of_one(setting: Setting) -> Setting:
    """A setting as arrays, as a program of one network takes it.

    Args:
        setting: Of numbers.

    Returns:
        A setting of float32 arrays.
    """
    return jax.tree.map(lambda leaf: leaf[0], stacked([setting]))


def check_kpis(
    kpis: np.ndarray, layout: TaskLayout, where: str, *, known: bool = False
) -> None:
    """Checks that KPIs lie in [0, 1].

    Args:
        kpis: ``[..., T]``.
        layout: Of the tasks.
        where: What they are of, for the message.
        known: Whether they must be numbers. Otherwise NaN passes.

    Raises:
        ValueError: If one does not, naming its task.
    """
    rounding = 1e-5
    for name, column in zip(layout.names, np.moveaxis(kpis, -1, 0), strict=True):
        outside = (column < -rounding) | (column > 1 + rounding)
        if known:
            outside |= ~np.isfinite(column)
        if outside.any():
            value = np.extract(outside, column)[0]
            raise ValueError(
                f"The KPI of {name} {where} is {value:.6g}, which is not in [0, 1]: "
                "higher must be better, 0 the worst and 1 the best. Divide percentages "
                "by 100; dtp_jax.metrics makes KPIs of errors (bounded_error, exp_loss,"
                " relative)."
            )


@functools.lru_cache(maxsize=16)
def _params_of(init: Callable[[jax.Array], Any]) -> Callable[[Any], Any]:
    """From a seed to parameters: one function, so that methods share its program."""
    return lambda seed: init(_key(seed, 0))


def _key(seed: Any, purpose: int) -> jax.Array:
    """A key: 0 for parameters, 1 for batches, 2 for methods, 3 for second batches."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def _batch(problem: Problem, data: Data, key: jax.Array, number: jax.Array) -> Any:
    key = jax.random.fold_in(key, number)
    if callable(problem.train):
        return problem.train(key, number)
    size = len(jax.tree.leaves(data.train)[0])
    rows = jax.random.randint(key, (problem.batch_size,), 0, size)
    return jax.tree.map(lambda column: column[rows], data.train)


def first_batch(problem: Problem, data: Data, seed: int = 0) -> Any:
    """The batch of the first step.

    Args:
        problem: Whose.
        data: What is drawn from.
        seed: Of the draw.

    Returns:
        A batch.
    """
    return _batch(problem, data, _key(seed, 1), jnp.int32(0))
