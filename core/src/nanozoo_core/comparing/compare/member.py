"""One member of a comparison, in a process of its own:
`python -m nanozoo_core.comparing.compare.member`.

    PLAN.json NUMBER    trains the member of that number, goes on with it, or finds it done

A lock keeps two processes off one run: after a kill the old process may still be at work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from nanozoo_core.comparing.compare.plan import Member, is_in_use, read_member
from nanozoo_core.comparing.entrants import compose_values
from nanozoo_core.config import ResolvedConfig, resolve
from nanozoo_core.config.overrides import quoted
from nanozoo_core.errors import CheckpointError
from nanozoo_core.files import write_json
from nanozoo_core.machine.terminal import reported_errors
from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from nanozoo_core.training.trainer import Result

Train = Callable[[ResolvedConfig], "Result"]


def settings_for(member: Member) -> ResolvedConfig | None:
    """What is to be trained: from the start, from the last checkpoint, or (None) nothing, since the
    run is done. A run that died before its first checkpoint begins anew, as every run does."""
    run = RunFolder(member.folder)
    if run.is_finished:
        return None
    if run.has_checkpoint:
        return resolve(run.read_config() | {"resume": str(run)})
    if is_in_use(member) and not member.beside("json").is_file():
        raise CheckpointError(f"{member.folder} holds files that no comparison wrote; remove them")
    recipe = Path(member.source[1]) if member.source[0] == "--config" else None
    overrides = [*member.overrides, f"run_dir={quoted(str(member.folder))}"]
    return compose_values(overrides, model=member.model, recipe=recipe)


def train_member(member: Member, *, by: Train | None = None) -> None:
    """Trains in this process; ends it as `train` does.

    Args: by: what trains by the settings; None is `train`.
    """
    from nanozoo_core.training.trainer import train

    lock = member.beside("lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock), reported_errors():
        settings = settings_for(member)
        if settings is None:
            return
        note = {"settings": member.settings, "command": member.command}
        write_json(member.beside("json"), note)
        result = (by or train)(settings)
    if result.signal is not None:
        sys.exit(128 + result.signal)


if __name__ == "__main__":
    train_member(read_member(Path(sys.argv[1]), int(sys.argv[2])))
