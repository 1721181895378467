"""The benchmarks run, in their shortest form."""

import math
from typing import Any

import jax
import optax
import pytest

from benchmarks import device, dtp_step, features, gramian, methods, solvers
from benchmarks._measure import flops_of, table


def test_dtp_step_prints_its_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    dtp_step.main(["--rounds", "1", "--models", "small", "--tasks", "2"])
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[-2].strip("|").split("|")]
    assert float(cells[-2]) == pytest.approx(1, abs=0.01)  # FLOPs
    assert float(cells[-1]) == pytest.approx(1, abs=0.05)  # temporary memory


def test_every_way_of_the_gramian_is_measured() -> None:
    ways = [row[0] for row in gramian.rows_of(2, rounds=1)]
    assert ways == ["plain", "unrolled", "switch", "vmap", "chunks", "map", "columns"]


def test_precision_of_the_model_is_seen_in_the_gramian() -> None:
    rows = gramian.precision_rows(3, (8, 16, 16), 32)
    exact, activations, parameters = ([float(x) for x in row[2:]] for row in rows)
    if jax.default_backend() == "cpu":
        assert max(exact) < 1e-5
    # Eight binary digits of each number, of which some dozens are summed.
    assert 1e-5 < activations[0] < 0.1
    assert 1e-5 < parameters[0] < 0.1


def test_features_and_solvers_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row[1] for row in features.rows_of(2, rounds=1)] == ["2", "2", "2"]
    solvers.main(["--rounds", "1", "--draws", "1", "--tasks", "3"])
    assert "independent" in capsys.readouterr().out


def test_the_tables_of_a_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_rows() -> Any:
        raise ValueError("of no account")

    def parts(short: bool, workers: int) -> Any:
        every = all_parts(short, workers)
        # One of the tables fails, and the next is printed.
        return {"Broken": (no_rows, []), "Ceilings": every["Ceilings"]}

    all_parts = device.parts
    monkeypatch.setattr(device, "parts", parts)
    device.main(["--short"])
    printed = capsys.readouterr().out
    assert "Broken: failed, ValueError('of no account')" in printed
    assert "TFLOP/s" in printed


@pytest.mark.slow
def test_every_table_of_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    device.main(["--short", "--seconds", "600"])
    printed = capsys.readouterr()
    assert "failed" not in printed.out
    assert "left out" not in printed.out
    assert not printed.err


def test_programs_that_count_no_flops() -> None:
    class Silent:
        def cost_analysis(self) -> None:
            return None

    assert math.isnan(flops_of(Silent()))


def test_tables_are_aligned() -> None:
    lines = table("t", ["name", "x"], [["long name", "1"], ["b", "22"]]).splitlines()
    assert {len(line) for line in lines[2:]} == {len("| long name | 22 |")}


@pytest.mark.parametrize("name", methods.LOSS_DRIVEN)
def test_loss_driven_methods_cost_the_flops_of_a_weighted_sum(name: str) -> None:
    params, batch = methods.setting(8, (64, 128, 128))
    plain = methods.plain_step(8, batch)
    expected = methods.flops(plain, params, optax.sgd(1e-2).init(params))
    step, tx = methods.method_step(methods.METHODS[name], 8, batch)
    found = methods.flops(step, params, tx.init(params))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_every_method_has_a_step() -> None:
    params, batch = methods.setting(4, (8, 8, 8))
    for name in methods.METHODS:
        step, tx = methods.method_step(methods.METHODS[name], 4, batch)
        assert jax.eval_shape(step, params, tx.init(params))
