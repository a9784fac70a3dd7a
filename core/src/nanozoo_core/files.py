"""The one way to write a file, whole or not at all, and to read JSON back checked.

A file is written under another name in the same folder, flushed to disk and renamed, so that a kill
or a full disk leaves what was there before. It gets the rights that the umask leaves, as any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from nanozoo_core.errors import (
    CheckpointError,
    ConfigError,
    NanozooError,
    NonFiniteError,
    WriteError,
)

UNFINISHED = ".writing-"  # before the names of files and folders that are not whole yet

T = TypeVar("T")


# -- writing ------------------------------------------------------------------------------------


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path` when the block ends without an error: for a
    library that opens the file itself.

    Raises: WriteError for whatever the disk refuses; `path` is then as it was.
    """
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        _remove_quietly(unfinished)
        raise WriteError.at(path, error) from error
    except BaseException:
        _remove_quietly(unfinished)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """As `whole_path`, with the stream to write to, flushed to the disk at the end."""
    with whole_path(path) as unfinished, _opened(unfinished, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Raises: WriteError."""
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, lines ending as they are given. Raises: WriteError."""
    write_bytes(path, text.encode("utf-8", errors="surrogatepass"))


def write_json(path: Path, value: object, *, indent: int | None = 2) -> None:
    """Raises: WriteError; NonFiniteError for a number that JSON does not know."""
    write_text(path, to_json(value, path, indent=indent) + "\n")


def to_json(
    value: object, where: object, *, indent: int | None = None, is_compact: bool = False
) -> str:
    """JSON as the standard has it. Args: where: what it is for, in the error.

    Raises: NonFiniteError for NaN and the infinities, which name themselves there.
    """
    try:
        separators = (",", ":") if is_compact else None
        return json.dumps(value, indent=indent, separators=separators, allow_nan=False)
    except ValueError as error:
        found = _not_finite(value)
        if found is None:
            raise
        raise NonFiniteError(f"{where} would hold {found}, which is not finite") from error


def null_if_not_finite(value: Any) -> Any:
    """`value` with null for each number in it that JSON does not know: for measurements that may
    be undefined, such as a mean of nothing. Mappings and sequences are copied."""
    if isinstance(value, dict):
        return {key: null_if_not_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [null_if_not_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonLines:
    """A file that grows by a line of JSON at a time: a line is in it whole, or not at all, unless
    the process is killed as it writes."""

    def __init__(self, path: Path) -> None:
        """Raises: WriteError."""
        self.path = path
        try:
            self._file = _opened(path, "ab", buffering=0)
        except OSError as error:
            raise WriteError.at(path, error) from error

    def append(self, row: object) -> None:
        """Raises: WriteError, NonFiniteError; the file is then as it was."""
        data = memoryview((to_json(row, self.path) + "\n").encode("utf-8"))
        end = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(end)
            raise WriteError.at(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were writing into a folder that no other process writes to."""
    for path in folder.glob(f"{UNFINISHED}*"):
        _remove_quietly(path)


def _opened(path: Path, mode: str, *, buffering: int = -1) -> IO[bytes]:
    """The one place where files are opened for writing."""
    return path.open(mode, buffering)


def _remove_quietly(path: Path) -> None:
    """What cannot be removed is removed with the next `remove_unfinished`."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def _not_finite(value: object, place: str = "") -> str | None:
    """The first number that JSON does not know, as place=value."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place.lstrip('.') or 'a number'}={value}"
    if isinstance(value, dict):
        parts = [(f"{place}.{key}", inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{place}[{number}]", inner) for number, inner in enumerate(value)]
    else:
        return None
    found = (_not_finite(inner, name) for name, inner in parts)
    return next((text for text in found if text is not None), None)


# -- reading ------------------------------------------------------------------------------------


def read_json(
    path: Path,
    parse: Callable[[Any], T],
    *,
    remedy: str,
    error: type[NanozooError] = CheckpointError,
) -> T:
    """What `parse` makes of the JSON in a file.

    Args:
        parse: may raise what a wrong type or a missing key raises.
        remedy: what the user can do about a damaged file, as the end of the sentence.

    Raises: `error` for a file that is missing or damaged; NonFiniteError for one with a number
        that JSON does not know, as a diverged run once wrote.
    """

    def refuse(constant: str) -> None:
        raise NonFiniteError(f"{path} holds {constant}: what wrote it has diverged")

    try:
        return parse(json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse))
    except FileNotFoundError as cause:
        raise error(f"{path} is missing; {remedy}") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}; {remedy}") from cause
    except NanozooError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as cause:
        raise error(f"{path} is damaged ({_damage(cause)}); {remedy}") from cause


def _damage(cause: Exception) -> str:
    """What is wrong with the content of a file, in words."""
    if isinstance(cause, KeyError):
        return f"it lacks {cause.args[0]}"
    if isinstance(cause, UnicodeDecodeError):
        return "it is no UTF-8"
    if isinstance(cause, ValueError):
        return str(cause).splitlines()[0]
    return "its content has another form"


def sha256_of(path: Path) -> str:
    """64 hex digits. Raises: OSError when the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- folders that a command writes to -------------------------------------------------------------

MARK = ".nanozoo"  # names the command whose folder it is


def claim_output(
    folder: Path, owner: str, names: Collection[str] = (), *, setting: str, force: bool
) -> None:
    """Makes `folder` the place where `owner` writes, so that it may write there again.

    Args:
        owner: such as "nanozoo compare".
        names: of the files that it writes; without any, the folder has to be its own altogether.
        setting: what named the folder.
        force: take over a folder that is not its own.

    Raises: ConfigError for a folder in which `owner` would overwrite what it did not write;
        WriteError.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_own = mark.is_file() and mark.read_bytes() == f"{owner}\n".encode()
        found = next((p.name for p in folder.iterdir() if not names or p.name in names), None)
    except OSError as error:
        raise WriteError.at(folder, error) from error
    if found is not None and not is_own and not force:
        raise ConfigError(
            f"{setting}={folder} holds {found}, which {owner} did not write; choose another "
            f"folder, or overwrite what has the same names there with --force"
        )
    write_text(mark, f"{owner}\n")
