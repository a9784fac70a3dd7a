"""Running the members: each in a process of its own, several at a time, or through Hydra's
launchers on a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from nanozoo_core.comparing.compare.plan import Member as Run
from nanozoo_core.errors import NanozooError, NonFiniteError
from nanozoo_core.machine.environment import FORCED
from nanozoo_core.machine.terminal import has_bars, say
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.signals import ending_as_keyboard_interrupt

POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 60.0  # between two lines about what runs, where the output is no terminal
TAIL_LINES = 3


class Interrupted(NanozooError):
    """The user stopped the command; what ran keeps what it has written."""


class Member(Protocol):
    """What a process of its own trains."""

    @property
    def name(self) -> str: ...

    def beside(self, suffix: str, /) -> Path:
        """A file that belongs to it, such as its log."""
        ...


def is_done(member: Run) -> bool:
    return RunFolder(member.folder).is_finished


def tell_score(member: Run) -> str | None:
    """What a run that is done came to; None where the report says it."""
    try:
        result = RunFolder(member.folder).read_result()
    except NonFiniteError:
        return None
    sign = "<= " if result["val_bound"] == "upper" else ""
    return (
        f"{member.name}: {sign}{result['val_bpb']:.4f} bits per byte, "
        f"{result['train_bytes'] / 1e6:.1f} MB in {result['train_seconds']:.0f} s"
    )


def tell_step(member: Run) -> str:
    """Its name and the last step it logged."""
    rows = RunFolder(member.folder).read_metrics()
    return f"{member.name} " + (f"at step {rows[-1]['step']}" if rows else "starting")


@dataclass(frozen=True)
class Program:
    """The module that trains a member in a process of its own; how its end is known, and told; what
    is said of it while it works; and what such a training is called."""

    module: str = "nanozoo_core.comparing.compare.member"
    is_done: Callable[[Any], bool] = is_done
    tell: Callable[[Any], str | None] = tell_score
    progress: Callable[[Any], str] = tell_step
    noun: str = "run"


COMPARISON = Program()


@dataclass(frozen=True)
class Extent:
    """Of a command that calls `run_members` several times: how many runs it has in all, and how
    many of them are done or begun by earlier calls."""

    total: int
    before: int = 0


@dataclass
class Running:
    number: int
    member: Member
    process: subprocess.Popen[bytes]


def run_members(
    plan: Path,
    members: Sequence[Member],
    *,
    jobs: int,
    command: str,
    program: Program = COMPARISON,
    extent: Extent | None = None,
) -> dict[str, str]:
    """Trains what is not done yet, `jobs` at a time, each with its share of the CPU's threads.

    Args: extent: of all calls, where there are several; None are these members alone.

    Returns: one sentence for every member that failed, by name; a failure stops nothing else.
    Raises: Interrupted on Ctrl-C, SIGTERM or SIGHUP, after the trainings have written checkpoints.
    """
    failures: dict[str, str] = {}
    waiting = [(n, m) for n, m in enumerate(members) if not program.is_done(m)]
    if extent is None and len(waiting) < len(members):
        say(f"{len(members) - len(waiting)} of {len(members)} {program.noun}s are there already")
    running: list[Running] = []
    extent = extent or Extent(len(members))
    bar = tqdm(
        total=extent.total,
        initial=extent.before + len(members) - len(waiting),
        unit=program.noun,
        smoothing=0,
        disable=not has_bars(),
    )
    said = time.monotonic()
    try:
        with ending_as_keyboard_interrupt():
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(plan, *waiting.pop(0), jobs, program))
                time.sleep(POLL_SECONDS)
                if not bar.disable:
                    bar.set_postfix_str(_at_work(running, program))
                elif time.monotonic() - said >= HEARTBEAT_SECONDS:
                    said = time.monotonic()
                    done = extent.before + len(members) - len(waiting) - len(running)
                    at_work = _at_work(running, program)
                    say(f"{done} of {extent.total} {program.noun}s are done; {at_work}")
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    _conclude(one, failures, program)
                    bar.update()
    except KeyboardInterrupt:
        _stop(running)
        raise Interrupted(f"stopped; the same command goes on where it was: {command}") from None
    finally:
        bar.close()
    return failures


def _start(plan: Path, number: int, member: Member, jobs: int, program: Program) -> Running:
    """A process group of its own: Ctrl-C reaches it through `_stop`, once."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    process = start_member(
        plan, number, member, environment, program=program, start_new_session=True
    )
    return Running(number, member, process)


def start_member(
    plan: Path,
    number: int,
    member: Member,
    environment: dict[str, str] | None = None,
    *,
    program: Program = COMPARISON,
    start_new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """A process that trains one member of a plan and writes what it says beside the run.

    What `dtype=auto` would measure for each entrant is float32 for all, unless it is decided.
    """
    log = member.beside("log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", program.module, str(plan), str(number)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={FORCED: "float32"} | dict(os.environ) | (environment or {}),
            start_new_session=start_new_session,
        )


def _stop(running: list[Running]) -> None:
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGTERM)
    for one in running:
        one.process.wait()


def _at_work(running: Sequence[Running], program: Program) -> str:
    return ", ".join(program.progress(one.member) for one in running)


def _conclude(one: Running, failures: dict[str, str], program: Program) -> None:
    """Says how a member ended."""
    member, name = one.member, one.member.name
    if not program.is_done(member):
        failures[name] = failure_sentence(member, one.process.returncode)
        say(f"{name} failed: {failures[name]}")
        return
    text = program.tell(member)
    if text is not None:
        say(text)


def failure_sentence(member: Member, status: int) -> str:
    """The error that the training printed, or its last lines, or what killed it."""
    log = member.beside("log")
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [part.strip() for line in text.splitlines() for part in line.split("\r")]
    lines = [line for line in lines if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return "; ".join(errors)
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; see {log}"
    return f"{' | '.join(lines[-TAIL_LINES:]) or f'exit status {status}'}; see {log}"
