"""What is said to the person at the terminal, if there still is one: nothing here raises."""

from __future__ import annotations

import os
import signal
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from nanozoo_core.errors import NanozooError
from nanozoo_core.machine.streams import steady, steady_output


def say(text: str) -> None:
    """A line on stdout, clear of the progress bar."""
    from tqdm import tqdm

    stream = steady(sys.stdout)
    tqdm.write(showable(text, stream), file=stream)
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
    stream.write(showable(text, stream))
    stream.flush()


def showable(text: str, stream: TextIO) -> str:
    """A text with a question mark for what the stream's encoding lacks, such as that of a console
    of Windows."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


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


@contextmanager
def reported_errors() -> Iterator[None]:
    """Prints what the user can mend as plain sentences and exits with status 1; on Ctrl-C with one
    and status 130. Inside it a lost terminal stops nothing."""
    with steady_output():
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
            warn(f"error{'' if error.rank is None else f' on rank {error.rank}'}: {sentence}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        from nanozoo_core.machine.device import is_out_of_memory

        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not is_out_of_memory(error):
            raise
        warn(
            f"error: out of memory; nanozoo evaluate takes a smaller batch_tokens=N, and --device "
            f"names another device ({first_line(error)})"
        )
        sys.exit(1)


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
