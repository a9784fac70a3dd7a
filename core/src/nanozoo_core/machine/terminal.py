"""What is said to the person at the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nanozoo_core.errors import NanozooError


def say(text: str) -> None:
    """A line on stdout, clear of the progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


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
