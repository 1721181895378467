"""The names that users may rely on: a change of the list is a change for them."""

import ast
from collections.abc import Iterator
from pathlib import Path

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
