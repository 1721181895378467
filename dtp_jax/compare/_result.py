"""What a comparison has found."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ._chances import holm, win_rate
from ._plan import EQUAL, SINGLE
from ._ranks import improvement, ranks
from ._settings import Setting
from ._student import Interval, p_value, t_interval
from ._tries import Rule


class Row(NamedTuple):
    """What a method has done: S seeds, measured E times, T tasks."""

    settings: tuple[Setting, ...]  # that were tried
    scores: np.ndarray  # [tries], on validation data by the rule
    chosen: int  # the place of the best one
    kpis: np.ndarray  # [S, E, T], on test data
    weights: np.ndarray  # [S, E, T], means between measurements; NaN for a combiner
    tries_in_time: int  # how many there are in the time of equal weights
    kpis_in_time: np.ndarray  # [S, T], at the end, of the best of those
    round_seconds: float  # of a network in a round, many at once; NaN if unknown

    @property
    def last(self) -> np.ndarray:
        """KPIs at the end, ``[S, T]``; a network that diverged has 0."""
        return np.nan_to_num(np.asarray(self.kpis, float)[:, -1], nan=0.0)

    @property
    def num_diverged(self) -> int:
        """Of how many seeds a KPI was no number at the end."""
        return int(np.isnan(self.kpis[:, -1]).any(axis=-1).sum())

    @property
    def setting(self) -> Setting:
        """The setting that was chosen."""
        return self.settings[self.chosen]


@dataclasses.dataclass(frozen=True)
class Results:
    """Methods side by side, as numbers.

    Attributes:
        names: Of the tasks.
        rule: By which settings were chosen, on validation data.
        num_steps: Of training.
        rates: That were tried.
        tuning_seeds: How many seeds each try was judged by.
        confidence: Of the intervals.
        target: Share of what equal weights reach; see `time_to_target`.
        rows: By method, "equal weights" and "fixed weights" first.
        single: ``[S, E, T]``, test KPIs of networks of single tasks.
        costs: By method and "plain": "seconds" and "bytes" of a step, "time" and
            "memory" relative to plain, one network at a time.
        chunk_size: How many networks trained at a time.
        versions: What roundings depend on.
        notes: What a reader must know.
    """

    names: tuple[str, ...]
    rule: Rule
    num_steps: int
    rates: tuple[float, ...]
    tuning_seeds: int
    confidence: float
    target: float
    rows: Mapping[str, Row]
    single: np.ndarray
    costs: Mapping[str, Mapping[str, float]]
    chunk_size: int
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def num_seeds(self) -> int:
        """S, those that are reported."""
        return len(self.single)

    @property
    def alone(self) -> np.ndarray:
        """KPIs ``[S, T]`` of networks of single tasks at the end."""
        return np.nan_to_num(np.asarray(self.single, float)[:, -1], nan=0.0)

    def values(self, *, in_time: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """What each method has, seed by seed.

        Args:
            in_time: Whether methods had as many tries as fit into the time that equal
                weights take for theirs, rather than as many as these.

        Returns:
            For "average", "worst", "improvement" and "rank", and for each method,
            ``[S]``. A rank is the mean over the tasks of the rank among the methods,
            1 for the best, ties sharing their mean.
        """
        kpis = {
            row: np.nan_to_num(np.asarray(each.kpis_in_time, float), nan=0.0)
            if in_time
            else each.last
            for row, each in self.rows.items()
        }
        of_rank = ranks(np.stack(list(kpis.values()))).mean(axis=-1)
        return {
            "average": {row: each.mean(axis=-1) for row, each in kpis.items()},
            "worst": {row: each.min(axis=-1) for row, each in kpis.items()},
            "improvement": {
                row: improvement(each, self.alone) for row, each in kpis.items()
            },
            "rank": dict(zip(kpis, of_rank, strict=True)),
        }

    def by_rule(self, *, in_time: bool = False) -> dict[str, np.ndarray]:
        """What settings were chosen by, on test data: the larger the better, ``[S]``.

        Args:
            in_time: As for `values`.

        Returns:
            By method.
        """
        found = self.values(in_time=in_time)[self.rule]
        sign = -1.0 if self.rule == "rank" else 1.0
        return {row: sign * each for row, each in found.items()}

    def in_order(self, *, in_time: bool = False) -> list[str]:
        """The methods, the best by the rule first.

        Args:
            in_time: As for `values`.

        Returns:
            Their names.
        """
        found = self.by_rule(in_time=in_time)
        means = {row: float(each.mean()) for row, each in found.items()}
        return sorted(means, key=lambda row: -np.nan_to_num(means[row], nan=-9e9))

    def interval(self, values: np.ndarray) -> Interval:
        """Student's interval over the seeds, at the confidence of the comparison.

        Args:
            values: ``[S, ...]``.

        Returns:
            Arrays ``[...]``.
        """
        return t_interval(values, self.confidence)

    def verdicts(
        self,
        values: Mapping[str, np.ndarray],
        against: str = EQUAL,
    ) -> dict[str, str]:
        """Which methods differ from another one by more than noise.

        The t-test of the differences seed by seed, with Holm's correction for all the
        methods that are tested: with the probability `confidence` no method is called
        different that is not.

        Args:
            values: By method, ``[S]``, the larger the better.
            against: The method to compare with.

        Returns:
            For the other methods "better", "worse" or "noise".
        """
        others = [row for row in values if row != against]
        differences = [values[row] - values[against] for row in others]
        known = [np.nan_to_num(each, nan=0.0) for each in differences]
        found = holm([p_value(each) for each in known], 1 - self.confidence)
        words = {True: "better", False: "worse"}
        return {
            row: words[bool(each.mean() > 0)] if differs else "noise"
            for row, each, differs in zip(others, known, found, strict=True)
        }

    def beats_equal(self, row: str) -> Interval:
        """The probability of beating equal weights with the same seed, by the rule.

        Args:
            row: A method.

        Returns:
            The share of the seeds, ties counting half, with Wilson's interval.
        """
        found = self.by_rule()
        return win_rate(found[row], found[EQUAL], self.confidence)

    def best(self) -> tuple[str, list[str]]:
        """The method ahead by the rule, and those that noise may have put behind it.

        Returns:
            A name, and the names of methods that the t-tests do not tell from it.
        """
        ahead = self.in_order()[0]
        verdicts = self.verdicts(self.by_rule(), ahead)
        return ahead, [row for row, word in verdicts.items() if word == "noise"]

    def time_to_target(self, row: str) -> float:
        """How long a method takes to most of what equal weights have at the end.

        Args:
            row: A method, or "single tasks", whose T networks train one after another.

        Returns:
            In units of a whole plain training; the median over the seeds of when the
            average KPI on test data first reaches `target` times the mean of equal
            weights at the end. Infinite if half of the seeds never do.
        """
        level = self.target * self.rows[EQUAL].last.mean()
        if row == SINGLE:
            curve, cost = self.single, float(len(self.names))
        else:
            curve, cost = self.rows[row].kpis, self.costs[row]["time"]
        reached = np.nan_to_num(np.asarray(curve, float).mean(axis=-1)) >= level
        first = (reached.argmax(axis=1) + 1) / reached.shape[1]
        return cost * float(np.median(np.where(reached.any(axis=1), first, np.inf)))
