"""How much to run."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from dtp_jax.compare import Problem
from dtp_jax.compare._tries import Rule


class Size(NamedTuple):
    """How much to run.

    Attributes:
        seeds: That are reported.
        tuning_seeds: By which tries are judged.
        tries: Of each method.
        share: Of the steps and of the data of the full run.
        measurements: On the way.
    """

    seeds: int = 10
    tuning_seeds: int = 2
    tries: int = 5
    share: float = 1.0
    measurements: int = 20

    def steps(self, full: int) -> int:
        """A multiple of ten, so that it divides well."""
        return max(10, round(full * self.share / 10) * 10)

    def count(self, full: int) -> int:
        """Of examples."""
        return max(100, round(full * self.share))

    def rates(self, low: float, high: float) -> tuple[float, ...]:
        """As many as there are tries, evenly spread on a logarithmic scale."""
        if self.tries == 1:
            return ((low * high) ** 0.5,)
        step = (high / low) ** (1 / (self.tries - 1))
        return tuple(float(f"{low * step**place:.3g}") for place in range(self.tries))


FULL = Size()
SHORT = Size(seeds=2, tuning_seeds=1, tries=2, share=0.02, measurements=2)


class Evidence(NamedTuple):
    """A problem of the page.

    Attributes:
        about: What it is, for the page.
        make: The problem of a size.
        low: The smallest rate to try.
        high: The largest rate to try.
        chunk_size: How many networks train at a time on a CPU; None for as many as fit.
        rule: By which tries are chosen.
        needs: A package that holds the data, or nothing.
        published: Of a paper's problem, its own figures by method, task by task. Such
            a problem has no part in what is said over the problems.
        methods: Those that run, for a paper's problem; None for all.
    """

    about: str
    make: Callable[[Size], Problem]
    low: float
    high: float
    chunk_size: int | None = None
    rule: Rule = "average"
    needs: str = ""
    published: Mapping[str, tuple[float, ...]] | None = None
    methods: tuple[str, ...] | None = None


def adam(num_steps: int) -> Callable[[Any], optax.GradientTransformation]:
    """Adam at a rate that falls to zero like a cosine."""

    def make(rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, num_steps))

    return make


def in_trunk(path: str) -> bool:
    """Whether parameters are those that the tasks share."""
    return path.startswith("trunk")
