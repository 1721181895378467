"""Imports go down the layers only, and optional packages stay at the edge."""

import ast
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtp_jax

PACKAGE = Path(dtp_jax.__file__).parent

# From the bottom to the top; a module may import from lower layers only, and from its
# own layer where that is said. A folder stands for its files, which do not import each
# other.
LAYERS = [
    {"_checks"},
    {"_base"},
    {"linalg", "gumbel", "boxes", "_quadratic"},
    {"information", "metrics"},
    {"gradients", "kpi", "solvers"},
    {"_tasks"},
    {"_combiner", "_clipping"},
    {"features", "losses", "balancers", "combiners"},
    {"_balance", "curricula", "diagnostics"},
    {"_prioritization", "nnx", "linen"},
    {"__init__"},
]
ALLOWED = {"jax", "numpy", "optax", "dtp_jax"}
FLAX_FILES = {"nnx", "linen"}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The name by which a file stands in LAYERS: its folder, or its own."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = path.relative_to(PACKAGE.parent).parts[: -node.level]
                module = [*parts, *([node.module] if node.module else [])]
                names = [[]] if node.module else [[alias.name] for alias in node.names]
                yield from (".".join([*module, *name]) for name in names)
            elif node.module == "dtp_jax":
                yield from (f"dtp_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def layer_of(name: str) -> int:
    for index, names in enumerate(LAYERS):
        if name in names:
            return index
    raise AssertionError(f"{name} is in no layer: add it to LAYERS.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "dtp_jax":
            standard = top in sys.stdlib_module_names
            flax = top == "flax" and unit(path) in FLAX_FILES
            assert standard or flax or top in ALLOWED, f"{path.name} imports {name}"
        elif rest and rest[0] != unit(path):
            below = layer_of(rest[0]) < layer_of(unit(path))
            assert below, f"{path.name} imports {name}, which is not below it"
        elif len(rest) > 1:
            init = path.name == "__init__.py"
            assert init, f"{path.name} imports its neighbour {name}"


def test_every_module_has_a_layer() -> None:
    assert {unit(path) for path in FILES} == set.union(*LAYERS)


def test_flax_is_not_needed() -> None:
    program = (
        "import sys; sys.modules['flax'] = None; import dtp_jax;"
        "dtp_jax.dynamic_task_prioritization(['a']); print('imported')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "imported"


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_without_flax_the_error_says_what_to_install(name: str) -> None:
    program = f"""if True:
        import sys
        sys.modules["flax"] = None
        import dtp_jax
        for how in ("import dtp_jax.{name}", "from dtp_jax import {name}",
                    "dtp_jax.{name}"):
            try:
                exec(how)
            except ModuleNotFoundError as error:
                assert error.name.startswith("flax"), error.name
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    message = f'dtp_jax.{name} needs flax: pip install "dtp-jax[flax]"'
    assert done.stdout.splitlines() == [message] * 3


def test_the_flax_modules_are_attributes_of_the_package() -> None:
    program = "import dtp_jax; dtp_jax.nnx.Optimizer, dtp_jax.linen.TrainState"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'haiku'"):
        operator.attrgetter("haiku")(dtp_jax)


def test_methods_are_short() -> None:
    for folder in ("balancers", "combiners"):
        for path in (PACKAGE / folder).glob("_*.py"):
            assert len(path.read_text().splitlines()) <= 200, path
