"""The folder of prepared data: built once, whole or not at all, safe to share by processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from nanozoo_core.errors import DataError
from nanozoo_core.files import write_json


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
                f"the cache folder {root} cannot be written ({error.strerror}); set "
                "NANOZOO_CACHE to a folder that can"
            ) from error
        raise


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Returns `folder`, which `build` fills if it is not there.

    The work happens in a temporary folder beside it that is renamed when complete, so a folder that
    exists is whole. A second process waits for the first.
    """
    if folder.is_dir():
        return folder
    with cache_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if folder.is_dir():
                return folder
            # Under the lock, what is left here is a killed process's.
            for left in folder.parent.glob(f".{folder.name}.*.unfinished"):
                shutil.rmtree(left, ignore_errors=True)
            unfinished = Path(
                tempfile.mkdtemp(".unfinished", f".{folder.name}.", dir=folder.parent)
            )
            try:
                build(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def write_record(path: Path, value: object) -> None:
    """Writes a small JSON file of the cache. Raises: DataError."""
    with cache_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value, indent=None)
