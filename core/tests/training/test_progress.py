"""What a run tells of its progress where there is no terminal, and on one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.commands.train import parse, run
from nanozoo_core.commands.train_output import Output
from nanozoo_core.config import compose_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine import terminal
from nanozoo_core.training import finish, records
from nanozoo_core.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda _: None)


def train(corpus: Path, folder: Path, output: Output, *changes: str) -> RunFolder:
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += ["log.tensorboard=false", f"run_dir='{folder}'", "eval.bytes=300", *changes]
    run(compose_config(words), output=output)
    return RunFolder(folder)


def test_a_pipe_gets_a_line_for_each_row(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, tmp_path / "run", "words", "train.log_every=3")
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err
    assert not captured.err
    number = r"[\d.,]+"
    told = (
        rf"step (\d)/8: loss {number}, {number} bits per byte, {number} tokens/s, "
        rf"epoch {number}, {number} \w+ left"
    )
    lines = [re.fullmatch(told, line) for line in captured.out.splitlines()]
    assert [line[1] for line in lines if line] == ["1", "3", "6", "8"]


class Terminal:
    """A stream that is one."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_and_no_such_lines(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    train(corpus, tmp_path / "run", "words")
    assert "validating" in err.text
    assert "8/8" in err.text
    assert "tokens/s, epoch" not in out.text


def test_quiet_tells_the_result_alone(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(corpus, tmp_path / "run", "quiet")
    captured = capsys.readouterr()
    assert captured.out == f"{folder}: {folder.read_result()['val_bpb']:.4f} bits per byte\n"
    assert not captured.err
    assert not terminal._is_silent


def test_json_tells_the_rows_and_the_result(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(corpus, tmp_path / "run", "json")
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [*folder.read_metrics(), {"run": str(folder), **folder.read_result()}]


def test_json_tells_where_a_run_stopped(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(corpus, tmp_path / "run", "json", "train.stop_after=3")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"run": str(folder), "stopped_at_step": 3, "signal": None}


def test_only_one_way_of_output_is_taken() -> None:
    assert parse(["--json", "model=toy"]).output == "json"
    assert parse(["--json"]).flags == []
    with pytest.raises(ConfigError, match="exclude each other"):
        parse(["--json", "--quiet"])


def test_rows_have_the_speed_since_the_last_and_the_epoch(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run", "quiet", "train.stop_after=5")
    run(folder.read_config() | {"resume": str(folder)}, output="quiet")
    rows = [row for row in folder.read_metrics() if "loss" in row]
    before: dict[str, Any] = {"tokens": 0, "seconds": 0.0}
    for row in rows:
        tokens, seconds = row["tokens"] - before["tokens"], row["seconds"] - before["seconds"]
        assert row["tokens_per_second"] == pytest.approx(tokens / seconds)
        before = row
    result = folder.read_result()
    assert rows[-1]["epoch"] == result["epochs"]
    assert [row["epoch"] / result["epochs"] for row in rows] == pytest.approx(
        [row["step"] / 8 for row in rows]
    )
