"""Standard output and error that may be lost: a closed terminal, a pipe that nobody reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class SteadyStream:
    """A text stream whose `write` and `flush` never raise.

    What its encoding lacks, such as that of a console of Windows or of LC_ALL=C, becomes a question
    mark. A stream that has been closed swallows what is written to it. Everything else is the
    stream's own.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None where the process has begun without one, or it is lost

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError):  # ValueError: it is closed
                self._lose()
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._lose()

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def _lose(self) -> None:
        """Leads what is still in its buffer nowhere, also at the end of the process."""
        lost, self._stream = self._stream, None
        assert lost is not None
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, lost.fileno())
            os.close(nowhere)

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
def steady_output() -> Iterator[None]:
    """Inside it nothing that writes to stdout or stderr raises: neither we nor a library."""
    previous = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(steady, previous)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = previous
