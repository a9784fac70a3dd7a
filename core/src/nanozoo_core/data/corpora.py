"""Corpora of text: the standard library's source, or the user's own files.

A corpus is a sequence of documents, each some bytes. Which documents are for validation depends
on their content alone, so a document never changes sides when others come or go.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nanozoo_core.data import formats
from nanozoo_core.data.cache import digest
from nanozoo_core.errors import DataError, MissingDataError
from nanozoo_core.files import read_json

# Tests, what pip and distributions install, and tables that a program wrote.
_STDLIB_LEFT_OUT = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings",
    "pydoc_data", "_bundled", "lib-dynload",
}  # fmt: skip

FEW_DOCUMENTS = 20
PIECE_BYTES = 64 * 1024


class LeftOut:
    """What one pass over a corpus has not read, by the reason, with an example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: object) -> None:
        self.counts[reason] += 1
        self._examples.setdefault(reason, str(example))

    def clear(self) -> None:
        self.counts.clear()
        self._examples.clear()

    def __str__(self) -> str:
        """Such as `binary files: 3 (such as a.png); rows without text: 1 (such as in b.jsonl)`."""
        return "; ".join(
            f"{reason}: {count:,} (such as {self._examples[reason]})"
            for reason, count in sorted(self.counts.items())
        )


BINARY_FILES = "binary files"
NOT_UTF8_FILES = "files that are not UTF-8"
ROWS_WITHOUT_TEXT = "rows without text"
OTHER_SPLITS = "splits of a data set beside train"


Count = Callable[[int], object]


class Corpus(ABC):
    """Documents, to be split by their content.

    Attributes: name, as in `data.corpus`; left_out, what the last pass over the documents has left
    out; allow_invalid_utf8, whether a document may be other than UTF-8.
    """

    name: str
    left_out: LeftOut
    allow_invalid_utf8: bool = False

    @property
    @abstractmethod
    def identity(self) -> str:
        """Changes whenever the text does, and is found without reading it."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What is read, for people, such as `30 files of stdlib`."""

    @abstractmethod
    def documents(self) -> Iterator[bytes]:
        """The documents, in the same order each time.

        Raises: DataError when one cannot be read, or there is none.
        """

    def split(self, val_fraction: float, count: Count) -> tuple[list[str], frozenset[str]]:
        """The digests of all documents in their order, and those that are for validation.

        Args: count: is told the bytes of each document.
        """
        digests: list[str] = []
        for document in self.documents():
            digests.append(document_digest(document))
            count(len(document))
        return digests, validation_digests(digests, val_fraction)


