"""`nanozoo generate --interactive`: a text that a person and a model write by turns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from nanozoo_core.machine.terminal import out, warn, write

SIGN = "> "  # before a line that is to be typed


def continue_lines(text: str, continuation: Callable[[str, int], Iterator[str]]) -> None:
    """Reads lines from standard input until its end. Each is added to the text, and then what the
    model writes behind it; Ctrl-C stops the model, whose text so far stays.

    Args:
        text: what stands before the first line.
        continuation: of the whole text, and the number of the turn.
    """
    turn = 0
    while (line := _read_line()) is not None:
        text += line
        try:
            for piece in continuation(text, turn):
                text += piece
                write(piece)
        except KeyboardInterrupt:
            pass
        out("")
        turn += 1


def _read_line() -> str | None:
    """Without its line break; None at the end of the input. Ctrl-C forgets what is typed."""
    while True:
        is_typed = sys.stdin.isatty()
        if is_typed:
            write(SIGN, to=sys.stderr)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            warn("")
            continue
        if not line:
            if is_typed:
                warn("")
            return None
        return line.rstrip("\r\n")
