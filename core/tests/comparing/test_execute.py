"""What a comparison tells while its members train, where there is no terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.comparing.compare import execute
from nanozoo_core.comparing.compare.plan import make_plan
from nanozoo_core.comparing.compare.request import parse


class Process:
    """One that ends after some looks."""

    def __init__(self, looks: int) -> None:
        self.looks, self.returncode = looks, 1

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else self.returncode


@pytest.mark.parametrize(
    ("seconds", "heartbeats", "extent"),
    [(0.0, 3, None), (3600.0, 0, None), (0.0, 3, execute.Extent(9, before=5))],
)
def test_a_pipe_gets_a_line_for_each_run_and_some_between(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    heartbeats: int,
    extent: execute.Extent | None,
) -> None:
    words = ["models=toy", "budget=steps:2", "seeds=1", "data.corpus=text"]
    words += [f"data.path='{corpus}'", f"folder={tmp_path}"]
    members, _ = make_plan(parse(words))

    def start(
        _plan: Path, number: int, member: Any, _jobs: int, _program: execute.Program
    ) -> execute.Running:
        return execute.Running(number, member, Process(2))  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "_start", start)
    monkeypatch.setattr(execute, "POLL_SECONDS", 0)
    monkeypatch.setattr(execute, "HEARTBEAT_SECONDS", seconds)
    execute.run_members(
        tmp_path / "plan.json", members, jobs=1, command="nanozoo compare", extent=extent
    )
    captured = capsys.readouterr()
    *before, last = captured.out.splitlines()
    done = "0 of 1" if extent is None else "5 of 9"
    assert before == [f"{done} runs are done; toy_0 starting"] * heartbeats
    assert last.startswith("toy_0 failed: ")
    assert not captured.err
