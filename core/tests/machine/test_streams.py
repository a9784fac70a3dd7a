"""Output that goes on when its terminal is gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest
from tqdm import tqdm

from nanozoo_core.machine.streams import SteadyStream, steady_output
from nanozoo_core.machine.terminal import out, say, warn, write


def broken_pipe() -> TextIO:
    """Whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def poor() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("make", [broken_pipe, closed, poor, lambda: None])
def test_nothing_is_raised_by_what_is_said(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """With and without the guard around a whole command, and by a library's bar."""
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())
    for tell in (say, out, warn, write):
        tell("caf\u00e9 \ud800")
    with steady_output():
        print("caf\u00e9" * 10_000)
        for _ in tqdm(range(3), desc="caf\u00e9", dynamic_ncols=True):
            say("caf\u00e9")
            warn("caf\u00e9")


def test_a_stream_is_itself_in_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = io.StringIO()
    stream = SteadyStream(inner)
    assert stream.write("ab") == 2
    assert stream.getvalue() == "ab"
    assert stream == inner
    assert stream != sys.stderr
    assert not stream.isatty()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_process_whose_reader_is_gone_ends_well(tmp_path: Path) -> None:
    """Also at its very end, where Python flushes once more."""
    script = tmp_path / "script.py"
    script.write_text(
        "from nanozoo_core.machine.terminal import out, reported_errors\n"
        "with reported_errors():\n"
        "    print('first, by a library')\n"
        "    out('second')\n"
        "open('done', 'w').close()\n"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with broken_pipe() as stdout, broken_pipe() as stderr:
        ended = subprocess.run(
            [sys.executable, str(script)],
            stdout=stdout,
            stderr=stderr,
            cwd=tmp_path,
            env=buffered,
            check=False,
        )
        for stream in (stdout, stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    assert ended.returncode == 0
    assert (tmp_path / "done").exists()