@dataclass(frozen=True)
class TextCorpus(Corpus):
    """Files of text, each a document, and files of rows, each row a document (`formats`).

    Fewer than 20 files of text are cut at line boundaries into pieces (a hundredth of the corpus,
    64 KiB at most), which are then the documents: otherwise the split by document would be left
    with nothing, or with far too much, for validation.

    What is not text is left out, but for files in `named`: the user has asked for these by name.
    """

    name: str
    files: tuple[Path, ...]
    allow_invalid_utf8: bool = False  # legal where data.tokenizer=bytes
    text_key: str = "text"  # of rows
    named: frozenset[Path] = frozenset()
    splits: tuple[Path, ...] = ()  # of data sets that are not read, as folders
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @property
    def identity(self) -> str:
        """A digest of the files' paths, sizes and times of change."""
        stats = [(path, path.stat()) for path in self.files]
        return digest(
            [self.text_key, [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]]
        )

    @property
    def description(self) -> str:
        kinds = Counter(self._kinds.values())
        listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        of_what = f" ({listed})" if set(kinds) != {formats.TEXT} else ""
        return f"{len(self.files)} files of {self.name}{of_what}"

    def documents(self) -> Iterator[bytes]:
        """The documents in order of their paths.

        Raises: DataError when a file cannot be read, or one that is named is no text, or nothing is
        left.
        """
        self.left_out.clear()
        for folder in self.splits:
            self.left_out.add(OTHER_SPLITS, folder)
        is_empty = True
        for path in self.files:
            for document in self._documents_of(path):
                is_empty = False
                yield document
        if is_empty:
            raise DataError(
                f"data.path holds no text to read ({self.left_out}); name files of text, JSON "
                "lines or parquet" + self._advice()
            )

    def _documents_of(self, path: Path) -> Iterator[bytes]:
        kind, size = self._kinds[path], self._piece_bytes
        if kind != formats.TEXT:
            for text in formats.rows(path, kind, self.text_key):
                if text is None:
                    self.left_out.add(ROWS_WITHOUT_TEXT, path)
                else:
                    yield text
        elif size is None:
            parts = list(formats.blocks(path))
            if self._is_text(path, self._problem(parts)):
                text = b"".join(parts)
                # The same text on Windows.
                yield text.replace(b"\r\n", b"\n") if self.name == "stdlib" else text
        elif self._is_text(path, self._problems[path]):
            yield from pieces(formats.blocks(path), size)

    def _is_text(self, path: Path, problem: str | None) -> bool:
        """Whether a file has no problem; notes one that has.

        Raises: DataError for a file that the user has named.
        """
        if problem is None:
            return True
        if path in self.named:
            advice = "convert it (iconv -t utf-8), or use data.tokenizer=bytes"
            if problem == formats.BINARY:
                advice = "name files of text, or use data.corpus=bin for shards of tokens"
            raise DataError(f"data.path: {path} is {problem}; {advice}")
        self.left_out.add(BINARY_FILES if problem == formats.BINARY else NOT_UTF8_FILES, path)
        return False

    def _problem(self, parts: Iterable[bytes]) -> str | None:
        return formats.text_problem(parts, allow_invalid_utf8=self.allow_invalid_utf8)

    def _advice(self) -> str:
        if NOT_UTF8_FILES in self.left_out.counts:
            return "; convert text of another coding (iconv -t utf-8), or use data.tokenizer=bytes"
        if all(path.suffix == ".bin" for path in self.files):
            return "; for shards of tokens use data.corpus=bin"
        return ""

    @cached_property
    def _kinds(self) -> dict[Path, str]:
        return {path: formats.kind_of(path, self.text_key) for path in self.files}

    @cached_property
    def _problems(self) -> dict[Path, str | None]:
        """Of each file of text, by a pass over it, until enough are found to be documents."""
        found: dict[Path, str | None] = {}
        texts = [path for path in self.files if self._kinds[path] == formats.TEXT]
        for path in texts:
            found[path] = self._problem(formats.blocks(path))
            if sum(problem is None for problem in found.values()) >= FEW_DOCUMENTS:
                break
        return found

    @cached_property
    def _piece_bytes(self) -> int | None:
        """The size to which files of text are cut; None where they are documents."""
        is_text = [problem is None for problem in self._problems.values()]
        if sum(is_text) >= FEW_DOCUMENTS:
            return None
        kept = [path for path in self.files if self._problems.get(path) is None]
        total = sum(path.stat().st_size for path in kept)
        return min(PIECE_BYTES, max(64, total // 100))


def stdlib_corpus() -> TextCorpus:
    """The source text of the running Python's standard library, about 10 MB on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in files_below(root, leave_out=_STDLIB_LEFT_OUT)
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
    path: str | Sequence[str] | None, *, allow_invalid_utf8: bool = False, text_key: str = "text"
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
    named: set[Path] = set()
    splits: list[Path] = []
    for name in [path] if isinstance(path, str) else path:
        matches = _matches(name)
        if Path(name).expanduser().absolute() in matches and matches[0].is_file():
            named.add(matches[0])
        files = [file for match in matches for file in files_below(match, splits=splits)]
        files = [file for file in files if file.stat().st_size]
        if not files:
            raise DataError(f"data.path={name} holds no text: every file in it is empty or hidden")
        found += files
    return TextCorpus(
        "text",
        tuple(sorted(set(found))),
        allow_invalid_utf8=allow_invalid_utf8,
        text_key=text_key,
        named=frozenset(named),
        splits=tuple(splits),
    )


def _matches(name: str) -> list[Path]:
    """The file or folder that a path names, or what a glob matches."""
    path = Path(name).expanduser().absolute()
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"data.path={name} is an empty file; name one that holds text")
    if path.exists():
        return [path]
    try:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except ValueError as error:  # such as a***b
        raise DataError(f"data.path={name} is no glob: {str(error).lower()}") from error
    if not found:
        what = "matches no file" if any(c in name for c in "*?[") else "does not exist"
        raise MissingDataError(
            f"data.path={name} {what} (looked from {Path.cwd()})",
            "give a file, a folder or a glob such as 'src/**/*.py'",
        )
    return found


def files_below(
    path: Path, *, leave_out: Collection[str] = (), splits: list[Path] | None = None
) -> list[Path]:
    """A file itself, or the files of a folder at any depth, by name; without hidden ones and
    without the folders named in `leave_out`.

    Of a data set that `datasets` has saved, these are its tables; of one with several splits, those
    of `train`, where there is one, and `splits` then grows by the folders of the others.
    """
    if path.is_file():
        return [path]
    files: list[Path] = []
    for place, below, names in os.walk(path):
        folder = Path(place)
        below[:] = [name for name in below if name[0] != "." and name not in leave_out]
        if "dataset_dict.json" in names:
            names.remove("dataset_dict.json")
            if "train" in below:
                others = [folder / name for name in sorted(below) if name != "train"]
                below[:] = ["train"]
                if splits is not None:
                    splits += others
        if "state.json" in names and "dataset_info.json" in names:
            names = _tables_of(folder / "state.json")
        files += [folder / name for name in names if name[0] != "."]
    return sorted(file for file in files if file.is_file())


def _tables_of(state: Path) -> list[str]:
    """The files of a saved data set; beside them lie what it has cached of computations."""
    return read_json(
        state,
        lambda stored: [str(entry["filename"]) for entry in stored["_data_files"]],
        remedy="save the data set again with save_to_disk",
        error=DataError,
    )


def is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def pieces(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cuts a text, given in blocks, into parts of at most `size` bytes, after a line break where
    there is one."""
    text = b""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > size:
            end = text.rfind(b"\n", start, start + size) + 1
            if end <= start:
                end = start + len(utf8_prefix(text[start : start + size + 1], size))
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


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


def split_of(document: bytes) -> str:
    """The half of the validation text that a document belongs to, `tune` or `test`, by a digest of
    its own: the one that makes a document one of validation says nothing of it."""
    first = hashlib.blake2b(document, digest_size=1, person=b"eval.split").digest()[0]
    return "tune" if first < 128 else "test"


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
