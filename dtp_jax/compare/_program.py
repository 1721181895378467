"""The program that trains one network: rounds of steps."""

import functools
import hashlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax.gradients import task_gradients

from ._arrays import raw
from ._data import Data, batch_of, key_of
from ._judge import kpis_of, losses_and_kpis
from ._methods import Method
from ._problem import Problem
from ._settings import Setting


class Log(NamedTuple):
    """What came out of a round of one network."""

    validation: Any  # [T], KPIs at its end
    test: Any  # [T], as well
    weights: Any  # [T], means over the steps of the round


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
        params = self.problem.init(key_of(seed, 0))
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
        validation, test = (
            kpis_of(self.problem, carry[0], split)
            for split in (data.validation, data.test)
        )
        return carry, Log(validation, test, weights)

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
            batch = batch_of(self.problem, data, key_of(seed, 1), number)
            gradients, kpis = self.gradients(params, batch)
            supplied = {"key": jax.random.fold_in(key_of(seed, 2), number)}
            if kpis is not None:
                supplied["kpis"] = kpis
            if self.second:
                other = batch_of(self.problem, data, key_of(seed, 3), number)
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
