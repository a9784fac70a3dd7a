"""Corpora of text: the standard library's source, or the user's own files.

A corpus is a sequence of documents, each some bytes. Which documents are for validation depends
on their content alone, so a document never changes sides when others come or go.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.data.cache import digest
from nanozoo_core.errors import DataError

# Tests, what pip and distributions install, and tables that a program wrote.
_STDLIB_LEFT_OUT = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings",
    "pydoc_data", "_bundled", "lib-dynload",
}  # fmt: skip

FEW_DOCUMENTS = 20
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class TextCorpus:
    """Files of text, each a document.

    Fewer than 20 files are cut at line boundaries into pieces (a hundredth of the corpus, 64 KiB at
    most), which are then the documents: otherwise the split by document would be left with nothing,
    or with far too much, for validation.
    """

    name: str
    files: tuple[Path, ...]
    allow_invalid_utf8: bool = False  # legal where data.tokenizer=bytes

    @property
    def identity(self) -> str:
        """Changes whenever a file does: a digest of their paths, sizes and times of change."""
        stats = [(path, path.stat()) for path in self.files]
        return digest([[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats])

    def documents(self) -> Iterator[bytes]:
        """The documents in order of their paths.

        Raises: DataError when a file cannot be read, is binary or is not UTF-8.
        """
        if len(self.files) >= FEW_DOCUMENTS:
            yield from map(self._read, self.files)
            return
        total = sum(path.stat().st_size for path in self.files)
        size = min(PIECE_BYTES, max(64, total // 100))
        for path in self.files:
            yield from pieces(self._read(path), size)

    def _read(self, path: Path) -> bytes:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"data.path: {path} cannot be read: {error.strerror}") from error
        if self.name == "stdlib":
            return text.replace(b"\r\n", b"\n")  # the same text on Windows
        if b"\0" in text:
            raise DataError(
                f"data.path: {path} is binary (it has NUL bytes); name text files only, by a glob "
                "such as 'folder/**/*.txt'"
            )
        if not self.allow_invalid_utf8 and not is_utf8(text):
            raise DataError(
                f"data.path: {path} is not UTF-8; convert it (iconv -t utf-8), leave it out by a "
                "glob such as 'folder/**/*.txt', or use data.tokenizer=bytes"
            )
        return text


def stdlib_corpus() -> TextCorpus:
    """The source text of the running Python's standard library, about 10 MB on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in _files_below(root, leave_out=_STDLIB_LEFT_OUT)
        if path.suffix == ".py"
        and not path.name.startswith(("test_", "_sysconfigdata"))
        and not path.parent.name.startswith("config-")
    ]
    kept = tuple(path for path in files if path.stat().st_size and is_utf8(path.read_bytes()))
    if not kept:
        raise DataError(
            f"data.corpus=stdlib finds no source text in {root} ({sys.executable}); use "
            "data.corpus=text with your own data.path"
        )
    return TextCorpus("stdlib", kept)


def text_corpus(
    path: str | Sequence[str] | None, *, allow_invalid_utf8: bool = False
) -> TextCorpus:
    """The user's files: `path` names files, folders (read recursively, hidden and empty files left
    out) and globs, one or several.

    Raises: DataError when a path matches nothing, or names an empty file.
    """
    if not path:
        raise DataError(
            "data.corpus=text needs data.path: a file, a folder or a glob such as 'src/**/*.py'"
        )
    found: list[Path] = []
    for name in [path] if isinstance(path, str) else path:
        found += _expand(name)
    return TextCorpus("text", tuple(sorted(set(found))), allow_invalid_utf8)


def _expand(name: str) -> list[Path]:
    path = Path(name).expanduser().absolute()
    if path.is_file():
        if path.stat().st_size == 0:
            raise DataError(f"data.path={name} is an empty file; name one that holds text")
        return [path]
    if path.is_dir():
        matches = [path]
    else:
        try:
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        except ValueError as error:  # such as a***b
            raise DataError(f"data.path={name} is no glob: {str(error).lower()}") from error
        if not matches:
            what = "matches no file" if any(c in name for c in "*?[") else "does not exist"
            raise DataError(
                f"data.path={name} {what} (looked from {Path.cwd()}); give a file, a folder or a "
                "glob such as 'src/**/*.py'"
            )
    files = [file for match in matches for file in _files_below(match) if file.stat().st_size]
    if not files:
        raise DataError(f"data.path={name} holds no text: every file in it is empty or hidden")
    return files


def _files_below(path: Path, *, leave_out: Collection[str] = ()) -> list[Path]:
    """A file itself, or the files of a folder at any depth, by name; without hidden ones and
    without the folders named in `leave_out`."""
    if path.is_file():
        return [path]
    files: list[Path] = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if name[0] != "." and name not in leave_out]
        files += [Path(folder, name) for name in names if name[0] != "."]
    return sorted(file for file in files if file.is_file())


def is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    """Cuts a text into parts of at most `size` bytes, after a line break where there is one."""
    start = 0
    while len(text) - start > size:
        end = text.rfind(b"\n", start, start + size) + 1
        if end <= start:
            end = start + len(utf8_prefix(text[start : start + size + 1], size))
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def utf8_prefix(text: bytes, num_bytes: int) -> bytes:
    """At most the first `num_bytes` bytes of a text, not ending inside a character."""
    if len(text) <= num_bytes:
        return text
    end = num_bytes
    while end > max(0, num_bytes - 4) and text[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return text[:end] if end and text[end] & 0xC0 != 0x80 else text[:num_bytes]


def document_digest(document: bytes) -> str:
    return hashlib.blake2b(document, digest_size=16).hexdigest()


def validation_digests(digests: Sequence[str], val_fraction: float) -> frozenset[str]:
    """Which documents are for validation: those whose digest, read as a number in [0, 1), is below
    `val_fraction`; at least one, and never all.

    Raises: DataError when there are not two different documents.
    """
    different = sorted(set(digests))
    if len(different) < 2:
        raise DataError(
            "data.path holds too little text to split into training and validation: it needs at "
            "least two different lines or files"
        )
    chosen = [d for d in different if int(d, 16) / 16**32 < val_fraction]
    return frozenset((chosen or different[:1])[: len(different) - 1])
