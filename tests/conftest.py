"""Eight simulated devices, quick compilation and exact products, before JAX starts."""

import importlib.metadata
import os

import pytest

# Most of the suite's time goes into compiling programs that run for microseconds.
# `make test-slow` compiles as users do.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Without the emitters of MLIR, compiling takes a third less time. Later versions
    # have no others, and do not start with a flag that they do not know.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

# Otherwise a GPU or a TPU rounds the products of a test's model by more than tolerances
# of float32 allow for. Those of the library say their precision where they are.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Makes groups for ``--dist loadgroup``: a method of a contract, or else a file.

    What a method's tests share is compiled once then, and no process has it all.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        callspec = getattr(item, "callspec", None)
        method = callspec.params.get("method") if callspec is not None else None
        name = getattr(method, "name", "")
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {name}"))
