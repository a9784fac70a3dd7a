"""What is said to the person at the terminal, if there still is one: nothing here raises."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.streams import steady, steady_output

_is_silent = False


@contextmanager
def silence() -> Iterator[None]:
    """Inside it nothing is said and no bar shown; what `out` and `warn` tell still is."""
    global _is_silent
    before, _is_silent = _is_silent, True
    try:
        yield
    finally:
        _is_silent = before


def has_bars() -> bool:
    """Whether progress is shown by bars, which move the cursor of a terminal; where the output goes
    to a file or a pipe it is told in lines, or not at all."""
    streams = (steady(sys.stdout), steady(sys.stderr))
    return not _is_silent and all(stream.isatty() for stream in streams)


def say(text: str) -> None:
    """A line on stdout, clear of the progress bar, about what a command does; `out` tells what it
    has been asked for."""
    if _is_silent:
        return
    from tqdm import tqdm

    stream = steady(sys.stdout)
    tqdm.write(harmless(text), file=stream)
    stream.flush()


def out(text: str) -> None:
    """A line on stdout, where no progress bar is."""
    write(text + "\n")


def warn(text: str) -> None:
    """A line on stderr."""
    write(text + "\n", to=sys.stderr)


def write(text: str, *, to: TextIO | None = None) -> None:
    """A text, on stdout unless told otherwise, at once."""
    stream = steady(sys.stdout if to is None else to)
    stream.write(harmless(text))
    stream.flush()


def harmless(text: str) -> str:
    """A text that nobody typed, such as a model's, with its control characters written out: a
    terminal would obey them, as well as marks that turn the direction of what follows."""
    return "".join(map(_written_out, text))


TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def _written_out(character: str) -> str:
    is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    if is_control or unicodedata.bidirectional(character) in TURNING:
        return character.encode("unicode_escape").decode("ascii")
    return character


def text_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Rows of cells as lines with the columns under each other, to the right but for those in
    `left`; a row may be shorter than others."""
    num_columns = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(num_columns)]

    def padded(column: int, cell: str) -> str:
        return cell.ljust(widths[column]) if column in left else cell.rjust(widths[column])

    return "\n".join(
        "  ".join(padded(column, cell) for column, cell in enumerate(row)).rstrip() for row in rows
    )


FAULT_STATUS = 70  # EX_SOFTWARE of sysexits.h
SHORTEST_SECRET = 4  # letters: what is shorter stands in too many words

_concealed: dict[str, str] = {}


def conceal(text: str, written: str) -> None:
    """From now on errors show `written` for `text`, such as ${oc.env:TOKEN} for what is in it."""
    if len(text) >= SHORTEST_SECRET:
        _concealed[text] = written


def concealed(text: str) -> str:
    """A text in which nothing stands that is to be concealed."""
    for secret, written in _concealed.items():
        text = text.replace(secret, written)
    return text


class _HarmlessFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(concealed(super().format(record)))


@contextmanager
def reported_errors(*, ends_with_reader: bool = False) -> Iterator[None]:
    """Prints what the user can mend as plain sentences and exits with status 1; on Ctrl-C with one
    and status 130; any other exception is a fault of ours, of which the traceback goes to a file,
    and the status is 70. Inside it a lost terminal stops nothing. A pipe that nobody reads, as
    behind `| head`, ends the process with status 141, as other programs, but only with
    `ends_with_reader`."""
    if logging.lastResort is not None:  # what prints our warnings
        logging.lastResort.setFormatter(_HarmlessFormatter())
    with steady_output(ends_with_reader=ends_with_reader):
        yield from _reported()


def is_main_process() -> bool:
    """Whether this is rank 0, or alone: before the processes of a run know each other all of them
    meet the same mistakes."""
    return os.environ.get("RANK", "0") == "0"


def _reported() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        warn("stopped by Ctrl-C")
        sys.exit(128 + signal.SIGINT)
    except NanozooError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sentences = str(error).splitlines() if error.unsaid is None else error.unsaid
        for sentence in sentences if error.rank is not None or is_main_process() else []:
            where = "" if error.rank is None else f" on rank {error.rank}"
            warn(f"error{where}: {concealed(sentence)}")
        sys.exit(1)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        from nanozoo_core.machine.device import is_out_of_memory, out_of_memory

        if is_out_of_memory(error):
            warn(f"error: {out_of_memory(error)}")
            sys.exit(1)
        warn(f"error: {_fault(error)}")
        sys.exit(FAULT_STATUS)


def _fault(error: Exception) -> str:
    """Notes an exception that nobody foresaw, and returns what is said of it."""
    lines = str(error).splitlines()
    what = concealed(f"{type(error).__name__}: {lines[0] if lines else 'without a reason'}")
    details = "".join(traceback.format_exception(error))
    about = f"Python {platform.python_version()}, {platform.platform()}"
    try:
        descriptor, name = tempfile.mkstemp(".log", "nanozoo-fault-")
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            file.write(concealed(f"{sys.argv}\n{about}\n\n{details}"))
        where = f"its traceback is in {name}"
    except OSError:
        where = "HYDRA_FULL_ERROR=1 shows its traceback"
    return f"this is a fault of nanozoo, please report it ({what}); {where}"
