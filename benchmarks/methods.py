"""What a training step costs with each method, relative to plain training.

Trunk 64-512-512 by default, T heads 512-10, batch 256, plain SGD. Ten steps in a row
are timed, so that what happens on every tenth step counts with a tenth. Gradient-driven
methods read the Gramian of the trunk, methods of gradient norms that of its last layer.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

import dtp_jax
from benchmarks import _models
from benchmarks._measure import compiled_together, flops_of, interleaved, table
from dtp_jax import combine_losses, task_gradients

# The types of optax admit no TaskGradients.
balance: Any = dtp_jax.balance
balancers: Any = dtp_jax.balancers
combiners: Any = dtp_jax.combiners
curricula: Any = dtp_jax.curricula

WIDTHS = (64, 512, 512)
NUM_STEPS = 10


class Method(NamedTuple):
    """A method and what it reads.

    Attributes:
        make: From the names of the tasks to the first link of the optimizer's chain.
        shared: The beginning of the paths of the parameters whose gradients it reads,
            in which "{last}" stands for the number of the last layer of the trunk.
        batches: How many further batches a step supplies.
    """

    make: Callable[[list[str]], Any]
    shared: str = "trunk"
    batches: int = 0


def _balanced(balancer: Any, **settings: Any) -> Method:
    return Method(lambda names: balance(balancer, names), **settings)


def _primary(factory: Any, **settings: Any) -> Method:
    return Method(
        lambda names: balance(factory(names[0], **settings), names), "trunk/{last}"
    )


def _in_trunk(path: str) -> bool:
    return path.startswith("trunk")


LAST = {"shared": "trunk/{last}"}
LOSS_DRIVEN = {
    "dynamic_task_prioritization": Method(dtp_jax.dynamic_task_prioritization),
    "constant": _balanced(balancers.constant(0.7)),
    "random": _balanced(balancers.random()),
    "uncertainty": _balanced(balancers.uncertainty()),
    "geometric": _balanced(balancers.geometric()),
    "chebyshev": _balanced(balancers.chebyshev()),
    "boundary_intersection": _balanced(balancers.boundary_intersection()),
    "cosmos": _balanced(balancers.cosmos()),
    "dwa": _balanced(balancers.dwa()),
    "imtl_l": _balanced(balancers.imtl_l()),
    "famo": _balanced(balancers.famo()),
    "soft_adapt": _balanced(balancers.soft_adapt()),
    "relobralo": _balanced(balancers.relobralo()),
    "inverse_losses": _balanced(balancers.inverse_losses()),
    "igb": _balanced(balancers.igb()),
    "go4align": _balanced(balancers.go4align()),
    "residual_attention": _balanced(balancers.residual_attention()),
    "self_adaptive": _balanced(balancers.self_adaptive()),
    "balanced_residual_decay": _balanced(balancers.balanced_residual_decay()),
}
NORM_DRIVEN = {
    "grad_norm, every 10": _balanced(balancers.grad_norm(refresh_every=10), **LAST),
    "lr_annealing, every 10": _primary(balancers.lr_annealing, refresh_every=10),
    "equal_norms, every 10": _balanced(balancers.equal_norms(refresh_every=10), **LAST),
    "ntk, every 10": _balanced(balancers.ntk(refresh_every=10), **LAST),
    "grad_norm, every 10, of the bias": _balanced(
        balancers.grad_norm(refresh_every=10), shared="trunk/{last}/b"
    ),
    "grad_norm": _balanced(balancers.grad_norm(), **LAST),
    "lr_annealing": _primary(balancers.lr_annealing),
    "ntk": _balanced(balancers.ntk(), **LAST),
    "norm_balancer": _balanced(balancers.norm_balancer(), **LAST),
}
GRADIENT_DRIVEN = {
    "mgda": _balanced(balancers.mgda()),
    "upgrad": _balanced(balancers.upgrad()),
    "upgrad, every 10": _balanced(curricula.every_k(balancers.upgrad(), 10)),
    "dual_projection": _balanced(balancers.dual_projection()),
    "pcgrad": _balanced(balancers.pcgrad()),
    "grad_vac": _balanced(balancers.grad_vac()),
    "cagrad": _balanced(balancers.cagrad()),
    "nash_mtl": _balanced(balancers.nash_mtl()),
    "fair_grad": _balanced(balancers.fair_grad()),
    "imtl_g": _balanced(balancers.imtl_g()),
    "aligned_mtl": _balanced(balancers.aligned_mtl()),
    "config": _balanced(balancers.config()),
    "krum": _balanced(balancers.krum(num_byzantine=1)),
    "pcd": Method(lambda names: balance(balancers.pcd(names[0]), names)),
    "excess_mtl": _balanced(balancers.excess_mtl()),
    "modo": _balanced(balancers.modo(), batches=1),
    "sdmgrad": _balanced(balancers.sdmgrad(), batches=1),
    "auto_lambda": _balanced(balancers.auto_lambda(0.1), batches=1),
    "grad_drop": Method(combiners.grad_drop),
    "trimmed_mean": Method(lambda names: combiners.trimmed_mean(names, num_trimmed=1)),
    "meta_balance": Method(
        lambda names: combiners.meta_balance(names, names[0], shared=_in_trunk)
    ),
    "moco": Method(lambda names: combiners.moco(names, shared=_in_trunk)),
    "db_mtl": Method(lambda names: combiners.db_mtl(names, shared=_in_trunk)),
}
METHODS = LOSS_DRIVEN | NORM_DRIVEN | GRADIENT_DRIVEN


def plain_step(num_tasks: int, batch: Any) -> Callable[[Any, Any], Any]:
    """One step on a fixed weighted sum of the losses."""
    weights = dict.fromkeys(_models.names(num_tasks), 0.7)
    optimizer = optax.sgd(1e-2)

    def step(params: Any, state: Any) -> Any:
        def total(params: Any) -> Any:
            losses, kpis = _models.losses_and_kpis(params, batch)
            return combine_losses(losses, weights), (losses, kpis)

        gradient, out = jax.grad(total, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, out

    return step


def method_step(
    method: Method, num_tasks: int, batch: Any, last: int = len(WIDTHS) - 2
) -> tuple[Callable[[Any, Any], Any], Any]:
    """One step of a method, and its optimizer."""
    tx: Any = optax.chain(method.make(_models.names(num_tasks)), optax.sgd(1e-2))
    beginning = method.shared.format(last=last)
    gradients_of = task_gradients(
        _models.losses_and_kpis,
        has_aux=True,
        shared=lambda path: path.startswith(beginning),
    )

    def step(params: Any, state: Any) -> Any:
        gradients, kpis = gradients_of(params, batch)
        supplied = {"kpis": kpis, "key": jax.random.key(0)}
        if method.batches:
            other = batch | {"x": batch["x"][::-1]}
            supplied["second_task_gradients"] = gradients_of(params, other)[0]
        updates, state = tx.update(gradients, state, params, **supplied)
        out = (gradients.losses, kpis)
        return optax.apply_updates(params, updates), state, out

    return step, tx


def setting(
    num_tasks: int, widths: tuple[int, ...] = WIDTHS, size: int = 256
) -> tuple[Any, Any]:
    """Parameters and a batch."""
    return _models.init(num_tasks, widths), _models.batch(num_tasks, widths[0], size)


def flops(step: Callable[[Any, Any], Any], params: Any, state: Any) -> float:
    """What the compiler counts before it optimizes; the bodies of loops once."""
    return flops_of(jax.jit(step).lower(params, state))


def rows_of(
    names: Sequence[str],
    num_tasks: int,
    rounds: int,
    widths: tuple[int, ...] = WIDTHS,
    *,
    size: int = 256,
    workers: int = 1,
    max_seconds: float = math.inf,
) -> list[list[str]]:
    """Measures methods side by side."""
    params, batch = setting(num_tasks, widths, size)
    last = len(widths) - 2

    def ten(program: Any, state: Any) -> Callable[[], Any]:
        def run() -> Any:
            carry = (params, state)
            for _ in range(NUM_STEPS):
                carry = program(*carry)[:2]
            return carry

        return run

    plain = plain_step(num_tasks, batch)
    start = optax.sgd(1e-2).init(params)
    steps = {"plain": (plain, start), "plain again": (plain, start)}
    counts = {"plain": flops(plain, params, start)}
    counts["plain again"] = counts["plain"]
    for name in names:
        step, tx = method_step(METHODS[name], num_tasks, batch, last)
        steps[name] = (step, tx.init(params))
        if name in LOSS_DRIVEN:
            counts[name] = flops(step, params, steps[name][1])
    jobs = {name: (step, (params, state)) for name, (step, state) in steps.items()}
    functions = {}
    for name, found in compiled_together(jobs, workers).items():
        if isinstance(found, Exception):
            raise found
        functions[name] = ten(found[0], steps[name][1])
    times = interleaved(functions, rounds=rounds, max_seconds=max_seconds)
    baseline = (times["plain"] + times["plain again"]) / 2
    return [
        [
            name,
            str(num_tasks),
            f"{times[name] / NUM_STEPS * 1e3:.2f}",
            f"{times[name] / baseline:.2f}",
            f"{counts[name] / counts['plain']:.4f}" if name in LOSS_DRIVEN else "",
        ]
        for name in functions
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", nargs="+", type=int, default=[8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    args = parser.parse_args(argv)
    widths = tuple(args.widths)
    for num_tasks in args.tasks:
        rows = rows_of(args.methods, num_tasks, args.rounds, widths)
        header = ["method", "T", "ms", "/ plain", "FLOPs / plain"]
        print(table("Whole training steps, means over ten in a row", header, rows))


if __name__ == "__main__":
    main()
