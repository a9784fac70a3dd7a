"""One cache of several users: who may read and write what is made in it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nanozoo_core.data.cache import build_once, write_record
from nanozoo_core.data.shards import document_starts, open_shard, shard_content, write_shard
from nanozoo_core.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")

NOBODY = 65534
BYTES_OF_TOKENS = np.ones(300, dtype=np.int64)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that other users can reach, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder, "cache")
        root.mkdir()
        monkeypatch.setenv("NANOZOO_CACHE", str(root))
        yield root


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def somebody_else(root: Path) -> Iterator[None]:
    """One who may read the cache but not write it."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    paths = [root, *root.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def fill(folder: Path) -> None:
    write_shard(folder / "train_000000.bin", [256, 1, 2, 256, 3])


def prepare(root: Path, name: str = "one") -> Path:
    """All kinds of what the cache holds."""
    folder = build_once(root / "text" / name, fill)
    shard = open_shard(folder / "train_000000.bin")
    assert shard_content(shard, BYTES_OF_TOKENS).largest_id == 256
    assert document_starts(shard, 256).tolist() == [0, 3]
    write_record(root / "digests" / "x.json", {})
    return folder


def rights(root: Path) -> set[tuple[bool, int]]:
    """Whether it is a folder, and its mode, of everything below."""
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in root.rglob("*")}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_decides(root: Path, mask: int) -> None:
    root.chmod(0o755)
    with umask(mask):
        prepare(root)
    assert rights(root) == {(True, 0o777 & ~mask), (False, 0o666 & ~mask)}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_shared_cache_stays_so_all_the_way_down(root: Path, mask: int) -> None:
    root.chmod(0o2775)
    with umask(mask):
        prepare(root)
    found = rights(root)
    assert {mode & 0o775 for is_folder, mode in found if is_folder} == {0o775}
    assert {mode & 0o664 for is_folder, mode in found if not is_folder} == {0o664}


def test_one_who_may_only_read_takes_what_is_there(root: Path) -> None:
    with umask(0o022):
        folder = build_once(root / "text" / "one", fill)
    with somebody_else(root):
        assert prepare_as_reader(root) == folder
    assert {path.name for path in root.iterdir()} == {"text"}


def prepare_as_reader(root: Path) -> Path:
    folder = build_once(root / "text" / "one", fill)
    shard = open_shard(folder / "train_000000.bin")
    assert shard_content(shard, BYTES_OF_TOKENS).num_bytes == 5
    assert document_starts(shard, 256).tolist() == [0, 3]
    return folder


def test_and_is_told_when_something_is_missing(root: Path) -> None:
    """Also where another's lock is there, which he may not take."""
    with umask(0o022):
        folder = prepare(root)
        next(folder.glob("*.bin")).unlink()
    with somebody_else(root):
        for name in ("one", "two"):
            with pytest.raises(DataError, match=r"cannot be written \(.*Permission denied\)"):
                build_once(root / "text" / name, fill)
