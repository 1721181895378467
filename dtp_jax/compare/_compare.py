"""Trains methods on a problem and says which are better than others."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax._core.checks import check_number, check_whole
from dtp_jax.balancers import constant as constant_balancer
from dtp_jax.links import balance

from ._arrays import digest
from ._checks import can_be_mapped, checked_data, make_programs
from ._comparison import Comparison
from ._costs import PLAIN, measure_costs
from ._default import default_methods
from ._methods import Method, as_methods
from ._plan import (
    ALWAYS,
    EQUAL,
    FIXED,
    SINGLE,
    check_stored,
    chunk_size_of,
    default_threads,
    versions,
)
from ._problem import Problem
from ._progress import progress_bar
from ._settings import of_one, stacked
from ._store import COSTS, PLAN, Store
from ._study import Study
from ._train import Trainer
from ._tries import Rule, check_rule, constant, fixed_tries, single_tries, tries_of

FIRST_TUNING_SEED = 100_000  # no seed that is reported


def compare(
    problem: Problem,
    methods: Mapping[str, Any] | None = None,
    *,
    rates: Sequence[float] = (3e-4, 1e-3, 3e-3, 1e-2),
    seeds: int = 10,
    tuning_seeds: int = 3,
    rule: Rule = "average",
    out: str | os.PathLike[str] | None = None,
    single_rates: Sequence[float] | None = None,
    weight_span: float = 100.0,
    target: float = 0.95,
    confidence: float = 0.95,
    measurements: int = 20,
    chunk_size: int | None = None,
    max_bytes: int = 2**30,
    threads: int | None = None,
    save_every: float = 60.0,
    progress: bool = True,
) -> Comparison:
    """Compares methods on a problem, each tuned alike, over several seeds.

    Always in the table are *equal weights*; *fixed weights*, the best of draws among
    which equal weights are; and *single tasks*, a network of its own for each task.

    Every method has as many tries as there are rates: each rate once, with the settings
    of its own grid in turns. The draws of fixed weights are tried at the two rates that
    were best for equal weights, which is a favour to them. A try is trained with
    `tuning_seeds` seeds and judged on validation data by `rule`; the best one is
    trained again, with `seeds` other seeds, and judged on test data. All methods share
    the initial parameters and the batches of a seed, so that differences are paired.

    The networks of a method, all its seeds and rates, train in one program, as many at
    a time as `chunk_size` says. The same call gives the same numbers, times apart. With
    `out` it may be killed at any time: called again, it goes on where it was, and ends
    with the same bits.

    Args:
        problem: What to train.
        methods: By name: a link such as `dtp_jax.dynamic_task_prioritization`, a
            balancer such as ``dtp_jax.balancers.mgda()``, a function from the tasks to
            one of both, or a `Method` with a grid. None for `default_methods`.
        rates: The learning rates to try.
        seeds: How many are reported, 2 or more.
        tuning_seeds: How many others each try is judged by.
        rule: How a try is chosen: by the "average" of the tasks; the "worst" one; the
            mean "rank" over the tasks among the tries of the method; or the mean
            "improvement" over networks of single tasks.
        out: A folder for tables, figures and what is needed to go on.
        single_rates: Those of the networks of single tasks; all of `rates` by default.
        weight_span: The largest ratio of two fixed weights.
        target: Time to target is how long it takes to this share of what equal weights
            have at the end.
        confidence: Of the intervals.
        measurements: How often KPIs are measured on the way, at most; their number
            divides that of the steps.
        chunk_size: How many networks train at a time; None to choose it by `max_bytes`.
            It changes roundings, so it is stored in `out`.
        max_bytes: Of memory for the chunks that train side by side, roughly.
        threads: How many chunks do, in threads of their own, which changes no number;
            None for one for each core, up to eight, on a CPU, and one elsewhere. Of
            methods that factorize matrices one chunk runs at a time, beside others.
        save_every: Seconds from one save of networks under way to the next.
        progress: Whether to show a progress bar, with tqdm if it is installed.

    Returns:
        A `Comparison`: print it.

    Raises:
        ValueError: If the problem or a method does not fit, before anything is trained;
            or if `out` holds another comparison.

    Example:
        A point that two tasks pull to different places: no method pleases both.

        >>> import jax, jax.numpy as jnp, optax
        >>> from dtp_jax import balancers
        >>> def losses(x, noise):
        ...     distances = {"a": abs(x - 0.2 + noise), "b": abs(x + 0.2 + noise)}
        ...     kpis = jax.tree.map(lambda d: jnp.clip(1 - d, 0, 1), distances)
        ...     return jax.tree.map(jnp.square, distances), kpis
        >>> problem = Problem(
        ...     tasks=["a", "b"], init=jax.random.normal, losses=losses,
        ...     train=lambda key, step: 0.1 * jax.random.normal(key),
        ...     validation=jnp.zeros(()), test=jnp.zeros(()),
        ...     optimizer=optax.sgd, num_steps=40,
        ... )
        >>> result = compare(problem, {"MGDA": balancers.mgda()}, rates=(0.05, 0.1),
        ...                  seeds=3, tuning_seeds=1, progress=False)
        >>> sorted(result.rows)
        ['MGDA', 'equal weights', 'fixed weights']

    References:
        Kurin et al., "In Defense of the Unitary Scalarization for Deep Multi-Task
        Learning", NeurIPS 2022; Xin et al., "Do Current Multi-Task Optimization Methods
        in Deep Learning Even Help?", NeurIPS 2022: tuned baselines are hard to beat.
    """
    check_rule(rule)
    check_whole("seeds", seeds, low=2)
    check_whole("tuning_seeds", tuning_seeds, low=1)
    check_whole("measurements", measurements, low=1)
    for name, value in (("confidence", confidence), ("target", target)):
        check_number(name, value, low=0, high=1, open_low=True, open_high=True)
    check_number("weight_span", weight_span, low=1, open_low=True)
    threads = default_threads() if threads is None else threads
    check_whole("threads", threads, low=1)
    rates = _checked_rates(rates)
    single_rates = rates if single_rates is None else _checked_rates(single_rates)

    data = checked_data(problem)
    rows = _rows(problem, methods)
    num_rounds = _divisor(problem.num_steps, measurements)
    num_tasks = problem.layout.num_tasks
    tries = {
        row: tries_of(method, rates)
        for row, method in rows.items()
        if row not in ALWAYS
    }
    equal = [constant(rate, np.ones(num_tasks).tolist()) for rate in rates]
    alone = single_tries(num_tasks, single_rates)
    first = {row: each[0] for row, each in tries.items()}
    first |= dict.fromkeys(ALWAYS, equal[0])
    shapes = {row: of_one(setting) for row, setting in first.items()}
    steps = problem.num_steps // num_rounds
    programs, hashes = make_programs(problem, rows, shapes, data, steps)
    mapped = can_be_mapped(programs[EQUAL], stacked([equal[0]] * 2), data)

    store = Store(None if out is None else Path(out) / "runs")
    counts = [len(rates) * tuning_seeds] * (len(tries) + 2)
    counts += [num_tasks * len(single_rates) * tuning_seeds, num_tasks * seeds]
    counts += [seeds] * (len(tries) + 2)
    plan = {
        "rates": list(rates),
        "single_rates": list(single_rates),
        "seeds": seeds,
        "tuning_seeds": tuning_seeds,
        "rule": rule,
        "weight_span": weight_span,
        "rounds": num_rounds,
        "data": digest(data),
        "versions": versions(),
        "methods": {
            row: {"program": hashes[row], "tries": tries.get(row)} for row in rows
        },
    }
    stored = store.read_note(PLAN)
    if stored is not None:
        check_stored(stored, plan)
        plan["methods"] = stored["methods"] | plan["methods"]
    costs = _costs(store, programs, shapes, data)
    if stored is not None:
        plan["chunk_size"] = stored["chunk_size"]
    elif chunk_size is not None:
        check_whole("chunk_size", chunk_size, low=1)
        plan["chunk_size"] = chunk_size
    else:
        largest = max(each["bytes"] for each in costs.values())
        most = int(max_bytes / threads / max(1.0, 2 * largest))
        plan["chunk_size"] = chunk_size_of(counts, most)
    if stored != plan:
        store.write_note(PLAN, plan)

    size = plan["chunk_size"]
    total = sum(-(-count // size) for count in counts) * num_rounds
    with progress_bar(total, "comparing", progress) as bar:
        trainer = Trainer(
            programs,
            data,
            store,
            chunk_size=size,
            num_rounds=num_rounds,
            mapped=mapped,
            threads=threads,
            save_every=save_every,
            progress=bar,
        )
        study = Study(
            trainer,
            rule,
            tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + tuning_seeds)),
            tuple(range(seeds)),
        )
        single, reference = study.single_tasks(alone)
        tuned = study.tuned({EQUAL: equal} | tries, reference)
        order = np.argsort(-tuned[EQUAL].scores, kind="stable")
        best_rates = [rates[place] for place in order]
        fixed = fixed_tries(best_rates, num_tasks, len(rates), weight_span)
        tuned |= study.tuned({FIXED: fixed}, reference)
        in_order = [row for row in rows if row != SINGLE]
        found = study.reported({row: tuned[row] for row in in_order}, costs)
    notes = []
    if not mapped:
        notes.append("The problem could not be mapped: seeds ran one by one.")
    result = Comparison(
        names=problem.names,
        rule=rule,
        num_steps=problem.num_steps,
        rates=rates,
        tuning_seeds=tuning_seeds,
        confidence=confidence,
        target=target,
        rows=found,
        single=single,
        costs=costs,
        chunk_size=size,
        versions=plan["versions"],
        notes=tuple(notes),
    )
    if out is not None:
        result.write(out)
    return result


def _rows(problem: Problem, methods: Mapping[str, Any] | None) -> dict[str, Method]:
    if methods is None:
        methods = default_methods(problem.tasks)
    taken = [name for name in methods if name in (*ALWAYS, PLAIN)]
    if taken:
        raise ValueError(
            f"{', '.join(map(repr, taken))} cannot be the name of a method: these rows "
            "are always in."
        )

    def make(tasks: Any, weights: jax.Array) -> Any:
        del tasks
        tree = problem.layout.tree(jnp.asarray(weights, problem.layout.dtype))
        return balance(constant_balancer(tree), problem.tasks)

    weighted = Method(make)
    return dict.fromkeys(ALWAYS, weighted) | as_methods(methods, problem)


def _costs(store: Store, programs: Any, settings: Any, data: Any) -> Any:
    """Those of the store; methods that it does not know are measured."""
    known = store.read_note(COSTS) or {}
    missing = [row for row in programs if row not in known and row not in ALWAYS[1:]]
    if missing:
        found = measure_costs(
            {row: programs[row] for row in missing},
            settings,
            data,
        )
        known = found | known
        for row in ALWAYS[1:]:
            known[row] = known[EQUAL]
        store.write_note(COSTS, known)
    return known


def _checked_rates(rates: Sequence[float]) -> tuple[float, ...]:
    found = tuple(sorted(float(rate) for rate in rates))
    if not found or found[0] <= 0 or len(set(found)) < len(found):
        raise ValueError(f"rates must be different numbers above 0, got {rates!r}.")
    return found


def _divisor(number: int, most: int) -> int:
    return next(k for k in range(min(most, number), 0, -1) if number % k == 0)
