"""Token shards in the .bin layout of llm.c and modded-nanogpt, read by memory map.

A shard is a header of 256 int32 (magic 20240520, version 1, number of tokens, zeros) followed by
the tokens as little-endian uint16. Every document starts with the separator. Shards of larger
vocabularies are read too: llm.c's (magic 20240801, version 7) hold uint32.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from nanozoo_core.data.cache import cache_root, digest, make_folder, share, write_record
from nanozoo_core.errors import DataError
from nanozoo_core.files import whole_file, write_json

MAGIC = 20240520
VERSION = 1
LARGE_MAGIC = 20240801
LAYOUTS = {MAGIC: (VERSION, "<u2"), LARGE_MAGIC: (7, "<u4")}  # magic: version, type of a token
HEADER_BYTES = 256 * 4
TOKENS_PER_SHARD = 100_000_000  # as the published shards
_CHUNK = 1 << 22  # tokens per read of a whole shard: 8 MiB, so that any shard fits in memory

Tokens = npt.NDArray[np.unsignedinteger]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """A checked shard; `tokens` maps it into memory when first asked."""

    path: Path
    num_tokens: int
    dtype: str = "<u2"
    first_byte: int = HEADER_BYTES  # of its tokens

    @property
    def tokens(self) -> Tokens:
        """(num_tokens,) uint16 or uint32, read-only."""
        return _mapped(self.path, self.num_tokens, self.dtype, self.first_byte)

    def chunks(self) -> Iterator[Tokens]:
        """All tokens in order, in parts of `_CHUNK`. Read, not mapped: the pages of a map that is
        read from end to end stay with the process, and are as large as the file."""
        with self.path.open("rb") as file:
            file.seek(self.first_byte)
            for start in range(0, self.num_tokens, _CHUNK):
                num_tokens = min(_CHUNK, self.num_tokens - start)
                yield np.fromfile(file, dtype=self.dtype, count=num_tokens)

    @property
    def identity(self) -> str:
        """Changes whenever the file does: a digest of its path, size, time of change and inode."""
        stat = self.path.stat()
        known = [str(self.path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        layout = (self.dtype, self.first_byte)
        return digest(known if layout == ("<u2", HEADER_BYTES) else [*known, *layout])


@dataclass(frozen=True)
class ShardContent:
    """What one pass over a shard finds out."""

    largest_id: int
    num_bytes: int  # of text, in the given vocabulary
    content: str  # digest of the tokens


# One open file per shard: the largest corpora have more of them than a process may hold open.
@functools.lru_cache(maxsize=256)
def _mapped(path: Path, num_tokens: int, dtype: str, first_byte: int) -> Tokens:
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=first_byte, shape=(num_tokens,))
    return np.asarray(mapped)  # a plain view of it: slicing a memmap object costs twice as much


def open_shard(path: Path) -> Shard:
    """Opens a shard after checking its header against its size.

    Raises: DataError when the file is missing, foreign, of another version, truncated or empty.
    """
    _mapped.cache_clear()  # the file may be another than the one of that name before
    try:
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES), dtype="<i4")
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise DataError(f"the shard {path} cannot be read: {error}") from error
    magic = int(header[0]) if header.size else None
    if magic not in LAYOUTS:
        found = "is empty" if magic is None else f"starts with {magic}"
        raise DataError(
            f"{path} is not a token shard: it {found}, where the .bin format has {MAGIC} or "
            f"{LARGE_MAGIC}"
        )
    expected, dtype = LAYOUTS[magic]
    if header.size < 256:
        raise DataError(f"the shard {path} is truncated: its header has {size} of 1024 bytes")
    version, num_tokens = int(header[1]), int(header[2])
    width = np.dtype(dtype).itemsize
    if version != expected:
        raise DataError(
            f"the shard {path} has version {version}; only version {expected} (uint{8 * width} "
            "tokens) can be read"
        )
    found_tokens = (size - HEADER_BYTES) / width
    if found_tokens != num_tokens:
        state = "is truncated" if found_tokens < num_tokens else "has trailing bytes"
        raise DataError(
            f"the shard {path} {state}: its header promises {num_tokens} tokens and the file "
            f"holds {found_tokens:g}; write or download it again"
        )
    if num_tokens < 1:
        raise DataError(f"the shard {path} holds no tokens")
    return Shard(path, num_tokens, dtype)


def shard_without_header(path: Path, dtype: str) -> Shard | None:
    """A file that holds tokens alone; None where its size is not that of such tokens."""
    _mapped.cache_clear()
    num_tokens, rest = divmod(path.stat().st_size, np.dtype(dtype).itemsize)
    return None if rest else Shard(path, num_tokens, dtype, first_byte=0)


def has_header(path: Path) -> bool:
    """Whether a file begins as a shard does. Raises: DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(4), "little") in LAYOUTS
    except OSError as error:
        raise DataError(f"the shard {path} cannot be read: {error}") from error


