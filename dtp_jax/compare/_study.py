"""The phases of a comparison: single tasks, tries, and what is reported."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._plan import EQUAL, SINGLE, Work, affordable
from ._program import Log
from ._result import Row
from ._settings import Setting
from ._train import Trainer
from ._tries import Rule, scores


class Tuned(NamedTuple):
    """The tries of a row, and the one that is to be reported."""

    settings: list[Setting]
    scores: np.ndarray  # [tries]
    chosen: int


class Study:
    """The phases of a comparison."""

    def __init__(
        self,
        trainer: Trainer,
        rule: Rule,
        tuning_seeds: Sequence[int],
        seeds: Sequence[int],
    ) -> None:
        self.trainer: Trainer = trainer
        self.rule: Rule = rule
        self.tuning_seeds, self.seeds = tuning_seeds, seeds

    def single_tasks(self, alone: list[list[Setting]]) -> tuple[np.ndarray, np.ndarray]:
        """Test KPIs ``[S, rounds, T]`` of networks of one task, validation ``[T]``."""
        num_tasks, num_rates = len(alone), len(alone[0])
        every = [setting for settings in alone for setting in settings]
        work = Work.each(every, self.tuning_seeds)
        log = self.trainer.train("tuning", {SINGLE: work})[SINGLE]
        last = _last(log).reshape(num_tasks, num_rates, -1, num_tasks).mean(axis=2)
        own = np.stack([last[task, :, task] for task in range(num_tasks)])
        best = own.argmax(axis=1)
        chosen = [alone[task][place] for task, place in enumerate(best)]
        report = Work.each(chosen, self.seeds)
        kpis = self.trainer.train("report", {SINGLE: report})[SINGLE].test
        kpis = kpis.reshape(num_tasks, len(self.seeds), -1, num_tasks)
        test = [kpis[task, :, :, task] for task in range(num_tasks)]
        return np.stack(test, axis=-1), own.max(axis=1)

    def tuned(
        self, tries: Mapping[str, list[Setting]], reference: np.ndarray
    ) -> dict[str, Tuned]:
        """Judges the tries of several rows."""
        work = {row: Work.each(each, self.tuning_seeds) for row, each in tries.items()}
        logs = self.trainer.train("tuning", work)
        found = {}
        for row, each in tries.items():
            kpis = _last(logs[row])
            kpis = kpis.reshape(len(each), len(self.tuning_seeds), -1)
            of_tries = scores(kpis, self.rule, reference)
            found[row] = Tuned(each, of_tries, int(np.argmax(of_tries)))
        return found

    def reported(
        self, tuned: Mapping[str, Tuned], costs: Mapping[str, Any]
    ) -> dict[str, Row]:
        """Trains the chosen try of every row with the seeds that are reported."""
        work = {
            row: Work.each([each.settings[each.chosen]], self.seeds)
            for row, each in tuned.items()
        }
        logs = self.trainer.train("report", work)
        # In the time of equal weights dear methods have fewer tries, and may have to do
        # with another one.
        equal = costs[EQUAL]["time"]
        kept = {
            row: affordable(costs[row]["time"] / equal, len(each.settings))
            for row, each in tuned.items()
        }
        second = {
            row: max(kept[row], key=lambda place, each=each: each.scores[place])
            for row, each in tuned.items()
        }
        others = {
            row: Work.each([each.settings[second[row]]], self.seeds)
            for row, each in tuned.items()
            if second[row] != each.chosen
        }
        more = sum(map(self.trainer.num_rounds_of, others.values()))
        self.trainer.progress.extend(more)
        again = self.trainer.train("report-in-time", others)
        rows = {}
        for row, each in tuned.items():
            log = logs[row]
            in_time = again.get(row, log)
            seconds = self.trainer.seconds("report", row, work[row])
            rows[row] = Row(
                settings=tuple(each.settings),
                scores=each.scores,
                chosen=each.chosen,
                kpis=log.test,
                weights=log.weights,
                tries_in_time=len(kept[row]),
                kpis_in_time=in_time.test[:, -1],
                round_seconds=seconds,
            )
        return rows


def _last(log: Log) -> np.ndarray:
    """KPIs ``[N, T]`` on validation data at the end; a network that diverged has 0."""
    return np.nan_to_num(np.asarray(log.validation, float)[:, -1], nan=0.0)
