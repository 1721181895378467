"""The names that users may rely on: a change of the list is a change for them."""

import ast
import importlib
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtp_jax

PACKAGE = Path(dtp_jax.__file__).parent
LIST = Path(__file__).parent / "public_names.txt"


def names_of(path: Path) -> Iterator[str]:
    """What a module defines or says to export, `import x as x`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.asname)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (x.id for x in node.targets if isinstance(x, ast.Name))


def public_names() -> set[str]:
    found = set()
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = [part for part in parts if part != "__init__"]
        for name in names_of(path):
            full = ".".join(["dtp_jax", *module, name])
            # A single letter is a type variable.
            hidden = any(part.startswith("_") for part in [*module, name])
            if full == "dtp_jax.__version__" or not (hidden or len(name) == 1):
                found.add(full)
    return found


def test_public_names_are_those_of_the_list() -> None:
    expected = set(LIST.read_text(encoding="utf-8").split())
    found = public_names()
    assert found == expected, (
        f"new: {sorted(found - expected)}; gone: {sorted(expected - found)}. If that "
        "is meant, change tests/public_names.txt and say it in CHANGELOG.md."
    )
    for name in expected:
        value = dtp_jax
        for part in name.split(".")[1:]:
            value = getattr(value, part)


def modules() -> list[str]:
    paths = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]
    names = {
        path.parent.name if path.stem == "__init__" else path.stem for path in paths
    }
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("name", modules())
def test_a_module_lists_what_is_in_it(name: str) -> None:
    full = "dtp_jax" if name == "dtp_jax" else f"dtp_jax.{name}"
    module = importlib.import_module(full)
    depth = full.count(".") + 1
    expected = {
        public.split(".")[-1]
        for public in LIST.read_text(encoding="utf-8").split()
        if public.startswith(f"{full}.") and public.count(".") == depth
    }
    assert set(module.__all__) == expected


@pytest.mark.parametrize(
    "name",
    [
        *["balancers", "combiners", "curricula", "links", "metrics", "losses", "boxes"],
        *["gumbel", "information", "solvers", "compare", "diagnostics"],
    ],
)
def test_help_shows_every_function_by_group_and_in_full(name: str) -> None:
    module = getattr(dtp_jax, name, None) or importlib.import_module(f"dtp_jax.{name}")
    text = pydoc.plain(pydoc.render_doc(module))
    named = set(re.findall(r"`(\w+)`", module.__doc__ or ""))
    for public in module.__all__:
        # `name_weights` and `NameState` follow from the name of the method.
        follows = public.endswith(("_weights", "State")) or public[0].isupper()
        assert public in named or follows, f"{public} is not in the docstring of {name}"
        assert re.search(rf"\b{public}\b", text), public


def test_completion_shows_the_modules_of_extras() -> None:
    assert {"nnx", "linen", "plot", "compare", "balancers"} <= set(dir(dtp_jax))
    assert "importlib" not in dir(dtp_jax)
