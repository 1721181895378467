import jax
import numpy as np
import pytest

from examples import _digits, multi_mnist
from tests.toys import assert_near

ALONE = {"left alone", "right alone"}


def test_both_ways_to_the_gradients_agree():
    # MGDA-UB differs from MGDA in the Gramian only.
    @jax.jit
    def everything(params, batch):
        found = []
        for way in (multi_mnist.at_parameters, multi_mnist.at_features):
            gradients, kpis = way(params, batch)
            combined = gradients.combine({"left": 0.3, "right": 0.7}, np.ones(2))
            found.append(((combined, gradients.losses, kpis), gradients.gramian()))
        return found

    params = multi_mnist.init_params(jax.random.key(0))
    batch = _digits.make_pairs(_digits.split_digits()["train"], 8)
    (exact, gramian), (bound, bound_gramian) = everything(params, batch)
    assert_near(exact, bound, rtol=1e-4)
    assert not np.allclose(gramian, bound_gramian, rtol=0.1)


def test_grid_tells_rates_and_seeds_apart():
    rates, seeds = multi_mnist.grid()
    # As if the accuracies were 100 times the rate plus the seed.
    accuracies = 100 * rates + np.array(seeds)
    tasks = np.stack([accuracies - 1, accuracies + 1], axis=1)
    expected = np.add.outer(
        np.arange(multi_mnist.TUNING_SEEDS), 100 * np.array(multi_mnist.RATES)
    )
    found = multi_mnist.by_rate({"MGDA": tasks})["MGDA"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_writes_tables_and_plot(tmp_path, capsys, monkeypatch):
    # Two networks at a time in both phases: each method is compiled once.
    monkeypatch.setattr(multi_mnist, "RATES", (0.1,))
    monkeypatch.setattr(multi_mnist, "TUNING_SEEDS", 2)
    monkeypatch.setattr(multi_mnist, "ROUNDS", 2)
    monkeypatch.setattr(multi_mnist, "WIDTH", 8)
    sizes = {"train": 200, "validation": 100, "test": 100}
    monkeypatch.setattr(multi_mnist, "NUM_PAIRS", sizes)
    multi_mnist.main(["--out", str(tmp_path), "--steps", "8", "--seeds", "2"])
    written = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert written in capsys.readouterr().out
    assert "nan" not in written
    accuracies, _, tuning, _ = written.split("\n\n")
    methods = set(multi_mnist.methods_to_compare())
    assert _rows(accuracies) == {"single tasks"} | methods - ALONE
    assert _rows(tuning) == methods
    for column in (*multi_mnist.TASKS, "rate", "weight of right", "step time"):
        assert f"| {column} " in accuracies
    data = (tmp_path / "accuracies.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000


def _rows(table):
    return {line.split("|")[1].strip() for line in table.splitlines()[2:]}


@pytest.mark.parametrize("argument", ["--steps=10", "--steps=30", "--seeds=1"])
def test_rejects_what_it_cannot_report(argument, capsys):
    with pytest.raises(SystemExit):
        multi_mnist.main([argument])
    assert "multiple of 20" in capsys.readouterr().err
