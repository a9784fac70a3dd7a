"""Services that a run also logs to, which may fail but never stop or delay it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

log = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0  # that a service has at the end of a run to take what it was given

Row = tuple[int, dict[str, float]]


class Service(Protocol):
    """What takes rows of numbers, and may take its time or raise anything."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Sink:
    """Gives rows to a service in a thread of its own. A service that fails is left out with one
    warning, and one that hangs is not waited for."""

    def __init__(self, name: str, start: Callable[[], Service]) -> None:
        """Args: start: makes the service, in the thread."""
        self.name = name
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, args=(start,), name=name, daemon=True)
        self._thread.start()

    def log(self, numbers: dict[str, float], step: int) -> None:
        if self._is_open:
            self._rows.put((step, numbers))

    def close(self) -> None:
        """Waits for the rows logged so far, but not for ever."""
        self._rows.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "%s has not taken all that was logged within %g seconds; the run ends without it",
                self.name,
                CLOSE_SECONDS,
            )

    def _work(self, start: Callable[[], Service]) -> None:
        try:
            service = start()
            while (row := self._rows.get()) is not None:
                step, numbers = row
                service.log(numbers, step)
            service.close()
        except (Exception, SystemExit) as error:
            self._is_open = False
            reason = str(error) or type(error).__name__
            log.warning("%s is left out from here on: %s", self.name, reason.splitlines()[0])


class TensorBoard:
    """TensorBoard's file of events in a run's folder."""

    def __init__(self, folder: RunFolder, *, resumed_step: int | None) -> None:
        """Args: resumed_step: what older files hold after this step is hidden."""
        # Not its SummaryWriter: that has a thread that dies on a full disk, and then blocks.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # The name has the second; the process keeps two starts of the same second apart.
        self._writer: EventsWriter = EventsWriter(str(folder.path / "events"), f".{os.getpid()}")
        if resumed_step is not None:
            begins = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=resumed_step + 1, session_log=begins))
        self._writer.flush()

    def log(self, numbers: dict[str, float], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            event = Event(step=step, wall_time=time.time(), summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
