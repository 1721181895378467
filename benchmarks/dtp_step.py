"""What a step of Dynamic Task Prioritization costs, against a fixed weighted sum.

The same network, batch and optimizer; one step differentiates a fixed weighted sum, the
other passes its losses through `dynamic_task_prioritization`. The plain step is timed
twice: the ratio of its two medians is the noise to compare with.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import optax

from benchmarks import _models
from benchmarks._measure import compiled, interleaved, table
from dtp_jax import combine_losses, dynamic_task_prioritization, task_gradients

MODELS = {
    "small": ((64, 128, 128), 256),
    "medium": ((64, 1024, 1024), 128),
    "large": ((512, 3072, 3072, 3072, 1024), 32),
}


def row(
    model: str,
    num_tasks: int,
    rounds: int,
    setting: tuple[tuple[int, ...], int] | None = None,
) -> list[str]:
    """Measures one setting: a model by name, or by its widths and batch."""
    widths, size = setting or MODELS[model]
    params = _models.init(num_tasks, widths)
    batch = _models.batch(num_tasks, widths[0], size)
    weights = dict.fromkeys(_models.names(num_tasks), 0.7)
    rest = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    tx = optax.chain(dynamic_task_prioritization(_models.names(num_tasks)), rest)

    def dtp_step(params: Any, state: Any, batch: Any) -> Any:
        losses_fn = task_gradients(_models.losses_and_kpis, has_aux=True)
        gradients, kpis = losses_fn(params, batch)
        updates, state = tx.update(gradients, state, params, kpis=kpis)
        return optax.apply_updates(params, updates), state, gradients.losses, kpis

    def plain_step(params: Any, state: Any, batch: Any) -> Any:
        def total(params: Any) -> Any:
            losses, kpis = _models.losses_and_kpis(params, batch)
            return combine_losses(losses, weights), (losses, kpis)

        gradient, (losses, kpis) = jax.grad(total, has_aux=True)(params)
        updates, state = rest.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, losses, kpis

    state, plain_state = tx.init(params), rest.init(params)
    dtp, dtp_cost = compiled(dtp_step, params, state, batch)
    plain, plain_cost = compiled(plain_step, params, plain_state, batch)
    times = interleaved(
        {
            "plain": lambda: plain(params, plain_state, batch),
            "dtp": lambda: dtp(params, state, batch),
            "again": lambda: plain(params, plain_state, batch),
        },
        rounds=rounds,
    )
    baseline = (times["plain"] + times["again"]) / 2
    return [
        f"{model}, {_models.num_params(params) / 1e6:.1f} M parameters",
        str(num_tasks),
        f"{baseline * 1e3:.2f}",
        f"{times['dtp'] / baseline:.3f}",
        f"{times['again'] / times['plain']:.3f}",
        f"{dtp_cost.flops / plain_cost.flops:.4f}",
        f"{dtp_cost.temp_bytes / max(plain_cost.temp_bytes, 1):.4f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 8, 40])
    args = parser.parse_args(argv)
    rows = [row(model, t, args.rounds) for model in args.models for t in args.tasks]
    header = ["model", "T", "plain ms", "DTP / plain", "plain / plain", "FLOPs", "temp"]
    title = "A DTP step against a fixed weighted sum (ratios; plain / plain is noise)"
    print(table(title, header, rows))


if __name__ == "__main__":
    main()
