"""Killed and started again, a comparison ends with the same bits."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import dynamic_task_prioritization
from dtp_jax.compare import Comparison
from dtp_jax.compare._arrays import flat, raw, unflat
from dtp_jax.compare._checks import checked_data, make_programs
from dtp_jax.compare._methods import as_methods
from dtp_jax.compare._plan import check_stored
from dtp_jax.compare._settings import of_one
from dtp_jax.compare._store import Store
from dtp_jax.compare._train import _Chunk
from tests.compare import tiny
from tests.compare.test_compare import same_numbers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed() -> Comparison:
    return tiny.run()


class _StopError(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 23])
def test_an_exception_costs_nothing_but_time(
    undisturbed: Comparison,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop() -> None:
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", Store.write)
        tiny.kill_at(count, stop)
        with pytest.raises(_StopError):
            tiny.run(tmp_path)
    unfinished = list((tmp_path / "runs").rglob("*.part.npz"))
    assert unfinished
    same_numbers(undisturbed, tiny.run(tmp_path))
    assert not list((tmp_path / "runs").rglob("*.part.npz"))


def test_a_kill_costs_nothing_but_time(undisturbed: Comparison, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.compare.tiny", str(tmp_path), "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "runs" / "half.part").exists()
    same_numbers(undisturbed, tiny.run(tmp_path))


def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny.run(tmp_path)

    def trained(*args: Any) -> Any:
        raise AssertionError("everything was there")

    monkeypatch.setattr("dtp_jax.compare._train._Chunk.advance", trained)
    again = tiny.run(tmp_path, chunk_size=7)
    same_numbers(first, again)
    # The size of the first call counts, since another one rounds differently.
    assert again.chunk_size == 3
    assert again.costs == first.costs


def test_another_comparison_is_not_mixed_in(tmp_path: Path) -> None:
    tiny.run(tmp_path)
    with pytest.raises(ValueError, match="differs in rates, single_rates, the"):
        tiny.run(tmp_path, rates=(0.03, 0.2))


def test_a_method_may_be_added_and_left_out(
    undisturbed: Comparison, tmp_path: Path
) -> None:
    tiny.run(tmp_path)
    both = tiny.run(tmp_path, methods=tiny.METHODS | {"same": optax.identity()})
    assert set(both.rows) == {*undisturbed.rows, "same"}
    for name, row in undisturbed.rows.items():
        np.testing.assert_array_equal(row.kpis, both.rows[name].kpis)
    assert both.costs["same"]["time"] > 0
    same_numbers(undisturbed, tiny.run(tmp_path))


def test_a_changed_method_is_noticed() -> None:
    plan = {"rates": [1.0], "methods": {"a": {"program": "x"}, "b": {"program": "y"}}}
    now = {"rates": [1.0], "methods": {"a": {"program": "z"}, "c": {"program": "w"}}}
    with pytest.raises(ValueError, match="differs in the method 'a'"):
        _store_check(plan, now)
    _store_check(plan, now | {"methods": {"c": {"program": "w"}}})


def _store_check(stored: Any, now: Any) -> None:
    check_stored(json.loads(json.dumps(stored)), now)


def test_the_fingerprint_is_of_the_program() -> None:
    def hashed(problem: Any, gamma: float) -> str:
        link = dynamic_task_prioritization(3, gamma=gamma)
        data = checked_data(problem)
        setting = of_one({"rate": 0.1, "numbers": {}})
        methods = as_methods({"a": link}, problem)
        return make_programs(problem, methods, {"a": setting}, data, 3)[1]["a"]

    again = tiny.changed(init=lambda key: tiny.init(key))
    assert hashed(tiny.PROBLEM, 2.0) == hashed(again, 2.0)
    assert hashed(tiny.PROBLEM, 2.0) != hashed(tiny.PROBLEM, 1.0)


def test_arrays_of_any_kind_come_back(tmp_path: Path) -> None:
    tree = {
        "key": jax.random.split(jax.random.key(3), 2),
        "half": jnp.arange(3, dtype=jnp.bfloat16) / 7,
        "count": jnp.int32(5),
        "none": jnp.zeros((2, 0)),
        "flags": jnp.array([[True, False]]),
    }
    store = Store(tmp_path / "deep" / "folder")
    store.write("a/b", flat(tree))
    stored = store.read("a/b")
    assert stored is not None
    found = unflat(stored, tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(raw(old), raw(new))
    store.forget("a/b")
    assert store.read("a/b") is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a", {"x": np.ones(2)})

    class Broken:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise _StopError

    broken: Any = {"x": Broken()}
    with pytest.raises(_StopError):
        store.write("a", broken)
    kept = store.read("a")
    assert kept is not None
    np.testing.assert_array_equal(kept["x"], np.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_threads_change_no_number(undisturbed: Comparison) -> None:
    for threads in (1, 3):
        same_numbers(undisturbed, tiny.run(threads=threads))


def test_threads_train_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds meet, which one after the other would wait for ever."""
    meeting = threading.Barrier(2, timeout=60)
    advance = _Chunk.advance
    met = []

    def advance_together(chunk: _Chunk) -> None:
        if not met and threading.current_thread() is not threading.main_thread():
            meeting.wait()
            met.append(chunk.row)
        advance(chunk)

    monkeypatch.setattr(_Chunk, "advance", advance_together)
    tiny.run(threads=2)
    assert met


def test_settings_of_the_calling_thread_hold_in_all() -> None:
    with jax.enable_x64(True):
        same_numbers(tiny.run(threads=1), tiny.run(threads=2))
