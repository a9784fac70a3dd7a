"""One member of a comparison, in a process of its own:
`python -m nanozoo_core.comparing.compare.member`.

    PLAN.json NUMBER    trains the member of that number, goes on with it, or finds it done

A lock keeps two processes off one run: after a kill the old process may still be at work.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanozoo_core.comparing.compare.plan import Member, read_member
from nanozoo_core.training.run_folder import RunFolder


def arguments_for(member: Member) -> list[str] | None:
    """What `train` is to be told: to start, to go on, or (None) nothing, since the run is done.
    A run that died before its first checkpoint starts again."""
    run = RunFolder(member.folder)
    if run.is_finished:
        return None
    if run.has_checkpoint:
        return [f"resume={member.folder}"]
    shutil.rmtree(member.folder, ignore_errors=True)
    return [*member.arguments, f"run_dir={member.folder}"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on `path`, which the system releases when this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def train_member(member: Member) -> None:
    """Trains in this process; ends it as `train` does."""
    from nanozoo_core.commands import train

    with locked(member.beside("lock")):
        arguments = arguments_for(member)
        if arguments is None:
            return
        note = {"settings": member.settings, "arguments": list(member.arguments)}
        member.beside("json").write_text(json.dumps(note, indent=1) + "\n")
        sys.argv = ["train", *arguments]
        train.main()


if __name__ == "__main__":
    train_member(read_member(Path(sys.argv[1]), int(sys.argv[2])))
