"""A disk that is full from some write on, for all that is written by `nanozoo_core.files`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from unittest.mock import patch

from nanozoo_core import files


class FullDisk:
    """Counts the writes; from number `room` on (None: never) the disk is full. A write that fails
    leaves half of its bytes behind, as disks do."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.num_writes = 0

    def write(self, file: IO[bytes], data: Any) -> int:
        self.num_writes += 1
        if self.room is not None and self.num_writes > self.room:
            file.write(bytes(data)[: len(bytes(data)) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file.write(data)


class _File:
    def __init__(self, file: IO[bytes], disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        return self._disk.write(self._file, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


@contextmanager
def full_disk(room: int | None = None) -> Iterator[FullDisk]:
    """Inside it there is room for so many writes; for any number, which are counted, with None."""
    disk = FullDisk(room)
    plain = files._opened

    def opened(path: Path, mode: str, *, buffering: int = -1) -> Any:
        return _File(plain(path, mode, buffering=buffering), disk)

    with patch.object(files, "_opened", opened):
        yield disk
