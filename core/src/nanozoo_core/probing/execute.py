"""Trainings of a probe, each in a process of its own, several at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare import execute
from nanozoo_core.errors import CheckpointError
from nanozoo_core.files import read_json
from nanozoo_core.probing.member import Member, write_plan

REMEDY = "remove it, and the same command trains it again"


def finished(member: Member) -> dict[str, Any] | None:
    """What a member's file holds, or None where it is still to be trained.

    Raises: CheckpointError for a damaged file, and for one of other settings.
    """
    if not member.path.is_file():
        return None
    found = read_json(member.path, dict, remedy=REMEDY)
    for key, value in member.settings().items():
        then = found["settings"].get(key)
        if then != (list(value) if isinstance(value, tuple) else value):
            raise CheckpointError(
                f"{member.path} is of {key}={then}, and now {key}={value} is asked for; choose "
                "another folder= or remove it"
            )
    return found


def is_done(member: Member) -> bool:
    return finished(member) is not None


def tell(member: Member) -> str | None:
    """How a training ended."""
    found = finished(member)
    assert found is not None
    clock = ", ended by the clock" if found["ended_by_clock"] else ""
    beside = f"guess {found['guess']:.3f}, chance {found['chance']:.3f}"
    return (
        f"{member.name}: {found['headline']} {found['score']:.3f} ({beside}) after "
        f"{found['steps']} steps in {found['seconds']:.0f} s{clock}"
    )


PROGRAM = execute.Program(
    "nanozoo_core.probing.member",
    is_done,
    tell,
    progress=lambda member: member.name,
    noun="training",
)


def run_members(folder: Path, members: list[Member], *, jobs: int, command: str) -> dict[str, str]:
    """Trains what is not done yet.

    Returns: one sentence for every member that failed, by name; a failure stops nothing else.
    Raises: Interrupted on Ctrl-C, SIGTERM or SIGHUP; CheckpointError for a file of other settings,
        before the plan of what may be at work is written over.
    """
    for member in members:
        finished(member)
    plan = folder / "plan.json"
    write_plan(plan, members)
    return execute.run_members(plan, members, jobs=jobs, command=command, program=PROGRAM)
