"""Asks XLA for eight simulated devices and quick compilation, before JAX starts."""

import importlib.metadata
import os

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
