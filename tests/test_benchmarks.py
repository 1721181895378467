"""The benchmarks run, in their shortest form."""

import pytest

from benchmarks import dtp_step, features, gramian, solvers
from benchmarks._measure import table


def test_dtp_step_prints_its_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    dtp_step.main(["--rounds", "1", "--models", "small", "--tasks", "2"])
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[-2].strip("|").split("|")]
    assert float(cells[-2]) == pytest.approx(1, abs=0.01)  # FLOPs
    assert float(cells[-1]) == pytest.approx(1, abs=0.05)  # temporary memory


def test_every_way_of_the_gramian_is_measured() -> None:
    ways = [row[0] for row in gramian.rows_of(2, rounds=1)]
    assert ways == ["plain", "unrolled", "vmap", "map", "columns"]


def test_features_and_solvers_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row[1] for row in features.rows_of(2, rounds=1)] == ["2", "2", "2"]
    solvers.main(["--rounds", "1", "--draws", "1", "--tasks", "3"])
    assert "independent" in capsys.readouterr().out


def test_tables_are_aligned() -> None:
    lines = table("t", ["name", "x"], [["long name", "1"], ["b", "22"]]).splitlines()
    assert {len(line) for line in lines[2:]} == {len("| long name | 22 |")}
