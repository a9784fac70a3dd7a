"""Standard output and error that may be lost: a closed terminal, a pipe that nobody reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

UNREAD_STATUS = 141  # 128 and SIGPIPE, of which other programs die then


class SteadyStream:
    """A text stream whose `write` and `flush` never raise, but to end the process where that is
    asked for.

    What its encoding lacks, such as that of a console of Windows or of LC_ALL=C, becomes a question
    mark. A stream that has been closed swallows what is written to it. Everything else is the
    stream's own.
    """

    def __init__(self, stream: TextIO | None, *, ends_with_reader: bool = False) -> None:
        self._stream = stream  # None where the process has begun without one, or it is lost
        self._ends_with_reader = ends_with_reader

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def _lose(self, error: Exception) -> None:
        """Leads what is still in its buffer nowhere, also at the end of the process.

        Raises: SystemExit where nobody reads a pipe and that is to end the process.
        """
        lost, self._stream = self._stream, None
        assert lost is not None
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, lost.fileno())
            os.close(nowhere)
        if self._ends_with_reader and isinstance(error, BrokenPipeError):
            raise SystemExit(UNREAD_STATUS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        """tqdm asks whether a bar stands on the stream that a line is written to."""
        return _inner(self) is _inner(other)

    def __hash__(self) -> int:
        return id(_inner(self))


def _inner(stream: object) -> object:
    return _inner(stream._stream) if isinstance(stream, SteadyStream) else stream


def steady(stream: TextIO | None) -> TextIO:
    return cast(TextIO, stream if isinstance(stream, SteadyStream) else SteadyStream(stream))


@contextmanager
def steady_output(*, ends_with_reader: bool = False) -> Iterator[None]:
    """Inside it nothing that writes to stdout or stderr raises: neither we nor a library.

    Args: ends_with_reader: the process ends, as other programs, when stdout is a pipe that nobody
        reads any more.
    """
    previous = sys.stdout, sys.stderr
    stdout = previous[0]
    if ends_with_reader and not isinstance(stdout, SteadyStream):
        stdout = cast(TextIO, SteadyStream(stdout, ends_with_reader=True))
    sys.stdout, sys.stderr = steady(stdout), steady(previous[1])
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = previous
