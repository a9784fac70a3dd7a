"""Every measured figure of a page has a command, and the quick ones are what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import figures

PAGES = [
    figures.ROOT / "README.md",
    figures.ROOT / "core" / "benchmarks" / "peers" / "README.md",
    *sorted(figures.ROOT.glob("packages/*/README.md")),
]
RUNS = [run for file in figures.FILES for run in figures.load(file)]
A_MEASURE = re.compile(r"\d\.\d|\d[ ,]\d{3}\b|\d ?%")


def name_of(path: Path) -> str:
    return str(path.relative_to(figures.ROOT))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_figures_stand_on_their_page_as_their_file_says(run: figures.Run) -> None:
    assert [f.text for f in run.figures if not figures.is_on_page(f)] == []
    for figure in run.figures:
        groups = sum(re.compile(pattern).groups for pattern in figure.find)
        assert groups == len(figure.values) > 0, figure.text
        assert all(figures.read_number(value) for value in figure.values)


@pytest.mark.parametrize("run", [run for run in RUNS if run.quick], ids=lambda run: run.name)
def test_a_quick_command_prints_the_figures(run: figures.Run) -> None:
    assert figures.problems(run, figures.output_of(run.command)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_row_of_a_table_with_a_measure_has_a_figure(page: Path) -> None:
    """Settings, which stand in backticks, and links are no measures."""
    texts = [figures.one_line(f.text) for run in RUNS for f in run.figures if f.page == page]
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    bare = {line: re.sub(r"`[^`]*`|\([^)]*\)|\[[^]]*\]", "", line) for line in lines}
    measured = [line for line, rest in bare.items() if A_MEASURE.search(rest)]
    assert [line for line in measured if not any(text in line for text in texts)] == []


def test_names_are_unique() -> None:
    names = [run.name for run in RUNS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "number", "rounding"),
    [
        ("1.35 M", 1.35e6, 5e3),
        ("124 439 808", 124439808, 0.5),
        ("10,100", 10100, 50),
        ("820", 820, 0.5),
        ("23 %", 0.23, 0.005),
        ("-0.010", -0.01, 5e-4),
        ("2e-5", 2e-5, 5e-6),
        ("19.4 MB", 19.4e6, 5e4),
        ("7.346e+12", 7.346e12, 5e8),
    ],
)
def test_a_number_is_read_with_half_of_its_last_place(
    text: str, number: float, rounding: float
) -> None:
    assert figures.read_number(text) == pytest.approx((number, rounding))


def example(tmp_path: Path, text: str, **changes: object) -> figures.Run:
    (tmp_path / "README.md").write_text("a | b 1.50\nM | c", encoding="utf-8")
    file = tmp_path / "figures.toml"
    file.write_text(
        "[[run]]\nname = 'x'\ncommand = 'echo'\n"
        f"figures = [{{text = '{text}', find = 'is (\\S+)'}}]\n"
    )
    [run] = figures.load(file)
    return replace(run, figures=tuple(replace(f, **changes) for f in run.figures))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("printed", "changes", "agrees"),
    [
        ("it is 1,504,999", {}, True),
        ("it is 1.506e6", {}, False),
        ("it is 1.506e6", {"tolerance": 0.01}, True),
        ("it is 1.7e6", {"tolerance": 0.01}, False),
        ("it is 1.7e6", {"margin": 2e5}, True),
        ("it was 1.5e6", {}, False),
    ],
)
def test_a_printed_value_agrees_within_rounding_and_tolerance(
    tmp_path: Path, printed: str, changes: dict[str, float], agrees: bool
) -> None:
    run = example(tmp_path, "b {1.50 M} |", **changes)
    assert figures.is_on_page(run.figures[0])
    assert (figures.problems(run, printed) == []) is agrees


def test_a_figure_that_the_page_has_otherwise_is_missed(tmp_path: Path) -> None:
    assert not figures.is_on_page(example(tmp_path, "b {1.51 M} |").figures[0])


def test_rewriting_keeps_digits_units_and_lines(tmp_path: Path) -> None:
    run = example(tmp_path, "b {1.50 M} |")
    figures.rewrite(run, "it is 1,734,900")
    assert (tmp_path / "README.md").read_text() == "a | b 1.73\nM | c"
    assert "'b {1.73 M} |'" in run.file.read_text()


@pytest.mark.parametrize(
    ("old", "printed", "new"),
    [
        ("1.35 M", "1402345", "1.40 M"),
        ("10,100", "9876.5", "9,900"),
        ("124 439 808", "1,315,328", "1 315 328"),
        ("+0.226", "-0.1", "-0.100"),
        ("+0.226", "0.1", "+0.100"),
        ("30 %", "0.2549", "25 %"),
        ("2304", "4096", "4096"),
    ],
)
def test_a_value_is_written_in_the_manner_of_the_old_one(old: str, printed: str, new: str) -> None:
    assert figures.like(old, printed) == new


@pytest.mark.parametrize("command", ["nanozoo show no_such_model", "exit 3"])
def test_a_command_that_fails_says_so(command: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        figures.output_of(command)


def test_commands_run_with_the_programs_of_this_environment() -> None:
    shown = figures.output_of("uv run python -c 'import sys; print(sys.executable)'")
    assert Path(shown.strip()).parent == Path(sys.executable).parent
