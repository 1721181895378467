"""Run by `make build` where the wheel and what it asks for is all that is installed."""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import dtp_jax

EXTRAS = {"flax", "matplotlib", "tqdm"}
NEED_EXTRAS = {"dtp_jax.nnx", "dtp_jax.linen", "dtp_jax.plot"}


def main() -> None:
    package = Path(dtp_jax.__file__).parent
    assert package.is_relative_to(sys.prefix), f"imported from {package}"
    assert (package / "py.typed").exists(), "type checkers would ignore the package"
    assert importlib.metadata.version("dtp-jax") == dtp_jax.__version__
    for name in EXTRAS:
        assert importlib.util.find_spec(name) is None, f"{name} came with the wheel"

    modules = {m.name for m in pkgutil.walk_packages(dtp_jax.__path__, "dtp_jax.")}
    for name in sorted(modules - NEED_EXTRAS):
        importlib.import_module(name)

    # One step by hand: at w = 0 the gradients of the losses are -2 and -4, and during
    # the warm-up all weights are 1.
    link = dtp_jax.dynamic_task_prioritization(["a", "b"])
    tx = optax.chain(link, optax.sgd(1.0))
    w = jnp.zeros(())
    gradients = dtp_jax.task_gradients(lambda w: {"a": (w - 1) ** 2, "b": (w - 2) ** 2})
    kpis = {"a": 0.5, "b": 0.5}
    updates, _ = tx.update(gradients(w), tx.init(w), w, kpis=kpis)
    assert float(jnp.asarray(updates)) == 6.0, updates

    found = f"{len(modules)} modules, jax {jax.__version__}, optax {optax.__version__}"
    print(f"dtp_jax {dtp_jax.__version__} works alone: {found}")


if __name__ == "__main__":
    main()
