"""The Python source of packages that are always installed with this one: ninety megabytes without a
download, for runs that would read the standard library several times.

Their versions are those of the installation, so two machines have the same corpus where they have
the same lock; the fingerprint of the text tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from nanozoo_core.data.cache import digest
from nanozoo_core.data.corpora import (
    Corpus,
    Count,
    LeftOut,
    document_digest,
    files_below,
    is_utf8,
    validation_digests,
)
from nanozoo_core.data.near_duplicates import leaders, sketch
from nanozoo_core.errors import DataError

PACKAGES = (
    *("torch", "sympy", "numpy", "matplotlib", "networkx", "fontTools", "mpmath"),
    *("setuptools", "PIL", "jinja2", "omegaconf"),
)
_TESTS = re.compile(r"test_.*|.*_test\.py|conftest\.py")
_LICENCE = re.compile(rb"(?i)licen[cs]e|copyright|spdx|all rights reserved")
_GENERATED = re.compile(
    rb"(?i)\bgenerated (by|from|with|automatically)|auto-?generated|do not edit"
)
_LITERALS = re.compile(rb"'[^'\n]*'|\"[^\"\n]*\"|\b[0-9][0-9a-fA-FxXeE._]*\b")
LONGEST_LINE = 1000
MOST_LITERALS = 0.5  # of a file's bytes
MOST_DIGITS = 0.2

TABLES = "files that a program wrote"


@dataclass(frozen=True)
class PackagesCorpus(Corpus):
    """Files of source, each a document without the licence at its head."""

    files: tuple[Path, ...]
    name: str = "packages"
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @property
    def identity(self) -> str:
        stats = [(path, path.stat()) for path in self.files]
        return digest([[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats])

    @property
    def description(self) -> str:
        return f"{len(self.files)} files of {', '.join(PACKAGES)}"

    def documents(self) -> Iterator[bytes]:
        self.left_out.clear()
        for path in self.files:
            try:
                text = path.read_bytes().replace(b"\r\n", b"\n")
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            if not text or not is_utf8(text):
                continue
            if is_table(text):
                self.left_out.add(TABLES, path)
            elif body := without_licence(text):
                yield body

    def split(self, val_fraction: float, count: Count) -> tuple[list[str], frozenset[str]]:
        """As for any corpus, but that documents which are nearly the same, and those that are
        nearly the same as one of them, are on one side: that of one digest for all of them."""
        digests: list[str] = []
        sketches = []
        for document in self.documents():
            digests.append(document_digest(document))
            sketches.append(sketch(document))
            count(len(document))
        sides = leaders(digests, sketches)
        chosen = validation_digests(sides, val_fraction)
        both = zip(digests, sides, strict=True)
        return digests, frozenset(name for name, side in both if side in chosen)


def packages_corpus() -> PackagesCorpus:
    """Raises: DataError when a package is not installed as files."""
    found: list[Path] = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise DataError(
                f"data.corpus=packages finds no source of {name}; install nanozoo-core with all "
                "that it needs, or use data.corpus=stdlib"
            )
        files = files_below(Path(spec.origin).parent, leave_out={"test", "tests", "__pycache__"})
        found += [p for p in files if p.suffix == ".py" and not _TESTS.fullmatch(p.name)]
    return PackagesCorpus(tuple(found))


def without_licence(text: bytes) -> bytes:
    """Source without the comments at its head, where these speak of a licence or a copyright."""
    lines = text.split(b"\n")
    count = next(
        (n for n, line in enumerate(lines) if line.strip() and line[:1] != b"#"), len(lines)
    )
    head = b"\n".join(lines[:count])
    return b"\n".join(lines[count:]) if _LICENCE.search(head) else text


def is_table(text: bytes) -> bool:
    """Whether a program wrote a file, or it is mostly numbers and quoted words: its first comments
    say so, a line is very long, digits are a fifth of it, or literals half."""
    head = text[:1000].split(b"\n")
    if any(_GENERATED.search(line) for line in head if line[:1] == b"#"):
        return True
    if max(map(len, text.split(b"\n"))) > LONGEST_LINE:
        return True
    if sum(text.count(b"%d" % digit) for digit in range(10)) > MOST_DIGITS * len(text):
        return True
    return sum(map(len, _LITERALS.findall(text))) > MOST_LITERALS * len(text)
