"""Trainings of a probe, each in a process of its own, several at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanozoo_core.errors import CheckpointError, NanozooError
from nanozoo_core.files import read_json
from nanozoo_core.machine.environment import FORCED
from nanozoo_core.machine.terminal import has_bars, say
from nanozoo_core.probing.member import Member, write_plan
from nanozoo_core.training.signals import ending_as_keyboard_interrupt

POLL_SECONDS = 0.1
TAIL_LINES = 3
REMEDY = "remove it, and the same command trains it again"


class Interrupted(NanozooError):
    """The user stopped the probe; the trainings that had ended are kept."""


@dataclass
class Running:
    member: Member
    process: subprocess.Popen[bytes]


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


def run_members(folder: Path, members: list[Member], *, jobs: int, command: str) -> dict[str, str]:
    """Trains what is not done yet.

    Returns: one sentence for every member that failed, by name; a failure stops nothing else.
    Raises: Interrupted on Ctrl-C, SIGTERM or SIGHUP; CheckpointError for a file of other settings.
    """
    waiting = [(n, m) for n, m in enumerate(members) if finished(m) is None]
    if len(waiting) < len(members):
        say(f"{len(members) - len(waiting)} of {len(members)} trainings are there already")
    plan = folder / "plan.json"
    write_plan(plan, members)
    failures: dict[str, str] = {}
    running: list[Running] = []
    bar = tqdm(
        total=len(members),
        initial=len(members) - len(waiting),
        unit="training",
        smoothing=0,
        disable=not has_bars(),
    )
    try:
        with ending_as_keyboard_interrupt():
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(plan, *waiting.pop(0), jobs))
                time.sleep(POLL_SECONDS)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    _conclude(one, failures)
                    bar.update()
    except KeyboardInterrupt:
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM)
        for one in running:
            one.process.wait()
        raise Interrupted(f"stopped; the same command goes on where it was: {command}") from None
    finally:
        bar.close()
    return failures


def _start(plan: Path, number: int, member: Member, jobs: int) -> Running:
    """A process group of its own: Ctrl-C reaches it through its parent, once."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    member.path.parent.mkdir(parents=True, exist_ok=True)
    with member.path.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanozoo_core.probing.member", str(plan), str(number)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={FORCED: "float32"} | dict(os.environ) | environment,
            start_new_session=True,
        )
    return Running(member, process)


def _conclude(one: Running, failures: dict[str, str]) -> None:
    """Says how a member ended."""
    member = one.member
    found = finished(member)
    if found is None:
        failures[member.name] = _failure(member, one.process.returncode)
        say(f"{member.name} failed: {failures[member.name]}")
        return
    clock = ", ended by the clock" if found["ended_by_clock"] else ""
    beside = f"guess {found['guess']:.3f}, chance {found['chance']:.3f}"
    say(
        f"{member.name}: {found['headline']} {found['score']:.3f} ({beside}) after "
        f"{found['steps']} steps in {found['seconds']:.0f} s{clock}"
    )


def _failure(member: Member, status: int) -> str:
    """The error that the training printed, or its last lines, or what killed it."""
    log = member.path.with_suffix(".log")
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return "; ".join(errors)
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; see {log}"
    return f"{' | '.join(lines[-TAIL_LINES:]) or f'exit status {status}'}; see {log}"
