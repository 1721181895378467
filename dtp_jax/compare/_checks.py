"""What is found out before anything is trained."""

import functools
import warnings
from collections.abc import Mapping

import jax
import numpy as np

from ._data import Data, data_of, first_batch
from ._judge import check_kpis, kpis_of, losses_and_kpis
from ._many import many_at_once
from ._methods import Method
from ._problem import Problem, check_problem
from ._program import Program, fingerprint
from ._settings import Setting


def checked_data(problem: Problem) -> Data:
    """Judges one untrained network, and returns the data.

    Args:
        problem: To be checked.

    Returns:
        What its programs read.

    Raises:
        ValueError: If losses or KPIs do not match the tasks, or a KPI is not in [0, 1].
    """
    check_problem(problem)
    data = data_of(problem)
    layout = problem.layout
    batch = first_batch(problem, data)
    params = problem.init(jax.random.key(0))
    of_batch = jax.jit(functools.partial(losses_and_kpis, problem))
    losses, kpis = of_batch(params, batch)
    layout.check("losses", losses)
    if kpis is not None:
        seen = np.asarray(layout.vector("kpis", kpis))
        check_kpis(seen, layout, "on a batch, of an untrained network,")
    of_split = jax.jit(functools.partial(kpis_of, problem))
    for split in ("validation", "test"):
        found = np.asarray(of_split(params, getattr(data, split)))
        where = f"on {split} data, of an untrained network,"
        check_kpis(found, layout, where, known=True)
    return data


def make_programs(
    problem: Problem,
    methods: Mapping[str, Method],
    settings: Mapping[str, Setting],
    data: Data,
    steps: int,
) -> tuple[dict[str, Program], dict[str, str]]:
    """Traces a round of every method.

    Args:
        problem: To be trained.
        methods: By row; rows of the same method share a program.
        settings: One for each row.
        data: What is read.
        steps: In a round.

    Returns:
        Programs and their fingerprints by row.

    Raises:
        ValueError: If a method does not get what it reads, or something else does not
            fit, naming the method.
    """
    programs: dict[str, Program] = {}
    hashes: dict[str, str] = {}
    of_method: dict[int, str] = {}
    for row, method in methods.items():
        same = of_method.get(id(method))
        if same is not None:
            programs[row], hashes[row] = programs[same], hashes[same]
            continue
        of_method[id(method)] = row
        program = Program(problem, method, False, steps)
        try:
            try:
                hashes[row] = fingerprint(program, settings[row], data)
            except ValueError as error:
                if "second_task_gradients" not in str(error):
                    raise
                # It reads what another batch says; the others do without.
                program = program._replace(second=True)
                hashes[row] = fingerprint(program, settings[row], data)
        except (ValueError, TypeError) as error:
            # Errors of JAX are of these kinds, too, but not made from a message alone.
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(
                f"The method {row!r} cannot train this problem: {error}"
            ) from error
        programs[row] = program
    return programs, hashes


def can_be_mapped(program: Program, settings: Setting, data: Data) -> bool:
    """Whether many networks can train in one program; warns if not.

    Args:
        program: Of one network.
        settings: With a first axis of two networks.
        data: What is read.

    Returns:
        Whether `jax.vmap` takes the problem.
    """
    init, round_ = many_at_once(program)
    seeds = np.zeros(2, np.int32)
    try:
        carry = jax.eval_shape(init, settings, seeds)
        jax.eval_shape(round_, carry, settings, seeds, seeds[0], data)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            "The problem cannot be mapped over seeds, so that they run one by one, "
            f"which takes longer. jax.vmap says: {reason}",
            stacklevel=4,
        )
        return False
    return True
