from __future__ import annotations

from nanozoo_core.machine.terminal import text_table


def test_columns_of_a_table_stand_under_each_other() -> None:
    rows = [["name", "size"], ["a", "1"], ["longer", "12345"]]
    assert text_table(rows, left=(0,)).splitlines() == [
        "name     size",
        "a           1",
        "longer  12345",
    ]


def test_a_row_may_end_early() -> None:
    assert text_table([["1", "22", "3"], ["44"]]).splitlines() == [" 1  22  3", "44"]