def write_shard(path: Path, tokens: npt.ArrayLike) -> None:
    """Writes ids 0 .. 65535 as one shard."""
    tokens = np.asarray(tokens)
    assert tokens.ndim == 1
    assert tokens.size == 0 or (tokens.min() >= 0 and tokens.max() <= 65535)
    with path.open("wb") as file:
        file.write(_header(tokens.size))
        file.write(tokens.astype("<u2").tobytes())


def _header(num_tokens: int) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, num_tokens
    return header.tobytes()


class ShardWriter:
    """Writes a stream of documents as `<name>_000000.bin`, `<name>_000001.bin`, ...

    A shard is closed after the document that reaches `tokens_per_shard`; documents stay whole.
    `contents` are then the digests of the shards by name, as `shard_content` finds them. With
    `about`, which stands for the stream, a note in the folder says how far the writing is, and a
    writer of the same stream goes on from there, behind the first `num_documents`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        tokens_per_shard: int | None = None,
        about: str | None = None,
    ) -> None:
        self.folder, self.name = folder, name
        self.tokens_per_shard = TOKENS_PER_SHARD if tokens_per_shard is None else tokens_per_shard
        self.contents: dict[str, str] = {}
        self.num_documents = 0
        self._about = about
        self._note = folder / f"{name}.progress.json"
        self._num_tokens = 0
        if about is None or not self._take_up():
            self._open()

    @property
    def _path(self) -> Path:
        """The shard that is being written."""
        return self.folder / f"{self.name}_{len(self.contents):06d}.bin"

    def _open(self) -> None:
        self._content = hashlib.blake2b(digest_size=16)
        self._num_tokens = 0
        self._file: IO[bytes] = self._path.open("wb")
        self._file.write(_header(0))

    def _close(self) -> None:
        self._file.seek(0)
        self._file.write(_header(self._num_tokens))
        self._file.close()
        self.contents[Path(self._file.name).name] = self._content.hexdigest()

    def write(self, separator: int, document: npt.NDArray[np.integer]) -> None:
        """Appends the separator and a document."""
        if self._num_tokens >= self.tokens_per_shard:
            self._close()
            self._open()
        for part in (np.array([separator]), document):
            data = part.astype("<u2", copy=False).tobytes()
            self._file.write(data)
            self._content.update(data)
        self._num_tokens += 1 + document.size
        self.num_documents += 1

    def note(self) -> None:
        """Brings what is written so far to the disk, so that a later writer can go on from it.

        Raises: WriteError.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        open_shard = {"tokens": self._num_tokens, "content": self._content.hexdigest()}
        stored = {"about": self._about, "documents": self.num_documents, **open_shard}
        write_json(self._note, stored | {"finished": self.contents})

    def _take_up(self) -> bool:
        """Goes on where the note in the folder stands; False where there is none, or where it is of
        another stream or of shards that are not as they were."""
        try:
            stored = json.loads(self._note.read_text(encoding="utf-8"))
            if stored["about"] != self._about:
                return False
            finished = {str(name): str(content) for name, content in stored["finished"].items()}
            for name, content in finished.items():
                if _written(self.folder / name).hexdigest() != content:
                    return False
            self.contents, self._num_tokens = finished, int(stored["tokens"])
            self._content = _written(self._path, self._num_tokens)
            if self._content.hexdigest() != stored["content"]:
                self.contents = {}
                return False
            self.num_documents = int(stored["documents"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self.contents = {}
            return False
        self._file = self._path.open("r+b")
        self._file.truncate(HEADER_BYTES + 2 * self._num_tokens)
        self._file.seek(0, os.SEEK_END)
        return True

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:  # the note, if there is one, says what of the shard is whole
            self._file.close()
            return
        self._close()
        self._note.unlink(missing_ok=True)


def _written(path: Path, num_tokens: int | None = None) -> hashlib.blake2b:
    """The digest of a shard's first tokens, or of all. Raises: OSError."""
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        left = path.stat().st_size - HEADER_BYTES if num_tokens is None else 2 * num_tokens
        while left > 0 and (data := file.read(min(left, 2 * _CHUNK))):
            content.update(data)
            left -= len(data)
    return content


def shard_content(shard: Shard, token_bytes: Counts) -> ShardContent:
    """Reads a shard once and remembers what it found for as long as the file does not change.

    Args: token_bytes: (V,) int64, text bytes of each id; ids past its end count none.
    """
    size = max(65536, token_bytes.size)
    counts = np.zeros(size + 1, dtype=np.int64)  # the last for ids past its end
    counts[: token_bytes.size] = token_bytes
    vocabulary = hashlib.blake2b(counts[:size].tobytes(), digest_size=8).hexdigest()
    record = cache_root() / "shards" / f"{shard.identity}-{vocabulary}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # what is damaged is made again
        return ShardContent(**json.loads(record.read_text(encoding="utf-8")))
    largest, num_bytes, content = 0, 0, hashlib.blake2b(digest_size=16)
    for chunk in shard.chunks():
        largest = max(largest, int(chunk.max()))
        num_bytes += int(counts[chunk if chunk.itemsize == 2 else np.minimum(chunk, size)].sum())
        content.update(chunk.data)
    found = ShardContent(largest, num_bytes, content.hexdigest())
    with contextlib.suppress(OSError, DataError):  # in a cache of somebody else it stays unknown
        write_record(record, vars(found))
    return found


def document_starts(shard: Shard, separator: int) -> Counts:
    """Positions of all separators in a shard, found once and kept in the cache folder."""
    index = cache_root() / "shards" / f"{shard.identity}-{separator}.npy"
    starts = _kept_starts(index)
    if starts is None:
        parts = [
            number * _CHUNK + np.flatnonzero(chunk == separator)
            for number, chunk in enumerate(shard.chunks())
        ]
        starts = np.concatenate(parts).astype(np.int64)
        with contextlib.suppress(OSError):  # as above
            make_folder(index.parent)
            with whole_file(index) as file:
                np.save(file, starts)
            share(index)
    return starts


def _kept_starts(index: Path) -> Counts | None:
    """What the cache has; None where it has nothing whole."""
    try:
        found = np.load(index, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.int64 and found.ndim == 1 else None


def documents(shard: Shard, separator: int) -> Iterator[Tokens]:
    """The documents of a shard in order, without their separators; empty ones are left out."""
    pending: list[Tokens] = []
    for chunk in shard.chunks():
        begin = 0
        for position in np.flatnonzero(chunk == separator):
            pending.append(chunk[begin:position])
            document = np.concatenate(pending)
            if document.size:
                yield document
            pending, begin = [], int(position) + 1
        pending.append(chunk[begin:])
    document = np.concatenate(pending)
    if document.size:
        yield document
