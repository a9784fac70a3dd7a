"""From the trials of a round to trainings in processes of their own, and back to how they ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.execute import (
    Extent,
    Program,
    is_done,
    run_members,
    tell_score,
)
from nanozoo_core.comparing.compare.plan import Member, check_folder, write_plan
from nanozoo_core.comparing.tune.candidates import Candidate, Training, report_every
from nanozoo_core.comparing.tune.pruning import GRID
from nanozoo_core.comparing.tune.search import Round
from nanozoo_core.comparing.tune.study import NOTHING_LEARNED, Outcome, Trial
from nanozoo_core.comparing.tune.trial import BARS, END, PRUNED
from nanozoo_core.errors import ConfigError, NanozooError, NonFiniteError
from nanozoo_core.files import read_json, write_json
from nanozoo_core.training.run_folder import RunFolder


class TrialError(NanozooError):
    """A training ended by an error that says nothing of its settings."""


def has_ended(member: Member) -> bool:
    return is_done(member) or member.beside(END).is_file()


def tell(member: Member) -> str | None:
    if is_done(member):
        return tell_score(member)
    end = read_end(member)
    return f"{member.name}: {end['state']}, {end['why']}"


PROGRAM = Program("nanozoo_core.comparing.tune.trial", has_ended, tell)


@dataclass
class Trainings:
    """Trains members for a search, and counts them for the bar of progress."""

    folder: Path
    jobs: int
    command: str
    total: int
    """Of the whole command."""
    before: int = 0

    def train(self, members: Sequence[Member]) -> None:
        """Raises: TrialError for the first that failed; Interrupted."""
        if not members:
            return
        plan = write_plan(self.folder, list(members))
        failures = run_members(
            plan,
            list(members),
            jobs=self.jobs,
            command=self.command,
            program=PROGRAM,
            extent=Extent(self.total, self.before),
        )
        self.before += len(members)
        if failures:
            name, why = next(iter(failures.items()))
            raise TrialError(
                f"{name} failed: {why}; once that is mended, the same command goes on: "
                f"{self.command}"
            )


@dataclass
class Trainer:
    """Trains the trials of a round (`search.Train`)."""

    candidates: Mapping[str, Candidate]
    trainings: Trainings
    seed: int

    def __call__(self, asked: Round) -> dict[str, dict[int, Outcome]]:
        found: dict[str, dict[int, Outcome]] = {name: {} for name in asked}
        begun: dict[tuple[str, int], Training] = {}
        for name, trials in asked.items():
            for trial in trials:
                try:
                    begun[name, trial.number] = self._begin(self.candidates[name], trial)
                except ConfigError as error:
                    found[name][trial.number] = Outcome("refused", None, why=str(error))
        self.trainings.train([training.member for training in begun.values()])
        for (name, number), training in begun.items():
            found[name][number] = read_outcome(training)
        return found

    def _begin(self, candidate: Candidate, trial: Trial) -> Training:
        """Raises: ConfigError for settings that the model refuses."""
        # Scores on the way are for those who may end early; they are up to a third of a training.
        is_watched = bool(candidate.checks)
        training = candidate.member(
            trial.number, trial.point, seed=self.seed, split="tune", reports=is_watched
        )
        member = training.member
        check_folder(member, training.config)
        every = report_every(training.steps)
        bars = {str(number * every): bar for number, bar in trial.bars.items()}
        if not has_ended(member):
            member.folder.parent.mkdir(parents=True, exist_ok=True)
            write_json(member.beside(BARS), bars)
        return training


def read_end(member: Member) -> dict[str, str]:
    return read_json(
        member.beside(END),
        lambda stored: {"state": str(stored["state"]), "why": str(stored["why"])},
        remedy=f"remove it and {member.folder}",
    )


def read_outcome(training: Training) -> Outcome:
    """How a training that has ended did."""
    member = training.member
    run = RunFolder(member.folder)
    rows = run.read_metrics()
    every = report_every(training.steps)
    reports = {}
    for row in rows:
        number, rest = divmod(row["step"], every)
        if row.get("val_bpb") is not None and rest == 0 and 1 <= number < GRID:
            reports[number] = float(row["val_bpb"])
    spent: dict[str, Any] = dict.fromkeys(("tokens", "flops", "seconds"), 0.0)
    if rows:
        spent = {key: float(rows[-1][key]) for key in spent}
    if not is_done(member):
        end = read_end(member)
        if end["state"] == PRUNED:
            return Outcome("pruned", reports[max(reports)], reports, why=end["why"], **spent)
        return Outcome("diverged", NOTHING_LEARNED, reports, why=end["why"], **spent)
    try:
        score = float(run.read_result()["val_bpb"])
    except NonFiniteError as error:
        return Outcome("diverged", NOTHING_LEARNED, reports, why=str(error), **spent)
    return Outcome("complete", score, reports, **spent)
