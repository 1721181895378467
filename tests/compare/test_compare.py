"""A comparison of few small networks: what is tuned, chosen, reported and written."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import (
    balance,
    balancers,
    combiners,
    dynamic_task_prioritization,
    task_gradients,
)
from dtp_jax.compare import Comparison, Method, compare, default_methods
from dtp_jax.compare._methods import as_methods
from dtp_jax.compare._plan import chunk_size_of
from dtp_jax.compare._tries import scores, tries_of
from tests.compare import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def result(folder: Path) -> Comparison:
    return tiny.run(folder)


def trained(rate: float, weights: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition written out: a network, KPIs on validation and test data."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    point = tiny.init(jax.random.fold_in(jax.random.key(seed), 0))
    tx = optax.sgd(rate, momentum=0.9)
    state = tx.init(point)
    for step in range(tiny.PROBLEM.num_steps):
        rows = jax.random.randint(jax.random.fold_in(key, step), (4,), 0, 50)
        batch = {"noise": tiny.PROBLEM.train["noise"][rows]}
        gradient = jax.grad(
            lambda point, batch=batch: jnp.vdot(
                jnp.asarray(weights), tiny.losses_and_kpis(point, batch)[0]
            )
        )(point)
        updates, state = tx.update(gradient, state)
        point = optax.apply_updates(point, updates)
    splits = (tiny.PROBLEM.validation, tiny.PROBLEM.test)
    validation, test = (tiny.losses_and_kpis(point, split)[1] for split in splits)
    return np.asarray(validation), np.asarray(test)


def test_equal_weights_are_what_plain_training_gives(result: Comparison) -> None:
    row = result.rows["equal weights"]
    rate = row.setting["rate"]
    for seed in range(result.num_seeds):
        _, test = trained(rate, np.ones(3), seed)
        np.testing.assert_allclose(row.kpis[seed, -1], test, rtol=1e-4)
    tuning = [
        np.mean([trained(rate, np.ones(3), 100_000 + i)[0] for i in range(2)])
        for rate in result.rates
    ]
    np.testing.assert_allclose(row.scores, tuning, rtol=1e-4)
    assert row.chosen == int(np.argmax(tuning))


def test_single_tasks_learn_nothing_else(result: Comparison) -> None:
    for task, weights in enumerate(np.eye(3)):
        validation = [
            np.mean([trained(rate, weights, 100_000 + i)[0][task] for i in range(2)])
            for rate in result.rates
        ]
        best = result.rates[int(np.argmax(validation))]
        _, test = trained(best, weights, 1)
        assert result.single[1, -1, task] == pytest.approx(test[task], rel=1e-4)


def test_budgets_are_equal_and_equal_weights_among_the_fixed(
    result: Comparison,
) -> None:
    assert {len(row.settings) for row in result.rows.values()} == {2}
    first, second = result.rows["fixed weights"].settings
    best = result.rows["equal weights"].setting
    assert first == best
    weights = second["numbers"]["weights"]
    assert np.mean(weights) == pytest.approx(1, abs=1e-5)
    assert max(weights) / min(weights) <= 100
    # So on validation data they cannot be worse than equal weights.
    scores = result.rows["fixed weights"].scores
    assert scores[0] == result.rows["equal weights"].scores.max()


def test_settings_of_a_grid_take_turns(result: Comparison) -> None:
    tried = [setting["numbers"]["gamma"] for setting in result.rows["DTP"].settings]
    assert tried == [1.0, 2.0]
    many = Method(lambda tasks, a, b: None, a=[1, 2, 3], b=[4, 5])
    spread = tries_of(many, (0.1, 0.2, 0.3))
    assert [setting["rate"] for setting in spread] == [0.1, 0.2, 0.3]
    assert spread[0]["numbers"] == {"a": 1, "b": 4}
    assert spread[-1]["numbers"] == {"a": 3, "b": 5}


def test_the_same_call_gives_the_same_numbers(result: Comparison) -> None:
    same_numbers(result, tiny.run())


def same_numbers(ours: Comparison, theirs: Comparison) -> None:
    np.testing.assert_array_equal(ours.single, theirs.single)
    for name, row in ours.rows.items():
        other = theirs.rows[name]
        assert row.settings == other.settings
        for field in ("scores", "kpis", "weights"):
            np.testing.assert_array_equal(getattr(row, field), getattr(other, field))


def test_what_is_printed_is_written(
    result: Comparison, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print(result)
    printed = capsys.readouterr().out
    assert (folder / "report.md").read_text(encoding="utf-8") == printed
    assert "nan" not in printed
    for name in (*result.rows, "single tasks"):
        assert f"| {name} " in printed
    with (folder / "kpis.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Methods and single tasks, seeds, measurements, tasks.
    assert len(rows) == 4 * 3 * 4 * 3
    last = [row for row in rows if row["step"] == "12" and row["method"] == "DTP"]
    found = np.array([float(row["kpi"]) for row in last]).reshape(3, 3)
    np.testing.assert_allclose(found, result.rows["DTP"].last, rtol=1e-6)
    with (folder / "summary.csv").open(encoding="utf-8") as file:
        summary = {row["method"]: row for row in csv.DictReader(file)}
    average = float(summary["DTP"]["average"])
    assert average == pytest.approx(result.rows["DTP"].last.mean())
    for name in ("intervals", "tradeoff", "weights"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_identical_methods_are_ties() -> None:
    methods = {"one": balance(optax.identity(), 3), "other": optax.identity()}
    found = compare(
        tiny.PROBLEM,
        methods,
        rates=(0.1,),
        seeds=3,
        tuning_seeds=1,
        measurements=2,
        progress=False,
    )
    for name in methods:
        equal = found.rows["equal weights"].kpis
        np.testing.assert_allclose(found.rows[name].kpis, equal, rtol=1e-5)
    np.testing.assert_array_equal(found.rows["one"].kpis, found.rows["other"].kpis)
    values = found.values()["average"]
    pair = {name: values[name] for name in methods}
    assert found.verdicts(pair, "one") == {"other": "noise"}
    assert found.rows["fixed weights"].settings == found.rows["equal weights"].settings
    assert found.beats_equal("fixed weights").mean == 0.5


def test_time_to_target_is_when_the_average_is_there(result: Comparison) -> None:
    level = result.target * result.rows["equal weights"].last.mean()
    curve = result.rows["DTP"].kpis.mean(axis=-1)
    first = [
        next((i + 1 for i, kpi in enumerate(of_seed) if kpi >= level), np.inf)
        for of_seed in curve
    ]
    expected = float(np.median(first)) / 4 * result.costs["DTP"]["time"]
    assert result.time_to_target("DTP") == pytest.approx(expected)


def test_what_a_method_may_be() -> None:
    link = balance(balancers.mgda(), 3)
    found = as_methods(
        {
            "link": link,
            "balancer": balancers.mgda(),
            "chain": optax.chain(link, optax.clip(100.0)),
            "combiner": combiners.grad_drop,
            "function": lambda tasks: balancers.mgda(),
        },
        tiny.PROBLEM,
    )
    point = jnp.ones(2)
    gradients, kpis = task_gradients(tiny.losses_and_kpis, has_aux=True)(
        point, tiny.PROBLEM.test
    )
    updates = {}
    for name, method in found.items():
        tx = optax.with_extra_args_support(method.make(3))
        updates[name], _ = tx.update(
            gradients, tx.init(point), point, kpis=kpis, key=jax.random.key(0)
        )
    for name in ("balancer", "chain", "function"):
        np.testing.assert_allclose(updates[name], updates["link"], rtol=1e-6)
    assert updates["combiner"].shape == (2,)


@pytest.mark.slow
def test_the_default_dozen_trains() -> None:
    found = compare(
        tiny.changed(train=lambda key, step: tiny.noise(0, 4)),
        rates=(0.1,),
        seeds=2,
        tuning_seeds=1,
        measurements=1,
        progress=False,
    )
    assert set(found.rows) > set(default_methods(3))


@pytest.mark.parametrize("rule", ["average", "worst", "rank", "improvement"])
def test_a_rule_takes_what_it_names(rule: Any) -> None:
    # The first try is best on the average, the second for the worst task; against a
    # reference that is low on the first task, the third.
    kpis = np.array([[[0.2, 0.8, 0.8]], [[0.5, 0.55, 0.5]], [[0.3, 0.6, 0.6]]])
    reference = np.array([0.1, 0.8, 0.8])
    best = scores(kpis, rule, reference).argmax()
    assert best == {"average": 0, "worst": 1, "rank": 0, "improvement": 1}[rule]


def test_chunks_hold_all_and_little_else() -> None:
    assert chunk_size_of([7], 100) == 7
    assert chunk_size_of([100], 8) <= 8
    assert chunk_size_of([3, 3, 3], 100) == 3
    assert chunk_size_of([5], 1) == 1


def test_the_summary_says_what_a_short_run_hides(result: Comparison) -> None:
    # Twelve steps are less than the warm-up.
    text = result.summary()
    assert "The weights of DTP stayed equal within 1 %" in text
    methods = {
        "DTP": lambda tasks: dynamic_task_prioritization(
            tasks, warmup_steps=1, ramp_steps=0
        )
    }
    assert "stayed equal" not in tiny.run(methods=methods).summary()


def test_the_summary_compares_with_networks_of_single_tasks(result: Comparison) -> None:
    averages = {row: each.last.mean() for row, each in result.rows.items()}
    best = max(averages, key=lambda row: averages[row])
    line = next(x for x in result.summary().splitlines() if "single tasks" in x)
    assert f"is that of {best};" in line
    assert f"{100 * (result.alone.mean() - averages[best]):+.1f} ± " in line
    far = dataclasses.replace(result, single=result.single * 0)
    assert "behind it by more than noise" in far.summary()
    near = dataclasses.replace(result, single=result.rows[best].kpis)
    assert "within noise of it: +0.0" in near.summary()
