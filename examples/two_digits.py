"""Where Dynamic Task Prioritization (DTP) helps, and where equal weights are as good.

Three tasks on images of two overlapping digits, whose losses are of one size; and a row
of twelve digits in ink that fades, twelve tasks for a small network, where some starve.
Run it with

    python -m examples.two_digits

and look at ``outputs/two_digits``. These are the lines that matter::

    tx = optax.chain(dynamic_task_prioritization(TASKS), optax.adam(rate))

    gradients, kpis = task_gradients(losses_fn, has_aux=True)(params, batch)
    updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
    params = optax.apply_updates(params, updates)

Every method sees the same initial parameters, batches and number of steps. Its learning
rate, or weights and rate, did best of six tries on validation digits, with seeds of
their own; ``--tune`` repeats that and writes ``examples/two_digits.json``. Apart from
the rate, "DTP" has the library's defaults, and the others what their names say.
`_methods.py` has the methods, `_problems.py` the networks and `_contest.py` the
training.
"""

import argparse
import json
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from examples import _contest, _digits, _methods, _plots, _tuning
from examples._contest import Log, at_the_end, with_error
from examples._methods import DTP, EQUAL, MEASUREMENTS, SCHEDULES, Contest
from examples._tables import markdown

TUNED = Path(__file__).with_suffix(".json")


class Result(NamedTuple):
    """What one method did under one schedule, S seeds."""

    rate: float
    kpis: np.ndarray  # [S, E, T], on the way, in percent
    weights: np.ndarray  # [S, E, T]
    average: np.ndarray  # [S], at the end, in percent
    worst: np.ndarray  # [S], of the tasks
    share: np.ndarray  # [S], smallest ratio to a network of one task, in percent
    steps: np.ndarray  # [S], until the worst task has so much of that; inf for never


Results = dict[tuple[str, str], Result]  # by method and schedule


def run(
    contest: Contest, tuned: Any, data: Any, seeds: Sequence[int], title: str
) -> Results:
    """Trains each method at the rate that `--tune` chose."""
    problem = contest.problem
    settings: Any = {}
    for schedule in SCHEDULES:
        single = tuned[schedule]["single"]
        for method, choice in tuned[schedule]["methods"].items():
            tried = choice["tried"][choice["chosen"]]
            chosen = {key: tried[key] for key in ("rate", "weights") if key in tried}
            settings[method, schedule] = _methods.setting(
                problem, schedule, single=single, **chosen
            )
    jobs = {
        (method, schedule): _methods.job(problem, data, method, [setting], seeds)
        for (method, schedule), setting in settings.items()
    }
    return {
        key: _result(contest, settings[key]["rate"], log, tuned[key[1]]["single"])
        for key, log in _contest.train(jobs, title).items()
    }


def _result(contest: Contest, rate: float, log: Log, single: Any) -> Result:
    kpis, reference = 100 * log.kpis["test"][0], np.array(single["test"])
    last = 100 * log.last()[0]
    steps = _contest.steps_to_share(
        kpis, reference, contest.share, contest.problem.num_steps
    )
    share = 100 * (last / reference).min(axis=1)
    averages, worst = last.mean(axis=1), last.min(axis=1)
    return Result(rate, kpis, log.weights[0], averages, worst, share, steps)


def table(contest: Contest, results: Results) -> str:
    """Means and standard errors, and differences to equal weights seed by seed."""
    target = f"steps to {contest.share:.0%}"
    head = ["method", "rate", "average", "worst task", "worst / single", target]
    rows = [[*head, "average, difference", "worst, difference"]]
    for (method, schedule), result in results.items():
        equal = results[EQUAL, schedule]
        steps = np.median(result.steps)
        cells = [
            method,
            f"{result.rate:g}, {schedule}",
            with_error(result.average),
            with_error(result.worst),
            with_error(result.share),
            "never" if np.isinf(steps) else f"{steps:.0f}",
        ]
        if method == EQUAL:
            cells += ["-", "-"]
        else:
            cells += [
                with_error(result.average - equal.average, "+"),
                with_error(result.worst - equal.worst, "+"),
            ]
        rows.append(cells)
    return markdown(rows)


def checks(results: dict[str, Results]) -> str:
    """What DTP at its defaults is held to, and whether it holds here."""
    lines = []
    for schedule in SCHEDULES:
        three = results["three tasks"]
        ours, equal = three[DTP, schedule], three[EQUAL, schedule]
        average, _ = _contest.mean_and_error(ours.average - equal.average)
        worst, error = _contest.mean_and_error(ours.worst - equal.worst)
        lines += [
            f"{_holds(average > -1)}: three tasks, {schedule}: the average is no more "
            f"than 1 point below equal weights ({average:+.2f}).",
            f"{_holds(worst > 2 * error)}: three tasks, {schedule}: the worst task is "
            f"better by more than two standard errors ({worst:+.2f} ± {error:.2f}).",
        ]
    for schedule in SCHEDULES:
        twelve = results["row of twelve"]
        ours, equal = twelve[DTP, schedule], twelve[EQUAL, schedule]
        ratio = ours.worst.mean() / equal.worst.mean()
        lines.append(
            f"{_holds(ratio >= 1.5)}: row of twelve, {schedule}: the worst task is at "
            f"least 1.5 times that of equal weights ({ratio:.2f})."
        )
    return "\n".join(f"* {line}" for line in lines)


def _holds(true: bool) -> str:
    return "holds" if true else "MISSED"


