"""What is published is complete and true, and what is said twice agrees."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import dtp_jax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS: dict[str, list[Any]] = PROJECT["dependency-groups"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def parsed_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def targets() -> set[str]:
    """What `make` can be asked for."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def called_targets(text: str) -> set[str]:
    """The targets of each `make a b` in a workflow, or in a document as code."""
    calls = re.findall(r"(?:^ {4}|run: |`)make((?: [a-z][\w-]*)+)", text, re.MULTILINE)
    return {target for call in calls for target in call.split()}


def tracked_files() -> set[str]:
    """The files that git knows and that are still there."""
    if not (ROOT / ".git").exists():
        pytest.skip("a source distribution has no git")
    command = ["git", "-c", "core.quotePath=false", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution of this checkout, built as a frontend builds it
    but with the tools that are installed, so that no network is needed."""
    folder = tmp_path_factory.mktemp("source")
    run_backend(f"build_sdist({str(folder)!r})", ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path) -> zipfile.ZipFile:
    """The wheel that is built from the source distribution."""
    run_backend(f"build_wheel({str(source.parent)!r})", source)
    (archive,) = source.parent.glob("*.whl")
    return zipfile.ZipFile(archive)


def run_backend(call: str, cwd: Path) -> None:
    program = f"import hatchling.build; hatchling.build.{call}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def description_of(wheel: zipfile.ZipFile) -> str:
    return str(metadata_of(wheel).get_payload())


def test_the_source_distribution_has_the_files_of_the_repository(source: Path) -> None:
    packed = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file()
    }
    # What was trained is large, and the code trains it again.
    assert tracked_files() - packed == {"benchmarks/evidence/runs.tar.xz"}
    assert not [name for name in packed if name.endswith(".pyc")]


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dtp_jax"}
    assert not [name for name in names if "test" in name]
    ours = {name for name in names if ".dist-info/" not in name}
    package = (path.relative_to(ROOT) for path in (ROOT / "dtp_jax").rglob("*.py"))
    assert ours == {path.as_posix() for path in package} | {"dtp_jax/py.typed"}


def test_the_wheel_asks_users_for_what_they_need_only(wheel: zipfile.ZipFile) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Version"] == dtp_jax.__version__
    assert metadata.get_all("Provides-Extra") == ["compare", "flax", "plot"]
    required = {Requirement(line) for line in metadata.get_all("Requires-Dist") or []}
    extras = {"flax", "matplotlib", "tqdm"}
    assert {r.name for r in required} == {"jax", "optax"} | extras
    assert {r.name for r in required if r.marker is None} == {"jax", "optax"}


def test_no_link_of_the_published_description_is_relative(
    wheel: zipfile.ZipFile,
) -> None:
    description = description_of(wheel)
    prose = re.sub(r"^```.*?^```", "", description, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)]*)\)", prose)
    assert [target for target in targets if not target.startswith("https://")] == []
    assert "https://github.com/google-deepmind/optax" in targets  # others stay


def test_the_published_description_names_what_the_readme_links_to(
    wheel: zipfile.ZipFile, source: Path
) -> None:
    description = description_of(wheel)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(((?!https?:)[^)\s]+)\)", block.sub("", readme))
    assert links
    for link in links:
        assert f"`{link}`" in description or f": {link}*" in description
        assert (source / link.partition("#")[0]).is_file()
    # The substitutions look at the whole text, and code has brackets, too.
    assert block.findall(description) == block.findall(readme)


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_run(source: Path) -> None:
    # The checkout is on the path where it is installed as editable; then a file that is
    # missing from the source distribution would be found there.
    program = (
        "import os, sys, pytest;"
        "root, *arguments = sys.argv[1:];"
        "sys.path = [p for p in sys.path if os.path.realpath(p or '.') != root];"
        "sys.exit(pytest.main(arguments))"
    )

    # All are collected, so that every import of a test is tried; these are run, too.
    some = "test_packaging or test_kpi or links_exist or tables_are"
    command = [sys.executable, "-c", program, str(ROOT.resolve())]
    done = subprocess.run(
        [*command, "-n", "0", "-q", "-p", "no:cacheprovider", "tests", "-k", some],
        cwd=source,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout)


def test_citation_agrees_with_the_package() -> None:
    citation = parsed_yaml("CITATION.cff")
    assert str(citation["version"]) == dtp_jax.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    # The format demands these.
    for key in ("cff-version", "message", "title", "authors"):
        assert citation[key]


def test_hooks_run_the_ruff_that_make_lint_runs() -> None:
    (ruff,) = (r for r in requirements("dev") if r.startswith("ruff"))
    (repository,) = parsed_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["additional_dependencies"] == [ruff]
    entries = [hook["entry"].split()[:2] for hook in repository["hooks"]]
    assert entries == [["ruff", "check"], ["ruff", "format"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_of_make(path: Path) -> None:
    for job in parsed_yaml(str(path.relative_to(ROOT)))["jobs"].values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands
        for command in commands:
            assert re.fullmatch(r"make [a-z-]+", command), command
            assert command.split()[1] in targets()


def test_workflows_check_what_they_should() -> None:
    def runs(name: str) -> set[str]:
        return called_targets((ROOT / name).read_text(encoding="utf-8"))

    assert runs(".github/workflows/checks.yml") == {"lint", "test", "build"}
    assert runs(".github/workflows/weekly.yml") == {"test-slow", "test-newest"}
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands[-2:] == ["make lint", "make test"]
    # YAML reads the key `on` as true.
    assert parsed_yaml(".github/workflows/weekly.yml")[True]["schedule"]


def test_workflows_start_at_the_oldest_python() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    for path, job in (("checks.yml", "test"), ("weekly.yml", "slow")):
        jobs = parsed_yaml(f".github/workflows/{path}")["jobs"]
        assert jobs[job]["strategy"]["matrix"]["python"][0] == oldest


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "docs/benchmarks.md", "examples/README.md"],
)
def test_documents_name_targets_of_make(page: str) -> None:
    called = called_targets((ROOT / page).read_text(encoding="utf-8"))
    assert called
    assert called <= targets()


def requirements(group: str) -> Iterator[str]:
    """The requirements of a dependency group, with those of the groups it includes."""
    for entry in GROUPS[group]:
        if isinstance(entry, dict):
            yield from requirements(entry["include-group"])
        else:
            yield entry


def test_every_dependency_has_an_upper_end() -> None:
    lines = [
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *(
            line
            for lines in PROJECT["project"]["optional-dependencies"].values()
            for line in lines
        ),
        *(line for group in GROUPS for line in requirements(group)),
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines += re.findall(r"^PIP_RANGE := (\S+)$", makefile, re.MULTILINE)
    for line in lines:
        operators = {part.operator for part in Requirement(line).specifier}
        assert operators & {"<", "=="}, line


def test_make_installs_groups_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    stamps = set(re.findall(r"\.venv/\.installed-([a-z]+)", makefile))
    assert stamps == set(GROUPS)


def test_tests_build_with_the_range_of_the_build_system() -> None:
    assert set(PROJECT["build-system"]["requires"]) <= set(requirements("test"))


def test_newest_releases_are_those_of_all_that_users_install() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (upgraded,) = re.findall(r"--upgrade ([a-z][a-z -]+)$", makefile, re.MULTILINE)
    project = PROJECT["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["flax"]]
    assert {Requirement(line).name for line in lines} <= set(upgraded.split())


def test_the_oldest_versions_that_are_tried_are_the_lower_ends() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.split("test-versions:")[1].split("oldest/bin/python -m pytest")[0]
    tried = {name: Version(pin) for name, pin in re.findall(r"(\S+)==(\S+)", recipe)}
    project = PROJECT["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["flax"]]
    lines += requirements("test")
    # What builds the package and reads its files computes nothing.
    names = {"hatchling", "hatch-fancy-pypi-readme", "pyyaml"}
    lowest = {
        each.name: Version(part.version)
        for each in map(Requirement, lines)
        for part in each.specifier
        if part.operator == ">=" and each.name not in names
    }
    # Matplotlib brings it, and calls what it warns of from version 3.3 on.
    tried.pop("pyparsing")
    assert tried == lowest
