"""Trains networks in chunks, in rounds that the methods take in turns."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from ._arrays import flat, unflat
from ._data import Data
from ._judge import check_kpis
from ._many import many_at_once, one_by_one
from ._plan import Work
from ._program import Log, Program
from ._progress import Progress
from ._settings import stacked
from ._store import Store, file_name

# What operations of a program are called that on the CPU hold a thread of XLA's while
# they wait for its other threads. Two programs that do so at the same time may wait for
# each other, on two cores for ever (seen with jaxlib 0.10.2).
_HOLD_A_THREAD = ("custom_call @lapack_", "custom_call @blas_", "stablehlo.fft")


class Trainer:
    """Trains what it is told to, unless its store has it already.

    Args:
        programs: By row of the table. Rows may share one.
        data: What the programs read.
        store: Of results, and of networks that are under way.
        chunk_size: How many networks train at a time.
        num_rounds: In which they train.
        mapped: Whether they do so in one program.
        threads: How many chunks train side by side.
        save_every: Seconds from one save of a network under way to the next.
        progress: Counts rounds of networks.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        data: Data,
        store: Store,
        *,
        chunk_size: int,
        num_rounds: int,
        mapped: bool,
        threads: int,
        save_every: float,
        progress: Progress,
    ) -> None:
        """Notes all that; see the class."""
        self.programs, self.data, self.store = programs, data, store
        self.chunk_size, self.num_rounds = chunk_size, num_rounds
        self.mapped, self.save_every, self.progress = mapped, save_every, progress
        # A problem that cannot be mapped may call what wants to be alone.
        self.threads = threads if mapped else 1
        self.functions: dict[int, Any] = {}
        self.compiled: dict[int, Any] = {}
        self.alone: set[int] = set()  # Programs of which only one may run at a time.

    def functions_of(self, row: str) -> Any:
        """`init` and `round` of a row, the same for rows that share a program."""
        program = self.programs[row]
        if id(program) not in self.functions:
            make = many_at_once if self.mapped else one_by_one
            self.functions[id(program)] = make(program)
        return self.functions[id(program)]

    def round_of(self, row: str) -> Any:
        """`round` of a row, compiled where there is a program of many networks."""
        found = self.compiled.get(id(self.programs[row]))
        return self.functions_of(row)[1] if found is None else found

    def side_by_side(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        alone: Callable[[Any], bool] = lambda _: False,
    ) -> Iterator[Any]:
        """Results for all items, as they come, from as many threads as there may be.

        What is cut short, by an error or by Ctrl-C, starts no further items. Items that
        are `alone` run beside others, but not beside each other.
        """
        if self.threads == 1:
            yield from map(function, items)
            return
        # Arguments of the programs would lose their halves in other threads.
        in_64_bits = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

        def as_here(item: Any) -> Any:
            with jax.enable_x64(in_64_bits):
                return function(item)

        left = {True: [], False: []}
        for item in items:
            left[alone(item)].append(item)
        running: dict[Future[Any], bool] = {}
        with ThreadPoolExecutor(self.threads) as pool:
            while running or left[True] or left[False]:
                while len(running) < self.threads:
                    # Those that are alone take longest to get through, and go first.
                    kind = bool(left[True]) and not any(running.values())
                    if not left[kind]:
                        break
                    running[pool.submit(as_here, left[kind].pop(0))] = kind
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    yield future.result()

    def train(self, phase: str, work: Mapping[str, Work]) -> dict[str, Log]:
        """Trains networks of several rows.

        Args:
            phase: Under which results are stored.
            work: By row.

        Returns:
            For each row what came out, leaves ``[N, rounds, T]``.
        """
        chunks = {row: self._chunks(phase, row, each) for row, each in work.items()}
        most = max(map(len, chunks.values()), default=0)
        # So many of each row that no thread is idle where rows are few.
        of_lap = -(-self.threads // max(1, len(chunks)))
        for lap in range(0, most, of_lap):
            laps = (each[lap : lap + of_lap] for each in chunks.values())
            self._lap([chunk for each in laps for chunk in each])
        found = {}
        for row, each in chunks.items():
            logs = [chunk.read() for chunk in each]
            whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *logs)
            count = len(work[row].seeds)
            found[row] = Log(*(leaf[:count] for leaf in whole))
        return found

    def num_rounds_of(self, work: Work) -> int:
        """How many rounds of chunks it takes."""
        return -(-len(work.seeds) // self.chunk_size) * self.num_rounds

    def seconds(self, phase: str, row: str, work: Work) -> float:
        """Seconds that a round of a network took, on the mean; NaN if nobody knows."""
        taken = [chunk.seconds() for chunk in self._chunks(phase, row, work)]
        return float(np.mean(taken)) / self.chunk_size

    def _chunks(self, phase: str, row: str, work: Work) -> list["_Chunk"]:
        count, size = len(work.seeds), self.chunk_size
        chunks = []
        for number, start in enumerate(range(0, count, size)):
            # The last chunk is filled up with copies of its last network.
            places = [min(start + place, count - 1) for place in range(size)]
            name = f"{phase}/{file_name(row)}-{number}"
            chunks.append(_Chunk(self, name, row, work, places))
        return chunks

    def _lap(self, chunks: list["_Chunk"]) -> None:
        """A chunk of every row, round by round, in an order that rotates."""
        open_ones = [chunk for chunk in chunks if not chunk.is_done()]
        self.progress.update(self.num_rounds * (len(chunks) - len(open_ones)))
        for chunk in open_ones:
            chunk.start()
        self._compile(open_ones)
        for number in range(self.num_rounds):
            first = number % max(1, len(open_ones))
            in_turn = open_ones[first:] + open_ones[:first]
            due = [chunk for chunk in in_turn if chunk.number == number]
            self.progress.update(len(open_ones) - len(due))
            for _ in self.side_by_side(_Chunk.advance, due, self._is_alone):
                self.progress.update(1)

    def _is_alone(self, chunk: "_Chunk") -> bool:
        return id(self.programs[chunk.row]) in self.alone

    def _compile(self, chunks: list["_Chunk"]) -> None:
        """Compiles the programs that are not yet.

        They are traced here: settings of JAX, such as its context managers, hold in the
        thread in which they were made.
        """
        if not self.mapped:
            return
        lowered = {}
        for chunk in chunks:
            program = id(self.programs[chunk.row])
            if program not in self.compiled and program not in lowered:
                lowered[program] = self.functions_of(chunk.row)[1].lower(*chunk.args())
                if self.threads > 1 and _holds_a_thread(lowered[program]):
                    self.alone.add(program)
        for program, compiled in self.side_by_side(
            lambda item: (item[0], item[1].compile()), lowered.items()
        ):
            self.compiled[program] = compiled


def _holds_a_thread(lowered: Any) -> bool:
    # Without the numbers of large constants, such as a set of data.
    operation = lowered.compiler_ir("stablehlo").operation
    text = operation.get_asm(large_elements_limit=8)
    return any(name in text for name in _HOLD_A_THREAD)


class _Chunk:
    """Networks of one program that train together."""

    def __init__(
        self, trainer: Trainer, name: str, row: str, work: Work, places: list[int]
    ) -> None:
        self.trainer, self.name, self.row = trainer, name, row
        settings = [work.settings[place] for place in places]
        self.settings = stacked(settings)
        self.seeds = np.array([work.seeds[place] for place in places], np.int32)
        self.number = 0
        self.logs: Log | None = None
        self.times: list[float] = []
        self.carry: Any = None
        self.saved = 0.0

    def is_done(self) -> bool:
        return self.trainer.store.read(self.name) is not None

    def read(self) -> Log:
        arrays = self.trainer.store.read(self.name)
        assert arrays is not None
        return Log(*(arrays[field] for field in Log._fields))

    def seconds(self) -> float:
        arrays = self.trainer.store.read(self.name)
        times = arrays["seconds"] if arrays is not None else np.zeros(0)
        # Without the first round, which may have to compile.
        return float(np.median(times[1:])) if len(times) > 1 else float("nan")

    def start(self) -> None:
        """Where it was left, or at the beginning."""
        init, _ = self.trainer.functions_of(self.row)
        arrays = self.trainer.store.read(f"{self.name}.part")
        self.saved = time.monotonic()
        # On the host, as between rounds: one program then does for all of them.
        self.carry = jax.device_get(init(self.settings, self.seeds))
        if arrays is None:
            return
        self.carry = unflat(arrays, self.carry)
        self.logs = Log(*(arrays[field] for field in Log._fields))
        self.number = self.logs.test.shape[1]

    def args(self) -> tuple[Any, ...]:
        """What a round of it is called with."""
        trainer = self.trainer
        start = np.int32(self.number * trainer.programs[self.row].steps)
        return self.carry, self.settings, self.seeds, start, trainer.data

    def advance(self) -> None:
        """A round, and what has to be stored after it."""
        trainer = self.trainer
        round_ = trainer.round_of(self.row)
        begun = time.perf_counter()
        carry, log = round_(*self.args())
        # Waiting chunks are kept on the host: the device holds one for each thread.
        self.carry, log = jax.device_get((carry, log))
        self.times.append(time.perf_counter() - begun)
        self.number += 1
        self._append(log)
        done = self.number == trainer.num_rounds
        if done:
            trainer.store.write(self.name, self._results())
            trainer.store.forget(f"{self.name}.part")
            self.carry = None
        elif time.monotonic() - self.saved >= trainer.save_every:
            trainer.store.write(f"{self.name}.part", flat(self.carry) | self._results())
            self.saved = time.monotonic()

    def _append(self, log: Log) -> None:
        trainer = self.trainer
        layout = trainer.programs[self.row].problem.layout
        for split in ("validation", "test"):
            where = f"on {split} data, in training by {self.row},"
            check_kpis(np.asarray(getattr(log, split)), layout, where)
        new = jax.tree.map(lambda leaf: np.asarray(leaf)[:, None], log)
        if self.logs is None:
            self.logs = new
        else:
            self.logs = jax.tree.map(
                lambda old, last: np.concatenate([old, last], axis=1), self.logs, new
            )

    def _results(self) -> dict[str, np.ndarray]:
        assert self.logs is not None
        return self.logs._asdict() | {"seconds": np.array(self.times)}