def single_table(contest: Contest, tuned: Any) -> str:
    """What networks of one task reach on test digits."""
    rows = [["rate", *contest.problem.names]]
    for schedule in SCHEDULES:
        kpis = tuned[schedule]["single"]["test"]
        rows.append([schedule, *(f"{kpi:.1f}" for kpi in kpis)])
    return markdown(rows)


def report(
    contests: dict[str, Contest],
    results: dict[str, Results],
    tuned: Any,
    num_seeds: int,
) -> str:
    """Tables, checks and how to read them."""
    notes = f"""
        KPIs on test digits in percent: accuracy of digits, bounded error of the overlap
        (100 is exact, 0 is off by {_digits.OVERLAP_SCALE} or more), at the end: means
        over the last tenth of {MEASUREMENTS} measurements. Means and standard errors
        over {num_seeds} seeds, which vary initial parameters and batches but not the
        digits. "worst / single" is the smallest ratio of a KPI to that of a network
        of its own; "steps to" is when every task first has so much of that, measured
        {MEASUREMENTS} times, median over the seeds. Differences are to equal weights of
        the same seed and schedule. Each row has the rate, or rate and weights, that did
        best on validation digits of {len(_methods.RATES)} tries, by the average or, if
        so named, by the worst task. The fixed weights of the row were three powers of
        the ink: they were told the order of difficulty.
    """
    parts = []
    for name, of in results.items():
        problem = contests[name].problem
        alone = single_table(contests[name], tuned[name])
        parts += [
            f"{name.capitalize()}, {problem.num_steps} steps of Adam:",
            table(contests[name], of),
            "Networks of one task:",
            alone,
        ]
    parts += [textwrap.fill(textwrap.dedent(notes).strip(), 88), checks(results)]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the tables and writes them and the plots."""
    parser = argparse.ArgumentParser(description="DTP on overlapping digits.")
    parser.add_argument("--out", type=Path, default=Path("outputs/two_digits"))
    unit = 2 * MEASUREMENTS
    parser.add_argument("--steps", type=int, default=4000, help=f"a multiple of {unit}")
    parser.add_argument("--seeds", type=int, default=10, help="2 or more")
    parser.add_argument("--tune", action="store_true", help="choose rates and weights")
    names = [*_methods.contests()]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args(argv)
    if args.steps < unit or args.steps % unit or args.seeds < 2:
        parser.error(f"--steps must be a multiple of {unit}, --seeds at least 2")
    start = time.perf_counter()
    contests = _methods.contests(args.steps)
    if args.tune:
        for name in args.only:
            found = _tuning.tune(name, contests[name])
            tuned = json.loads(TUNED.read_text("utf-8")) if TUNED.exists() else {}
            in_order = {each: (tuned | {name: found}).get(each) for each in contests}
            text = json.dumps({k: v for k, v in in_order.items() if v}, indent=1)
            TUNED.write_text(f"{text}\n", encoding="utf-8")
        print(f"Wrote {TUNED} in {time.perf_counter() - start:.0f} s.")
        return

    tuned = json.loads(TUNED.read_text(encoding="utf-8"))
    results, images = {}, {}
    for name, contest in contests.items():
        images[name] = contest.problem.make_data()
        data = jax.device_put(images[name])
        results[name] = run(contest, tuned[name], data, range(args.seeds), name)
    text = report(contests, results, tuned, args.seeds)
    print(f"\n{text}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text(text, encoding="utf-8")
    plot(args.out, contests, results, images, tuned)
    seconds = time.perf_counter() - start
    print(f"Tables and plots are in {args.out}. It took {seconds:.0f} s.")


def plot(
    out: Path,
    contests: dict[str, Contest],
    results: dict[str, Results],
    images: Any,
    tuned: Any,
) -> None:
    """Writes the plots."""
    test = images["three tasks"]["test"]
    labels = zip(test.left, test.right, test.overlap, strict=True)
    titles = [f"{left}, {right}, {overlap:.2f}" for left, right, overlap in labels]
    what = (
        "class of the left digit, class of the right digit, covered share of the right"
    )
    _plots.samples(out / "samples.png", test.images[:18], titles[:18], what)

    problem = contests["three tasks"].problem
    names = problem.names
    schedule = "constant"
    of = {
        method: result
        for (method, each), result in results["three tasks"].items()
        if each == schedule
    }
    every = problem.num_steps // MEASUREMENTS
    series = {
        method: {name: result.kpis[:, :, i] for i, name in enumerate(names)}
        for method, result in of.items()
    }
    label = "KPI on test digits in percent"
    _plots.curves(out / "kpis.png", series, names, 1, label, every)
    series = {
        method: {name: result.weights[:, :, i] for i, name in enumerate(names)}
        for method, result in of.items()
        if method.startswith(DTP)
    }
    _plots.weights(out / "weights.png", series, names, 1, every=every)
    columns = {
        method: np.c_[at_the_end(result.kpis), result.average, result.worst]
        for method, result in of.items()
    }
    what = "KPI on test digits in percent, mean and standard error, constant rate"
    _plots.comparison(
        out / "comparison.png", columns, (*names, "average", "worst task"), what
    )
    schedule = "cosine"
    places = {
        method: at_the_end(result.kpis)
        for (method, each), result in results["row of twelve"].items()
        if each == schedule
    }
    alone = np.array(tuned["row of twelve"][schedule]["single"]["test"])
    rows = images["row of twelve"]["test"].images[:3]
    _plots.by_ink(out / "row.png", rows, _digits.row_inks(), places, alone)


if __name__ == "__main__":
    main()
