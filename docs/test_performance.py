"""The page of races with other projects has the table that the command writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nanozoo_core.comparing.peers.races import read_races, scripts_folder
from nanozoo_core.comparing.peers.report import HEADER

sys.path.append(str(Path(__file__).parent))
import performance


def test_the_page_has_the_table_of_the_command_with_a_line_for_every_race() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    table = page.partition(performance.BEGIN)[2].partition(performance.END)[0]
    assert f"| {' | '.join(HEADER)} |" in table
    missing = [
        race
        for race in read_races(scripts_folder())
        if f"| {race.model} | {race.peer} |" not in table
    ]
    assert missing == []


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
