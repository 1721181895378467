"""Programs of many networks at once, or of one after the other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._data import Data, key_of
from ._program import Program


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


@functools.lru_cache(maxsize=16)
def _params_of(init: Callable[[jax.Array], Any]) -> Callable[[Any], Any]:
    """From a seed to parameters: one function, so that methods share its program."""
    return lambda seed: init(key_of(seed, 0))
