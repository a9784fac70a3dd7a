"""Runs that are killed as they touch a file: they end, with the same bits, when they are begun or
resumed again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from attempts import TOY, Attempt, Count

TOUCHES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate")


class Trap:
    """Kills its process at the touch of that number of the run's files; counts them in a file."""

    def __init__(self, at: int | None, folder: Path, tally: Path) -> None:
        self.at, self.folder, self.tally = at, str(folder), tally
        self.touches = 0

    def arm(self) -> None:
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
        if not (writes or event in TOUCHES) or self.folder not in str(arguments[0]):
            return
        self.touches += 1
        if self.touches == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.at is None:
            descriptor = os.open(self.tally, os.O_CREAT | os.O_RDWR)
            os.pwrite(descriptor, str(self.touches).encode(), 0)
            os.close(descriptor)


def train(run: Path, start: list[str], work: Path, before: Callable[[], None] | None = None) -> str:
    """Begins the run, or goes on with it where it can. Returns: what is wrong, or nothing."""
    has_checkpoint = any((run / "checkpoints").glob("step_*"))
    words = [f"resume={run}"] if has_checkpoint else [*start, f"run_dir={run}"]
    outcome = Attempt(words, work, before=before).end()
    return outcome.wrong(also=(-signal.SIGKILL,)) or ("" if outcome.status == 0 else outcome.err)


def ending(run: Path) -> tuple[object, list[object]]:
    """The score and the losses, to the last digit."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    score = json.loads((run / "result.json").read_text())["val_bpb"]
    return score, [(row["step"], row["loss"]) for row in rows if "loss" in row]


def attack(count: Count, number: int, seed: int, corpus: Path, work: Path) -> None:
    draw = random.Random(seed)
    start = [*TOY, f"data.path='{corpus}'", "eval.every=2"]
    whole = work / "whole"
    for way, first in (("a fresh run", []), ("a resumed run", ["train.stop_after=1"])):
        stopped = work / "stopped"
        if first:
            train(stopped, [*start, *first], work)
        tally = work / "tally"
        probe = work / "probe"
        if first:
            shutil.copytree(stopped, probe)
        train(probe, start, work, Trap(None, probe, tally).arm)
        expected = ending(probe)
        shutil.rmtree(probe)
        touches = int(tally.read_text())
        tally.unlink()
        points = sorted(draw.sample(range(1, touches + 1), min(number // 2, touches)))
        for point in points:
            run = whole.with_name(f"killed-{point}")
            if first:
                shutil.copytree(stopped, run)
            train(run, start, work, Trap(point, run, tally).arm)
            problem: str | None = None
            if not (run / "result.json").is_file():
                problem = train(run, start, work) or None
            if problem is None and ending(run) != expected:
                problem = f"it ends with {ending(run)} and not {expected}"
            count.note(f"{way}, touch {point} of {touches}", problem)
            shutil.rmtree(run, ignore_errors=True)
