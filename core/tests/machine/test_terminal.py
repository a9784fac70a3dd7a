from __future__ import annotations

import io
import sys

import pytest

from nanozoo_core.machine.terminal import harmless, out, reported_errors, say, text_table, warn


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "caf\u00e9 ??"), ("ascii", "caf? ??")])
def test_a_console_shows_what_it_can(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    for name, tell in (("stdout", out), ("stdout", say), ("stderr", warn)):
        written = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, newline="\n"))
        tell("caf\u00e9 \ufffd\U0001f600")
        assert written.getvalue().decode(encoding) == shown + "\n"


def test_a_terminal_obeys_no_text_of_a_model() -> None:
    assert harmless("a\x1b[2Jb\x07\r\x00\x9b\x7f") == r"a\x1b[2Jb\x07\r\x00\x9b\x7f"
    assert harmless("\u202eevil\u2066") == r"\u202eevil\u2066"
    assert (
        harmless("tab\tline\ncaf\u00e9 \U0001f600\u200d") == "tab\tline\ncaf\u00e9 \U0001f600\u200d"
    )


def test_ctrl_c_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, reported_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_columns_of_a_table_stand_under_each_other() -> None:
    rows = [["name", "size"], ["a", "1"], ["longer", "12345"]]
    assert text_table(rows, left=(0,)).splitlines() == [
        "name     size",
        "a           1",
        "longer  12345",
    ]


def test_a_row_may_end_early() -> None:
    assert text_table([["1", "22", "3"], ["44"]]).splitlines() == [" 1  22  3", "44"]
