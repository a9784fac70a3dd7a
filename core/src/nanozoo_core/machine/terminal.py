"""What is said to the person at the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from nanozoo_core.errors import NanozooError


def say(text: str) -> None:
    """A line on stdout, clear of the progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def out(text: str) -> None:
    """A line on stdout, where no progress bar is."""
    sys.stdout.write(text + "\n")


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
    """Prints what the user can mend as plain sentences and exits with status 1."""
    try:
        yield
    except NanozooError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":
            for sentence in str(error).splitlines():
                sys.stderr.write(f"error: {sentence}\n")
        sys.exit(1)
