"""The page of races with other projects has the table that the command writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nanozoo_core.comparing.peers.races import read_races, scripts_folder
from nanozoo_core.comparing.peers.report import HEADER

sys.path.append(str(Path(__file__).parent))
import performance


def test_the_page_has_the_tables_of_the_command_and_races_that_there_are() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    text = page.partition(performance.BEGIN)[2].partition(performance.END)[0]
    head = f"| {' | '.join(HEADER)} |"
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if " | ".join(row) != head]
    assert head in text
    assert rows
    known = {(f"| {race.model}", race.peer) for race in read_races(scripts_folder())}
    assert {(row[0], row[1]) for row in rows} <= known


def test_what_stands_between_the_marks_is_replaced() -> None:
    page = f"above\n{performance.BEGIN}\nold\n{performance.END}\nbelow\n"
    new = performance.replaced(page, "new")
    assert new == f"above\n{performance.BEGIN}\n\nnew\n\n{performance.END}\nbelow\n"
    assert performance.replaced(new, "new") == new


@pytest.mark.parametrize(
    "page", ["no marks", performance.BEGIN, performance.END + performance.BEGIN]
)
def test_a_page_without_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="must hold"):
        performance.replaced(page, "new")


def test_the_section_names_limits_command_and_commit() -> None:
    record = {
        "command": "nanozoo bench --peers",
        "date": "2026-01-02",
        "git_commit": "abc",
        "machine": {"device": "a cpu", "torch": "2.0"},
        "limits": {"peak_flops": {"float32": 1.5e11}, "read_bytes_per_second": 1.2e10},
        "races": [],
        "not_run": [{"model": "gpt2", "peer": "them", "why": "no clone"}],
    }
    text = performance.section(record)
    assert (
        "One thread of a cpu, torch 2.0: products 150 GFLOP/s in float32; reads 12.0 GB/s." in text
    )
    assert "| gpt2 | them | not run |" in text
    assert "`nanozoo bench --peers`, 2026-01-02, commit abc." in text
