"""The study of the headline method runs, and its page holds what it wrote."""

from pathlib import Path

import pytest

from benchmarks.dtp_study import __main__ as study
from benchmarks.dtp_study import single_examples
from benchmarks.dtp_study._harness import DEFAULTS, Size, setting
from dtp_jax import curricula
from examples import _problems

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "dtp.md"
TINY = Size(num_seeds=2, num_steps=40, measurements=2)


@pytest.mark.parametrize("name", study.QUESTIONS)
def test_the_page_holds_the_tables_that_the_study_wrote(name: str) -> None:
    written = (ROOT / "docs" / "dtp_study" / f"{name}.md").read_text(encoding="utf-8")
    begin, end = study.marks(name)
    page = PAGE.read_text(encoding="utf-8")
    assert f"{begin}\n\n{written}\n{end}" in page


def test_writing_into_a_page_leaves_the_rest_and_may_be_repeated() -> None:
    begin, end = study.marks("gamma")
    page = f"before\n\n{begin}\n{end}\n\nafter\n"
    once = study.write_into(page, "gamma", "| a\\1 |")
    assert once == f"before\n\n{begin}\n\n| a\\1 |\n\n{end}\n\nafter\n"
    assert study.write_into(once, "gamma", "| a\\1 |") == once
    with pytest.raises(ValueError, match="begin noise"):
        study.write_into(page, "noise", "")


def test_what_is_not_varied_has_the_default_of_the_link() -> None:
    numbers = setting(1e-3, gamma=0.5)
    assert numbers["gamma"] == 0.5
    for name in ("alpha", "warmup_steps", "ramp_steps", "floor"):
        assert numbers[name] == DEFAULTS[name]


def test_a_question_is_answered_by_a_table() -> None:
    text = single_examples.report(TINY)
    assert text.count("\n| ") == 1 + 1 + len(single_examples.LOSSES)
    assert "nan" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", study.QUESTIONS)
def test_every_question_is_answered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = dict.fromkeys(_problems.SIZES, (200, 100, 100))
    monkeypatch.setattr(_problems, "SIZES", sizes)
    study.main(
        ["--only", name, "--seeds", "2", "--steps", "40", "--out", str(tmp_path)]
    )
    assert "\n| " in (tmp_path / f"{name}.md").read_text(encoding="utf-8")


def test_the_figures_in_the_docstring_of_stages_are_those_of_the_table() -> None:
    written = (ROOT / "docs" / "dtp_study" / "stages.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")] for row in written.split("\n")]
    average = {
        (row[1], row[2]): row[4].split()[0]
        for row in rows
        if len(row) > 5 and row[3] == "equal weights"
    }
    text = " ".join((curricula.stages.__doc__ or "").split())
    for words, key in {
        "equal weights {} % without stages": ("none", "-"),
        "and {} % in stages with easy tasks first": ("easy first", "ramp_steps 0"),
        "a ramp of 400 steps {},": ("easy first", "ramp_steps 400"),
        "``b2=0.95`` {},": ("easy first", "b2 0.95, no ramp"),
        "memory at each join {},": ("easy first", "Adam's memory reset, no ramp"),
        "clipping to norm 1 {}.": ("easy first", "clipped to norm 1, no ramp"),
        "Hard tasks first, {},": ("hard first", "ramp_steps 0"),
    }.items():
        assert words.format(average[key]) in text
