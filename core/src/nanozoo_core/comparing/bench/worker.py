"""A contestant in a process of its own, so that its memory is its own; it works when told to."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.comparing.bench.request import Assignment
from nanozoo_core.errors import NanozooError

if TYPE_CHECKING:
    from nanozoo_core.comparing.bench.contestant import Block, Facts


class WorkerError(NanozooError):
    """A contestant cannot go on, and why."""


@dataclass(frozen=True)
class Failure:
    sentence: str


class Worker:
    """The parent's side. Every method waits for the answer and raises WorkerError on a failure."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        # spawn: a fork would take over torch's threads and a GPU's state.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, assignment), daemon=True)
        self._process.start()
        theirs.close()

    def facts(self) -> Facts:
        """Waits until the model is made and warm."""
        return self._answer()

    def block(self, seconds: float) -> Block:
        return self._ask("block", seconds)

    def peak_memory_bytes(self) -> int:
        return self._ask("peak_memory_bytes")

    def profile(self, path: Path) -> dict[str, float]:
        return self._ask("profile", path)

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def _ask(self, order: str, argument: object = None) -> Any:
        with contextlib.suppress(BrokenPipeError):  # what ended it is told below
            self._connection.send((order, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            status = self._process.exitcode or 0
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            hint = " (out of memory, perhaps)" if status == -signal.SIGKILL else ""
            raise WorkerError(f"its process ended {how}{hint}") from None
        if isinstance(answer, Failure):
            raise WorkerError(answer.sentence)
        return answer


def serve(connection: Connection, assignment: Assignment) -> None:
    """The child's side: answers with its facts, then to every order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler chats; read when torch loads
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            _work(connection, assignment)
        except EOFError:
            raise
        except NanozooError as error:
            connection.send(Failure("; ".join(str(error).splitlines())))
        except Exception as error:  # one contestant's fault ends its part alone
            text = str(error).splitlines()
            connection.send(Failure(f"{type(error).__name__}: {text[0] if text else 'no reason'}"))


def _work(connection: Connection, assignment: Assignment) -> None:
    from nanozoo_core.comparing.bench.contestant import prepare
    from nanozoo_core.machine.device import peak_memory_bytes

    contestant = prepare(assignment)
    connection.send(contestant.facts())
    while True:
        order, argument = connection.recv()
        if order == "block":
            connection.send(contestant.block(argument))
        elif order == "profile":
            connection.send(contestant.profile(argument))
        else:
            connection.send(peak_memory_bytes(contestant.device))
