"""The folder of prepared data: built once, whole or not at all, safe to share by processes and
users.

What it holds gets the rights that the umask leaves. A folder that its group may write, by `chmod
2775`, is shared: all that is made in it may be read and written as itself, whatever the umask.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from nanozoo_core.errors import DataError, WriteError
from nanozoo_core.files import sha256_of, write_json

SETTLED_NS = 2_000_000_000  # a file that is younger may change once more without a new time

CONTENTS = "contents.json"  # written last into a folder: the sizes of its files


def cache_root() -> Path:
    """$NANOZOO_CACHE, or $XDG_CACHE_HOME/nanozoo, or ~/.cache/nanozoo."""
    if own := os.environ.get("NANOZOO_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nanozoo"


def digest(value: object) -> str:
    """32 hex digits that stand for any JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """Turns the two things that go wrong with a cache folder into one sentence each.

    Raises: DataError when the folder cannot be written or the disk is full.
    """
    try:
        yield
    except OSError as error:
        root = cache_root()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"no space is left for prepared data under {root}; free some, or set "
                "NANOZOO_CACHE to a folder on a larger disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(
                f"the cache folder {root} cannot be written ({error.filename or root}: "
                f"{error.strerror}); set NANOZOO_CACHE to a folder that can, or ask its owner to "
                f"share it: chmod -R g+rwXs {root}"
            ) from error
        raise


def file_digest(path: Path) -> str:
    """The sha256 of a file; one that has not changed since the last call is not read again.

    Raises: OSError when it cannot be read.
    """
    stat = path.stat()
    known = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    record = cache_root() / "digests" / f"{digest(str(path.absolute()))}.json"
    try:
        stored = json.loads(record.read_text(encoding="utf-8"))
        if stored["file"] == known:
            return str(stored["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no record, or a damaged one: the file is read
    found = sha256_of(path)
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        with contextlib.suppress(OSError, DataError):  # without a record it is read again next time
            write_record(record, {"file": known, "sha256": found})
    return found


def build_once(folder: Path, build: Callable[[Path], None], *, goes_on: bool = False) -> Path:
    """Returns `folder`, which `build` fills if it is not there or not whole any more, as when
    something that cleans up old files has swept it.

    The work happens in a temporary folder beside it that is renamed when complete. A second process
    waits for the first.

    Args: goes_on: `build` finds what an interrupted call has left, and goes on from it.
    """
    if is_whole(folder):
        return folder
    with cache_errors():
        make_folder(folder.parent)
        lock = folder.parent / f".{folder.name}.lock"
        with FileLock(lock):
            share(lock)
            if is_whole(folder):
                return folder
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            if not goes_on:  # under the lock, what is left here is a killed process's
                shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(exist_ok=True)
            try:
                build(unfinished)
                write_json(unfinished / CONTENTS, _sizes(unfinished))
                for path in (unfinished, *unfinished.iterdir()):
                    share(path)
                if folder.exists():
                    shutil.rmtree(folder)
                unfinished.rename(folder)
            except BaseException as error:
                if not goes_on or isinstance(error, OSError | WriteError):  # such as a full disk
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder of prepared data holds the files that it was built with, by their sizes."""
    try:
        expected = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return bool(expected == _sizes(folder))
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != CONTENTS}


def write_record(path: Path, value: object) -> None:
    """Writes a small JSON file of the cache. Raises: DataError."""
    with cache_errors():
        make_folder(path.parent)
        write_json(path, value, indent=None)
        share(path)


def make_folder(path: Path) -> None:
    """A folder of the cache, with those above it. Raises: OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        share(path)


def share(path: Path) -> None:
    """Gives what was just made in a shared cache the rights of the cache's own folder. What is
    another user's is left as he has made it."""
    root = cache_root()
    with contextlib.suppress(OSError):
        rights = root.stat().st_mode & 0o777
        if rights & stat.S_IWGRP and path != root:
            path.chmod(path.stat().st_mode | (rights if path.is_dir() else rights & 0o666))
