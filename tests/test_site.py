"""The pages of the site that are generated, without building it."""

import ast
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dtp_jax import TaskGradients
from tests import toys
from tests.catalogue import METHODS

ROOT = Path(__file__).parent.parent


def generator() -> Any:
    path = ROOT / "docs" / "_pages.py"
    spec = importlib.util.spec_from_file_location("_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = generator()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    PAGES.write(folder)
    return folder


def test_every_public_name_is_described(site: Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.md"))
    described = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE))
    same = {id(PAGES.resolve(name)) for name in described}
    missing = [
        name
        for name in PAGES.public_names()
        if name not in described and id(PAGES.resolve(name)) not in same
    ]
    assert not missing


def test_every_method_has_a_page_with_its_facts(site: Path) -> None:
    index = (site / "methods" / "index.md").read_text(encoding="utf-8")
    for name, (module, folder, _) in PAGES.methods().items():
        page = (site / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert PAGES.FOLDERS[folder][0] in page
        assert f":: {PAGES.full_name(module, name)}\n" in page
        assert f"[{name}]({name}.md)" in index
    first, *_ = re.findall(r"^\| \[(\w+)\]", index, re.MULTILINE)
    assert first == "dynamic_task_prioritization"


def test_fields_of_states_are_told_with_their_comments(site: Path) -> None:
    page = (site / "methods" / "famo.md").read_text(encoding="utf-8")
    assert ":exclude-members: logits, optimizer, losses, known\n" in page
    assert "* **optimizer**: the state of the inner optimizer\n" in page
    assert "* **losses** (``jax.Array``): [T], before the last step\n" in page


def test_every_module_of_the_reference_has_a_line(site: Path) -> None:
    page = (site / "api" / "index.md").read_text(encoding="utf-8")
    _, *rows = PAGES.tables(page)
    assert len(rows) == len(PAGES.MODULES) + 1
    assert all(described for _, described in rows)


def test_links_between_generated_pages_lead_somewhere(site: Path) -> None:
    for path in site.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#]+\.md)", path.read_text(encoding="utf-8")):
            there = (path.parent / link).exists()
            # The folders of generated pages are there in a built site only.
            written = os.path.normpath(ROOT / "docs" / path.parent.name / link)
            assert there or Path(written).exists(), link


def test_a_sum_of_weights_is_told_for_every_method_that_gives_weights() -> None:
    told = PAGES.sums()
    without = {"average_losses", "clip_weights", "floor"}
    for name, (module, _, _) in PAGES.methods().items():
        assert module == "combiners" or name in without or name in told, name
    assert set(told) <= set(PAGES.methods())


@pytest.mark.slow
def test_weights_sum_to_what_is_told() -> None:
    told = {name: total for name, (total, _) in PAGES.sums().items()}
    num_tasks = len(toys.NAMES)
    step = toys.random_steps(num_tasks, num_steps=1)
    losses = dict(zip(toys.NAMES, step.losses[0], strict=True))
    kpis = dict(zip(toys.NAMES, step.kpis[0], strict=True))
    gradients = TaskGradients.from_stacked(step.jacobians[0], losses)
    checked = 0
    for method in METHODS:
        expected = {"T": num_tasks, "1": 1}.get(told.get(method.name, ""))
        if expected is None:
            continue
        balancer: Any = method.make(toys.NAMES)
        weights, _ = balancer.update(
            jax.tree.map(jnp.ones_like, losses),
            balancer.init(losses),
            losses,
            kpis=kpis,
            key=jax.random.key(0),
            task_gradients=gradients,
            second_task_gradients=gradients,
            third_task_gradients=gradients,
        )
        total = sum(float(weight) for weight in jax.tree.leaves(weights))
        assert total == pytest.approx(expected, rel=1e-4), method.name
        checked += 1
    assert checked > 10


def test_every_page_has_its_place_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    parts = re.findall(r"^```{toctree}\n(.*?)^```", index, re.DOTALL | re.MULTILINE)
    entries = [line for part in parts for line in part.splitlines()]
    listed = {re.sub(r".*<(.*)>", r"\1", line).strip() for line in entries}
    pages = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for pattern in ("*.md", "*/results.md", "tutorials/*.md")
        for path in (ROOT / "docs").glob(pattern)
    }
    assert pages - listed == {"index"}
    # The tables that examples write have no title but that.
    titles = {re.sub(r".* <(.*)>", r"\1", line) for line in entries if " <" in line}
    assert {page for page in pages if page.endswith("/results")} <= titles


def test_files_that_are_copied_are_not_excluded() -> None:
    matching = pytest.importorskip("sphinx.util.matching")
    tree = ast.parse((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    settings = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    excluded = matching.Matcher(ast.literal_eval(settings["exclude_patterns"]))
    for folder in ("_root", "_static"):
        for path in (ROOT / "docs" / folder).iterdir():
            # Sphinx asks for the name within the folder, in this spelling.
            assert not excluded(f"./{path.name}"), path.name
    assert excluded(".venv/lib/README.md")
    assert excluded("outputs/site/index.html")
