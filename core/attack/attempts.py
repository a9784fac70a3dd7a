"""One attempt: a command in a forked process, with a time limit, and what is wrong with its end."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

TOY = (
    *("--model", "toy", "data.corpus=text", "log.tensorboard=false", "train.max_steps=3"),
    *("eval.bytes=300", "checkpoint.every=1", "data.tokenizer=bpe", "data.vocab_size=280"),
)
LIMIT_SECONDS = 60
T = TypeVar("T")
# Words of the libraries underneath, which say nothing to a user.
JARGON = re.compile(
    r"Lexer|NoViableAlt|mismatched input|token recognition|extraneous input|DictConfig|ListConfig"
    r"|NoneType|KeyError raised"
)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; `status` is None for one that had to be stopped."""

    status: int | None
    out: str
    err: str

    def wrong(self, *, also: Sequence[int] = (), is_rank: bool = False) -> str | None:
        """What no command may do; None where all is well.

        Args: also: statuses that are well. is_rank: another process may say it.
        """
        if self.status is None:
            return f"still at work after {LIMIT_SECONDS} s"
        if "Traceback (most recent call last)" in self.err:
            return f"a traceback: {self.err.splitlines()[-1]}"
        if "this is a fault of nanozoo" in self.err:
            return self.err.splitlines()[-1]
        if self.status not in (0, 1, 2, *also):
            return f"status {self.status}"
        if self.status == 1 and not is_rank and "error: " not in self.err:
            return "it failed without a sentence"
        if found := JARGON.search(self.err):
            return f"it speaks of {found[0]}: {self.err.strip()}"
        return None


class Attempt:
    """A command at work in a process of its own."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        program: str = "train",
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Args: before: called in the process, such as to arm a trap."""
        Attempt.number += 1
        self._files = [folder / f".said-{Attempt.number}.{name}" for name in ("out", "err")]
        sys.stdout.flush()
        self._process = os.fork()
        if self._process == 0:
            self._work(list(words), folder, program, before, environment or {})
        self._started = time.monotonic()

    number = 0

    def _work(
        self,
        words: list[str],
        folder: Path,
        program: str,
        before: Callable[[], None] | None,
        environment: Mapping[str, str],
    ) -> None:
        """The process's whole life: it must never return to the parent's code."""
        status = 99
        try:
            for descriptor, path in zip((1, 2), self._files, strict=True):
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
            os.chdir(folder)
            os.environ.update(environment)
            sys.argv = [program, *words]
            if before is not None:
                before()
            _call(program, words)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def end(self) -> Outcome:
        """Waits for it, up to the limit."""
        status: int | None = None
        while time.monotonic() - self._started < LIMIT_SECONDS:
            ended, found = os.waitpid(self._process, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(found)
                break
            time.sleep(0.01)
        else:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        out, err = (path.read_text(errors="replace") for path in self._files)
        for path in self._files:
            path.unlink()
        return Outcome(status, out, err)


def _call(program: str, words: list[str]) -> None:
    from nanozoo_core.commands import cli, train

    if program == "train":
        train.main()
    else:
        cli.main(words)


def at_once(starts: Iterable[tuple[T, Callable[[], Attempt]]]) -> Iterator[tuple[T, Outcome]]:
    """Keeps as many attempts at work as there are cores; each outcome in order."""
    waiting: deque[tuple[T, Attempt]] = deque()
    for what, start in starts:
        waiting.append((what, start()))
        if len(waiting) >= (os.cpu_count() or 1):
            done, one = waiting.popleft()
            yield done, one.end()
    for what, one in waiting:
        yield what, one.end()


def attempt(words: Sequence[str], folder: Path, *, program: str = "train") -> Outcome:
    return Attempt(words, folder, program=program).end()


class OutOfTimeError(Exception):
    """The time of a kind of attempts is over before all were made."""


@dataclass
class Count:
    """Attempts of one kind, which end at a time of `time.monotonic`."""

    kind: str
    deadline: float
    attempts: int = 0
    wrong: int = 0

    def note(self, what: object, problem: str | None) -> None:
        """Counts an attempt, and says what was wrong with it. Raises: OutOfTimeError."""
        self.attempts += 1
        if problem is not None:
            self.wrong += 1
            print(f"WRONG {self.kind}: {what}: {problem[:400]}", flush=True)
        if time.monotonic() > self.deadline:
            raise OutOfTimeError
