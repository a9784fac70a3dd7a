"""A disk that is full, or a kill, from some write on, for all that `nanozoo_core.files` writes."""

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


class Killed(BaseException):
    """Stands for a kill: nothing catches it, and nothing tidies up."""


class FullDisk:
    """Notes the files of all writes; after `room` writes (None: never) the disk is full. A write
    that fails leaves half of its bytes behind, as disks do."""

    def __init__(self, room: int | None = None, *, kills: bool = False) -> None:
        self.room, self.kills = room, kills
        self.writes: list[str] = []

    def write(self, file: IO[bytes], data: Any) -> int:
        name = Path(file.name).name
        if name.startswith(files.UNFINISHED):
            name = name.removeprefix(files.UNFINISHED).partition("-")[2]
        self.writes.append(name)
        if self.room is not None and len(self.writes) > self.room:
            file.write(bytes(data)[: len(bytes(data)) // 2])
            raise Killed if self.kills else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file.write(data)

    def turning_points(self) -> list[int]:
        """The numbers of the writes at which another file begins, and of the last."""
        last = len(self.writes) - 1
        begins = (n for n in range(last) if n == 0 or self.writes[n] != self.writes[n - 1])
        return [*begins, last]


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
def full_disk(room: int | None = None, *, kills: bool = False) -> Iterator[FullDisk]:
    """Inside it there is room for so many writes, and for any number with None. Args: kills: the
    write after them is killed instead, and leaves what was unfinished."""
    disk = FullDisk(room, kills=kills)
    plain = files._opened

    def opened(path: Path, mode: str, *, buffering: int = -1) -> Any:
        return _File(plain(path, mode, buffering=buffering), disk)

    def removed(path: Path) -> None:
        if not kills:
            tidy(path)

    tidy = files._remove_quietly
    with patch.object(files, "_opened", opened), patch.object(files, "_remove_quietly", removed):
        yield disk
