from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest

from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.terminal import (
    FAULT_STATUS,
    conceal,
    harmless,
    out,
    reported_errors,
    say,
    text_table,
    warn,
)


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


def test_nor_any_other_text(capsys: pytest.CaptureFixture[str]) -> None:
    for tell in (out, say, warn):
        tell("a\x1b]0;x\x07\n\tb")
    with reported_errors():
        logging.getLogger("nanozoo_core.test").warning("w\x1b[2J")
    with pytest.raises(SystemExit), reported_errors():
        raise ConfigError("run_dir=\x1b[2J is wrong")
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert r"error: run_dir=\x1b[2J is wrong" in captured.err


def test_what_nobody_foresaw_is_a_fault_of_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    conceal("secret-word", "${oc.env:WORD}")
    with pytest.raises(SystemExit) as caught, reported_errors():
        raise ZeroDivisionError("secret-word\nby zero")
    assert caught.value.code == FAULT_STATUS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this is a fault of nanozoo, please report it (ZeroDivisionError")
    found = re.search(r"its traceback is in (\S+)$", line)
    assert found
    text = Path(found[1]).read_text()
    assert "in test_what_nobody_foresaw" in text
    assert "secret-word" not in line + text


def test_a_developer_sees_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ZeroDivisionError), reported_errors():
        raise ZeroDivisionError
