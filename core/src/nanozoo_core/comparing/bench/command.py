"""`nanozoo bench`, from its arguments to its tables: models take turns, block after block."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from nanozoo_core.comparing.bench.report import FILES, Entry, describe, write
from nanozoo_core.comparing.bench.request import Request, parse
from nanozoo_core.comparing.bench.worker import Worker, WorkerError
from nanozoo_core.errors import NanozooError
from nanozoo_core.files import claim_output
from nanozoo_core.machine.terminal import has_bars, say
from nanozoo_core.training import records

if TYPE_CHECKING:
    from nanozoo_core.comparing.bench.contestant import Block, Facts


def bench(words: Sequence[str], *, profile: bool = False, force: bool = False) -> None:
    """Measures what the request asks for and reports on it.

    Raises: ConfigError, CheckpointError before anything runs; NanozooError at the end when a model
        failed, the others being reported all the same, and when the user stops it.
    """
    request = parse(words)
    claim_output(request.folder, "nanozoo bench", FILES, setting="folder", force=force)
    entries: list[Entry] = []
    failures: dict[str, str] = {}
    try:
        for task in request.tasks:
            entries += _race(request, task, failures, profile=profile)
    except KeyboardInterrupt:
        raise NanozooError("stopped before the end; nothing was written") from None
    if entries:
        _report(request, entries, failures, profile=profile)
    if failures:
        raise NanozooError("\n".join(f"{name}: {text}" for name, text in failures.items()))


def _report(
    request: Request, entries: list[Entry], failures: dict[str, str], *, profile: bool
) -> None:
    import torch

    about = {
        "command": shlex.join(["nanozoo", "bench", *request.words]),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "git_commit": records.git_commit(),
        "seconds": request.seconds,
        "rounds": request.rounds,
    }
    path = write(request, entries, failures, about)
    say(f"{describe(request, entries)}\n\nwritten to {path}")
    if profile:
        say(f"traces for https://ui.perfetto.dev: {request.folder}/*.trace.json")


@dataclass
class Racer:
    worker: Worker
    facts: Facts
    blocks: list[Block] = field(default_factory=list)


def _race(request: Request, task: str, failures: dict[str, str], *, profile: bool) -> list[Entry]:
    """All models of one task: made one after the other, then a block each, round by round."""
    assignments = request.of(task)
    racers: list[Racer] = []
    entries: list[Entry] = []
    total = len(assignments) * (request.rounds + 1)
    with (
        ExitStack() as stack,
        tqdm(total=total, desc=task, leave=False, disable=not has_bars()) as bar,
    ):
        for assignment in assignments:
            bar.set_postfix_str(f"{assignment.label} starts")
            worker = Worker(assignment)
            stack.callback(worker.close)
            with _noted(worker, failures):
                racers.append(Racer(worker, worker.facts()))
            bar.update()
        for number in range(request.rounds):
            for racer in _order([r for r in racers if len(r.blocks) == number], number):
                bar.set_postfix_str(racer.worker.assignment.label)
                with _noted(racer.worker, failures):
                    racer.blocks.append(racer.worker.block(request.seconds / request.rounds))
                bar.update()
        for racer in racers:
            if len(racer.blocks) == request.rounds:
                with _noted(racer.worker, failures):
                    entries.append(_conclude(request, racer, profile=profile))
    return entries


@contextmanager
def _noted(worker: Worker, failures: dict[str, str]) -> Iterator[None]:
    """A worker that fails is out of the race, and the others go on."""
    try:
        yield
    except WorkerError as error:
        failures[f"{worker.assignment.label}, {worker.assignment.task}"] = str(error)
        worker.close()


def _order(racers: list[Racer], number: int) -> list[Racer]:
    """Forward and backward in turn, so that no model always follows the same one."""
    return racers if number % 2 == 0 else racers[::-1]


def _conclude(request: Request, racer: Racer, *, profile: bool) -> Entry:
    assignment = racer.worker.assignment
    memory = racer.worker.peak_memory_bytes()
    parts: dict[str, float] = {}
    if profile:  # after the memory was read: a trace takes some itself
        name = f"{assignment.label}_{assignment.task}.trace.json"
        parts = racer.worker.profile(request.folder / name)
    return Entry(assignment, racer.facts, tuple(racer.blocks), memory, parts)
