"""The house: floors, what stands on what, and rooms that say the truth."""

import ast
import graphlib
import operator
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import dtp_jax
from dtp_jax import TaskGradients
from tests import toys
from tests.catalogue import METHODS, Method

PACKAGE = Path(dtp_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A room is a file or folder of the package; it imports from the
# floors below its own, and on its own floor only from the rooms it leans on.
FLOORS = [
    ["_core"],
    [
        *["gradients", "solvers", "kpi"],
        # The toolbox: arrays in, arrays out.
        *["gumbel", "information", "boxes", "metrics", "losses"],
    ],
    ["balancers", "curricula"],
    ["links"],
    ["combiners"],
    ["diagnostics", "nnx", "linen", "plot"],
    ["compare"],
    ["__init__"],
]
LEANS_ON = {"information": {"gumbel"}, "metrics": {"boxes"}, "losses": {"kpi"}}
ROOMS = {room for floor in FLOORS for room in floor}
ALLOWED = {"jax", "numpy", "optax", "dtp_jax"}
# What these rooms may import besides; the package works without.
EXTRAS = {
    "nnx": {"flax"},
    "linen": {"flax"},
    "plot": {"matplotlib"},
    "compare": {"tqdm"},
}

# What a method of each folder may ask of a step; see `Watched`.
READS = {
    "on_weights": set(),
    "by_kpi": {"kpis"},
    "by_loss": {"losses"},
    "by_norm": {"losses", "norms", "rows"},
    "by_gramian": {"losses", "norms", "rows", "gramian"},
    "by_second_batch": {"losses", "rows", "combine", "second"},
}
# What each of them does ask for, some of it at least.
OWN = {
    "on_weights": set(),
    "by_kpi": {"kpis"},
    "by_loss": {"losses"},
    "by_norm": {"norms", "rows"},
    "by_gramian": {"gramian"},
    "by_second_batch": {"second"},
}
# Their tests are those of the problems they solve, in tests/solvers.
TESTED_TOGETHER = {"dual_projection", "upgrad"}
FOLDER_OF = {
    path.stem.removeprefix("_"): path.parent.name
    for path in (PACKAGE / "balancers").glob("*/_*.py")
}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def floor_of(room: str) -> int:
    for number, floor in enumerate(FLOORS):
        if room in floor:
            return number
    raise AssertionError(f"{room} is on no floor: add it to FLOORS.")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = path.relative_to(PACKAGE.parent).parts[: -node.level]
                module = ".".join([*parts, *([module] if module else [])])
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield name if name in MODULES else module


MODULES = {module_of(path): path for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "dtp_jax":
            standard = top in sys.stdlib_module_names
            allowed = ALLOWED | EXTRAS.get(room, set())
            assert standard or top in allowed, f"{path.name} imports {name}"
        elif rest and rest[0] != room:
            below = floor_of(rest[0]) < floor_of(room)
            beside = rest[0] in LEANS_ON.get(room, ())
            assert below or beside, f"{path.name} imports {name}, which is not below it"


def test_there_is_no_cycle() -> None:
    graph = {
        name: [found for found in imports(path) if found in MODULES and found != name]
        for name, path in MODULES.items()
    }
    # The face of a package imports what it shows; nobody inside looks at the face.
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_methods_never_import_methods() -> None:
    for folder in ("balancers", "combiners"):
        shown = set(imports(PACKAGE / folder / "__init__.py"))
        for path in (PACKAGE / folder).rglob("_[a-z]*.py"):
            assert not shown & set(imports(path)), path


def test_every_room_has_a_floor_and_the_root_shows_no_private_file() -> None:
    assert {room_of(path) for path in FILES} == ROOMS
    private = [path for path in PACKAGE.glob("_*.py") if path.stem != "__init__"]
    assert not private


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert max(lengths.values()) <= 410, max(lengths, key=lambda path: lengths[path])
    assert statistics.median(lengths.values()) < 130
    for folder in ("balancers", "combiners"):
        for path in (PACKAGE / folder).rglob("_[a-z]*.py"):
            assert lengths[path] <= 200, path


class Watched(TaskGradients):
    """Task gradients that note what is asked of them."""

    def __init__(self, rows: jax.Array, losses: Any, asked: set[str]) -> None:
        whole = TaskGradients.from_stacked(rows, losses)
        super().__init__(losses, _WatchedMap(whole._map, asked))


class _WatchedMap:
    def __init__(self, rows: Any, asked: set[str]) -> None:
        self.rows = rows
        self.asked = asked
        self.shared = rows.shared
        self.dtype = rows.dtype

    def pull(self, *args: Any) -> Any:
        self.asked.add("combine")
        return self.rows.pull(*args)

    def products(self, *args: Any) -> Any:
        self.asked.add("combine")
        return self.rows.products(*args)

    def stack(self) -> Any:
        self.asked.add("rows")
        return self.rows.stack()

    def gramian(self) -> jax.Array:
        self.asked.add("gramian")
        return self.rows.gramian()

    def squared_norms(self) -> jax.Array:
        self.asked.add("norms")
        return self.rows.squared_norms()

    def each(self, function: Any) -> Any:
        self.asked.add("norms")
        return self.rows.each(function)

    def finite(self) -> jax.Array:
        return self.rows.finite()


SINGLE = [method for method in METHODS if method.name in FOLDER_OF]


@pytest.mark.parametrize("method", SINGLE, ids=lambda method: method.name)
def test_the_folder_says_what_a_method_reads(method: Method) -> None:
    folder = FOLDER_OF[method.name]
    step = toys.random_steps(len(toys.NAMES), num_steps=1)
    losses = dict(zip(toys.NAMES, step.losses[0], strict=True))
    kpis = dict(zip(toys.NAMES, step.kpis[0], strict=True))
    asked: set[str] = set()
    supplied: dict[str, Any] = {"key": jax.random.key(0)}
    reads = READS[folder]
    if "kpis" in reads:
        supplied["kpis"] = kpis
    if reads & {"norms", "rows", "gramian", "combine"}:
        supplied["task_gradients"] = Watched(step.jacobians[0], losses, asked)
    if "second" in reads:
        second: set[str] = set()
        supplied["second_task_gradients"] = Watched(step.jacobians[0], losses, second)
    balancer: Any = method.make(toys.NAMES)
    ones = jax.tree.map(jnp.ones_like, losses)

    def run(without: str = "") -> None:
        given = {name: value for name, value in supplied.items() if name != without}
        shown = losses if "losses" in reads and without != "losses" else None
        balancer.update(ones, balancer.init(losses), shown, **given)

    run()
    assert asked <= reads
    # It reads what its folder is named for: that is used, or missed.
    if "kpis" in OWN[folder] or "losses" in OWN[folder]:
        (own,) = OWN[folder]
        with pytest.raises(ValueError, match=f"needs `{own}`"):
            run(without=own)
    elif "second" in OWN[folder]:
        with pytest.raises(ValueError, match="needs `second_task_gradients`"):
            run(without="second_task_gradients")
    else:
        assert not OWN[folder] or asked & OWN[folder]


def test_every_method_is_in_the_catalogue() -> None:
    factories = {
        name for name in FOLDER_OF if callable(getattr(dtp_jax.balancers, name, None))
    }
    frames = set(FOLDER_OF) - factories
    for name in frames:
        shown = set(imports(PACKAGE / "balancers" / "__init__.py"))
        assert f"dtp_jax.balancers.{FOLDER_OF[name]}._{name}" not in shown
    tools = {"clip_weights", "floor"}  # in the catalogue after a method, in chains
    pairs = {"dcgd"}  # for two tasks only, with tests of its own
    assert factories - {method.name for method in METHODS} == tools | pairs


def test_tests_mirror_the_package() -> None:
    tests = Path(__file__).parent
    for folder in ("balancers", "combiners"):
        for path in (PACKAGE / folder).rglob("_[a-z]*.py"):
            relative = path.relative_to(PACKAGE).parent
            name = path.stem.removeprefix("_")
            if hasattr(getattr(dtp_jax, folder), name):
                mirrored = tests / relative / f"test_{name}.py"
                gone = not mirrored.exists() and name not in TESTED_TOGETHER
                assert not gone, f"{path.name} has no {mirrored.name}"


def test_flax_is_not_needed() -> None:
    program = (
        "import sys; sys.modules['flax'] = None; import dtp_jax;"
        "dtp_jax.dynamic_task_prioritization(['a']); print('imported')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "imported"


@pytest.mark.parametrize(
    ("name", "needs", "extra"),
    [
        ("nnx", "flax", "flax"),
        ("linen", "flax", "flax"),
        ("plot", "matplotlib", "plot"),
    ],
)
def test_without_an_extra_the_error_says_what_to_install(
    name: str, needs: str, extra: str
) -> None:
    program = f"""if True:
        import sys
        sys.modules["{needs}"] = None
        import dtp_jax
        for how in ("import dtp_jax.{name}", "from dtp_jax import {name}",
                    "dtp_jax.{name}"):
            try:
                exec(how)
            except ModuleNotFoundError as error:
                assert error.name.startswith("{needs}"), error.name
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    message = f'dtp_jax.{name} needs {needs}: pip install "dtp-jax[{extra}]"'
    assert done.stdout.splitlines() == [message] * 3


def test_compare_needs_no_extra() -> None:
    program = """if True:
        import sys
        for name in ("flax", "matplotlib", "tqdm", "pandas"):
            sys.modules[name] = None
        from dtp_jax import compare
        from dtp_jax.compare import _files, _progress
        with _progress.progress_bar(3, "comparing", True) as progress:
            progress.extend(1)
            progress.update(2)
        print(compare.default_methods(2).keys())
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "DTP" in done.stdout


def test_the_modules_of_extras_are_attributes_of_the_package() -> None:
    program = (
        "import dtp_jax; dtp_jax.nnx.Optimizer, dtp_jax.linen.TrainState,"
        "dtp_jax.compare.compare, dtp_jax.plot.weights"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'haiku'"):
        operator.attrgetter("haiku")(dtp_jax)
