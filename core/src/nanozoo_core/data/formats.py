"""Files of text, of lines of JSON, and of tables with a column of text, plain or compressed.

A file's name says what it is: .jsonl, .ndjson, .parquet and .arrow hold rows, each with a text;
.json does where its lines are objects; any other is one text. Behind these may stand .gz or .zst.
"""

from __future__ import annotations

import gzip
import importlib
import json
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

from nanozoo_core.errors import DataError

BLOCK_BYTES = 1 << 20
ROWS_AT_ONCE = 1024  # of a table
COMPRESSED = (".gz", ".zst")
KINDS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TEXT = "text"
LONGEST_FIRST_LINE = 1 << 20  # of a .json file that is told from text by its first lines


def kind_of(path: Path, text_key: str) -> str:
    """`text`, or the kind of rows that a file holds.

    A .json file has rows where its first two lines each are an object, or its only one is an object
    with the text's key.
    """
    suffix = _suffix(path)
    if suffix == ".json":
        return "JSON lines" if _is_json_lines(path, text_key) else TEXT
    return KINDS.get(suffix, TEXT)


def _suffix(path: Path) -> str:
    *_, inner, last = ("", "", *path.suffixes)
    return (inner if last.lower() in COMPRESSED else last).lower()


def _is_json_lines(path: Path, text_key: str) -> bool:
    with opened(path) as file:
        lines = [file.readline(LONGEST_FIRST_LINE), file.readline(LONGEST_FIRST_LINE)]
    found = [_object(line) for line in lines if line.strip()]
    if not found or None in found:
        return False
    return len(found) == 2 or text_key in (found[0] or {})


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """A file's content, decompressed as it is read.

    Raises: DataError when it cannot be read or is damaged.
    """
    try:
        with path.open("rb") as file:
            yield _unpacked(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile, _DamagedError) as error:
        raise DataError(
            f"data.path: {path} cannot be decompressed ({error}); write or download it again"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"data.path: {path} cannot be read: {reason}") from error


def _unpacked(file: BufferedReader, path: Path) -> BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=file)
    if path.suffix.lower() == ".zst":
        return BufferedReader(_Zstandard(file, path))
    return file


class _DamagedError(Exception):
    pass


class _Zstandard(RawIOBase):
    """The content of a file of zstandard frames; the package's own stream takes a file that is cut
    short for a whole one."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        zstandard = needed("zstandard", path)
        self._file, self._error = file, zstandard.ZstdError
        # As long as the format allows, such as corpora are packed with.
        self._packer = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._packer.decompressobj()
        self._packed, self._content = b"", memoryview(b"")
        self._is_within = False  # whether a frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            packed = self._packed or self._file.read(BLOCK_BYTES)
            if not packed and self._is_within:
                raise _DamagedError("it is cut short")
            if not packed:
                return 0
            if not self._is_within:
                self._frame = self._packer.decompressobj()
            try:
                self._content = memoryview(self._frame.decompress(packed))
            except self._error as error:
                raise _DamagedError(str(error)) from error
            self._packed, self._is_within = self._frame.unused_data, not self._frame.eof
        size = min(len(buffer), len(self._content))
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file of text."""
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


BINARY, NOT_UTF8 = "binary", "not UTF-8"


def text_problem(parts: Iterable[bytes], *, allow_invalid_utf8: bool) -> str | None:
    """Why some content, given in parts, is no text: it is binary (has NUL bytes) or not UTF-8."""
    decoder = getincrementaldecoder("utf-8")()
    is_utf8 = True
    for part in parts:
        if b"\0" in part:
            return BINARY
        try:
            if is_utf8 and not allow_invalid_utf8:
                decoder.decode(part)
        except UnicodeDecodeError:
            is_utf8 = False
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        is_utf8 = False
    return None if is_utf8 else NOT_UTF8


def rows(path: Path, kind: str, text_key: str) -> Iterator[bytes | None]:
    """The text of each row in UTF-8; None for one that has none, or none that is valid.

    Raises: DataError when a row has no such key or another thing under it, or the file is damaged.
    """
    if kind == "JSON lines":
        return _json_rows(path, text_key)
    return _table_rows(path, kind, text_key)


def text_of(row: dict[str, Any], text_key: str, where: object) -> bytes | None:
    """The text of one row, as `rows`. Args: where: the row, for errors."""
    if text_key not in row:
        raise no_text_key(text_key, where, row)
    text = row[text_key]
    if not isinstance(text, str | None):
        raise DataError(
            f"data.text_key={text_key} holds a {type(text).__name__} and no text in {where}; name "
            f"the key of a text, of {_listed(row)}"
        )
    try:
        return (text or "").encode("utf-8") or None
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return None


def no_text_key(text_key: str, where: object, names: Iterable[str]) -> DataError:
    return DataError(
        f"data.text_key={text_key} is not in {where}; name the one that holds the text, of "
        f"{_listed(names)}"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names)) or "none"


def _json_rows(path: Path, text_key: str) -> Iterator[bytes | None]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _object(line)
            if row is None:
                raise DataError(
                    f"data.path: {path} is no JSON object in line {number}; mend or remove the "
                    "line, or name the file .txt to read it as plain text"
                )
            yield text_of(row, text_key, f"line {number} of {path}")


def _table_rows(path: Path, kind: str, text_key: str) -> Iterator[bytes | None]:
    arrow = needed("pyarrow", path)
    try:
        for batch in _batches(path, kind, text_key):
            yield from column_texts(batch.column(text_key), text_key, path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"data.path: {path} cannot be read as {kind}: {error}") from error


def _batches(path: Path, kind: str, text_key: str) -> Iterator[Any]:
    """The record batches of a table, read one by one."""
    if kind == "parquet":
        with needed("pyarrow.parquet", path).ParquetFile(path) as file:
            _require_column(text_key, file.schema_arrow.names, path)
            yield from file.iter_batches(ROWS_AT_ONCE, columns=[text_key])
        return
    arrow = needed("pyarrow", path)
    with arrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            table = arrow.ipc.open_file(source)
            found = map(table.get_batch, range(table.num_record_batches))
        else:
            found = table = arrow.ipc.open_stream(source)
        _require_column(text_key, table.schema.names, path)
        yield from found


def _require_column(text_key: str, names: list[str], path: Path) -> None:
    if text_key not in names:
        raise no_text_key(text_key, f"the columns of {path}", names)


def column_texts(column: Any, text_key: str, where: object) -> Iterator[bytes | None]:
    """The texts of a column of pyarrow, as `rows`."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    types = ("string", "large_string", "string_view", "null")
    if not any(getattr(pyarrow.types, f"is_{name}")(column.type) for name in types):
        raise DataError(
            f"data.text_key={text_key} holds {column.type} and no text in {where}; name a column "
            "of text"
        )
    for text in column.cast(pyarrow.large_binary()).to_pylist():
        is_valid = text and text_problem([text], allow_invalid_utf8=False) is None
        yield text if is_valid else None


def needed(module: str, path: object) -> Any:
    """A module of the extra `formats`. Raises: DataError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(
            f"data.path: {path} needs the package {package}; install nanozoo-core[formats]"
        ) from error
