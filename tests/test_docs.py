"""Every Python block in the documents runs, warnings included."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page: Path) -> None:
    # The blocks of a page share one namespace, as a reader would run them.
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if block.lstrip().startswith(">>>"):
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            test = doctest.DocTestParser().get_doctest(
                block, namespace, page.name, str(page), 0
            )
            assert runner.run(test, clear_globs=False).failed == 0
            namespace.update(test.globs)
        else:
            exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize(
    ("page", "example", "count"),
    [
        ("README.md", "two_digits", 2),
        ("examples/README.md", "multi_mnist", 1),
        ("examples/README.md", "find_digit", 1),
    ],
)
def test_tables_are_those_that_the_examples_wrote(
    page: str, example: str, count: int
) -> None:
    results = (ROOT / "docs" / example / "results.md").read_text(encoding="utf-8")
    blocks = results.rstrip("\n").split("\n\n")
    tables = [block for block in blocks if block.startswith("| method ")][:count]
    assert len(tables) == count
    shown = (ROOT / page).read_text(encoding="utf-8")
    assert all(table in shown for table in tables)
