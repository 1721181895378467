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
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(
    r"^```(?:python|\{code-cell\} ipython3)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
# No dependencies of the tests; the site runs their tutorials, too.
NEEDS = {"equinox": "equinox", "keras": "keras"}


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(pytest.param(page, marks=pytest.mark.slow) for page in TUTORIALS)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_blocks_run(page: Path) -> None:
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem])
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


@pytest.mark.parametrize(
    "page", [*PAGES, *TUTORIALS], ids=lambda page: str(page.relative_to(ROOT))
)
def test_local_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize(
    ("page", "example", "count"),
    [
        ("docs/results.md", "two_digits", 2),
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


def test_rows_of_the_readme_are_those_that_the_demo_wrote() -> None:
    results = (ROOT / "docs" / "two_digits" / "results.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if "±" in line]
    assert rows
    assert set(rows) <= set(results.splitlines())
