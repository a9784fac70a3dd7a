"""How far a long piece of work on text is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from nanozoo_core.machine.terminal import has_bars

Say = Callable[[str], None]

SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


def said_by(say: Say | None) -> Say:
    """What takes a line, in any case."""
    return say or logger.info


class ByteProgress:
    """Counts bytes of text, with MB/s and, where the total is known, the time left.

    Args:
        what: is done, as "reading text".
        total: bytes in all; None where nobody knows.
        say: takes the lines; None shows nothing.
        done: bytes that an earlier call has done.
    """

    def __init__(self, what: str, total: int | None, say: Say | None, *, done: int = 0) -> None:
        self._what, self._total, self._say = what, total, say
        self.done = self._before = done
        self._began = self._last = time.monotonic()
        self._bar: tqdm[Any] = tqdm(
            desc=what,
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=say is None or not has_bars(),
        )

    def update(self, num_bytes: int) -> None:
        """So many more are done."""
        self.done += num_bytes
        if not self._bar.disable:
            self._bar.update(num_bytes)
        elif self._say is not None and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._say(self._line(self._last - self._began))

    def _line(self, elapsed: float) -> str:
        speed = (self.done - self._before) / elapsed
        of = "" if self._total is None else f" of {self._total / 1e6:,.0f}"
        line = f"{self._what}: {self.done / 1e6:,.0f}{of} MB, {speed / 1e6:.1f} MB/s"
        if self._total is None or speed == 0:
            return line
        return f"{line}, {max(0, self._total - self.done) / speed:.0f} s left"

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
