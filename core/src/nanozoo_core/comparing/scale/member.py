"""One family of runs, in a process of its own: `python -m nanozoo_core.comparing.scale.member`.

    FAMILIES.json NUMBER    trains the family of that number, or goes on with it

The longest run stops where a shorter one begins its decay, and its folder is copied: the shorter
one goes on there as if it had been interrupted. So a run without a copy, as after a kill at the
wrong moment, trains from its start to the same bits, and only takes longer.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.comparing.compare.execute import is_done
from nanozoo_core.comparing.compare.member import train_member
from nanozoo_core.comparing.compare.plan import Member, is_in_use, read_member
from nanozoo_core.comparing.scale.plan import Family
from nanozoo_core.files import read_json, whole_path
from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from nanozoo_core.config import ResolvedConfig
    from nanozoo_core.training.trainer import Result

FAILED = 1  # the status of a run that ended with an error; signals have higher ones
COPIED = ("data.json", "metrics.jsonl", "tokenizer.json")


def train_family(family: Family) -> None:
    """Trains all runs of a family that are not done. A fork that fails, as one that diverges, does
    not stop the others: the status of the process tells."""
    failed = False
    for fork, step in family.forks:
        if not is_done(fork):
            try:
                _branch_off(family.trunk, fork, step)
                train_member(fork)
            except SystemExit as end:
                if end.code != FAILED:
                    raise
                failed = True
    train_member(family.trunk)
    if failed:
        sys.exit(FAILED)


def _branch_off(trunk: Member, fork: Member, step: int) -> None:
    """Gives a fork the beginning that it shares with the trunk, unless it has begun or the trunk
    has lost that checkpoint."""
    if is_in_use(fork):
        return
    if max(RunFolder(trunk.folder).checkpoint_steps(), default=0) < step:
        train_member(trunk, by=partial(_train_until, step))
    if RunFolder(trunk.folder).checkpoint(step).is_dir():
        copy_beginning(RunFolder(trunk.folder), RunFolder(fork.folder), step, fork)


def _train_until(step: int, settings: ResolvedConfig) -> Result:
    """Leaves the run at a step, with its checkpoint."""
    from nanozoo_core.training.trainer import train

    training = settings.training
    stopped = replace(training, train=replace(training.train, stop_after=step))
    return train(replace(settings, training=stopped))


def copy_beginning(trunk: RunFolder, fork: RunFolder, step: int, member: Member) -> None:
    """Makes a fork's folder as its own run would have left it at a step.

    Args: member: of the fork, whose budget its settings name. Raises: WriteError.
    """
    with whole_path(fork.path) as unfinished:
        half = RunFolder(unfinished)
        shutil.copytree(trunk.checkpoint(step), half.checkpoint(step))
        for name in COPIED:
            if (trunk.path / name).is_file():
                shutil.copyfile(trunk.path / name, unfinished / name)
        stored = trunk.read_config()
        steps = member.settings["train"]["max_steps"]
        half.write_config(
            stored | {"train": stored["train"] | {"max_steps": steps, "stop_after": None}}
        )


def read_family(path: Path, number: int) -> Family:
    def family(rows: list[dict[str, Any]]) -> Family:
        plan, row = path.with_name("plan.json"), rows[number]
        forks = tuple((read_member(plan, fork), int(step)) for fork, step in row["forks"])
        return Family(read_member(plan, row["trunk"]), forks)

    return read_json(path, family, remedy="give the command of the ladder again")


if __name__ == "__main__":
    train_family(read_family(Path(sys.argv[1]), int(sys.argv[2])))
