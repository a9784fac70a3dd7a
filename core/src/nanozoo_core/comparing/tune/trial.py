"""One trial of a search, in a process of its own:
`python -m nanozoo_core.comparing.tune.trial PLAN.json NUMBER`.

It trains as a member of a comparison does. Beside its folder lie what it is told, FOLDER.bars.json,
and how it ended where it has no result, FOLDER.end.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.member import train_member
from nanozoo_core.comparing.compare.plan import Member, read_member
from nanozoo_core.config import ResolvedConfig
from nanozoo_core.errors import NanozooError, NonFiniteError
from nanozoo_core.files import read_json, write_json
from nanozoo_core.machine.terminal import say
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import Result, train

BARS, END = "bars.json", "end.json"
PRUNED, DIVERGED = "pruned", "diverged"


class Pruned(NanozooError):
    """A score on the way was behind its bar: the training ends here."""


class Watch:
    """Is told each row of metrics, and ends the training at the first score behind a bar."""

    def __init__(self, bars: dict[int, float]) -> None:
        """Args: bars: bits per byte by the step after which they are looked at."""
        self.bars = bars

    def __call__(self, row: dict[str, Any]) -> None:
        """Raises: Pruned."""
        bar = self.bars.get(row["step"])
        score = row.get("val_bpb")
        if bar is not None and "val_bpb" in row and (score is None or score > bar):
            raise Pruned(
                f"step {row['step']} scores {score}, and the bar is {bar:.4f} bits per byte"
            )


def read_bars(member: Member) -> dict[int, float]:
    """By step; none where the trial may not end early."""
    path = member.beside(BARS)
    if not path.is_file():
        return {}
    return read_json(
        path,
        lambda stored: {int(step): float(bar) for step, bar in stored.items()},
        remedy="give the command of the search again",
    )


def train_trial(member: Member) -> None:
    """Trains, and notes how it ended where that is no result."""

    def until_the_end(settings: ResolvedConfig) -> Result:
        watch, run = Watch(read_bars(member)), RunFolder(member.folder)
        try:
            if settings.training.resume is not None:  # the verdict may have been lost in a kill
                for row in run.read_metrics():
                    watch(row)
            return train(settings, on_row=watch)
        except Pruned as error:
            end(PRUNED, error)
        except NonFiniteError as error:
            end(DIVERGED, error)
        return Result(member.folder)

    def end(state: str, error: NanozooError) -> None:
        say(f"{state}: {error}")
        write_json(member.beside(END), {"state": state, "why": str(error)})

    if not member.beside(END).is_file():
        train_member(member, by=until_the_end)


if __name__ == "__main__":
    train_trial(read_member(Path(sys.argv[1]), int(sys.argv[2])))
