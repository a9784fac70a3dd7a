"""A corpus that is split into training and validation, as shards; a text becomes one in two passes.

files -> bytes shards (train, val)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.config import DataConfig
from nanozoo_core.data.cache import build_once, cache_root, digest, file_digest, write_record
from nanozoo_core.data.corpora import NOT_UTF8_FILES, Corpus, document_digest, is_utf8
from nanozoo_core.data.encoding import num_cores
from nanozoo_core.data.progress import ByteProgress, Say, said_by
from nanozoo_core.data.shards import Shard, ShardWriter, documents, open_shard, shard_content
from nanozoo_core.data.tokenizers import TOKENIZER_FILE, ByteTokenizer, Tokenizer
from nanozoo_core.errors import DataError
from nanozoo_core.files import read_json

MANIFEST = "shards.json"  # the digests of a folder's shards and tokenizer, by name
FORMAT = 3  # part of every folder's name: raise it when the stored layout changes


@dataclass(frozen=True)
class Source:
    """A split corpus as shards of some vocabulary."""

    name: str
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    vocabulary: Tokenizer
    fingerprint: str  # of the text and its split, whatever the tokenizer
    identity: str  # of the shards themselves
    left_out: str = ""  # of the corpus: what and how much, for people

    def texts(self, shards: tuple[Shard, ...]) -> Iterator[bytes]:
        """The documents of some shards as text."""
        for shard in shards:
            for document in documents(shard, self.vocabulary.separator):
                yield self.vocabulary.decode_bytes(document)


def import_text(corpus: Corpus, data: DataConfig, say: Say | None) -> Source:
    """Splits a corpus by document and writes both sides as bytes shards.

    Validation documents are ordered by digest: their first bytes are a sample of the whole corpus,
    and the same ones for every `data.val_fraction` that holds enough of them.
    """

    def build(folder: Path) -> None:
        said_by(say)(f"reading {corpus.description}")
        with ByteProgress("reading", None, say) as progress:
            digests, chosen = corpus.split(data.val_fraction, progress.update)
        all_utf8 = True
        with (
            ByteProgress("splitting", progress.done, say) as progress,
            _Sorted(folder) as validation,
            ShardWriter(folder, "train") as train,
        ):
            for name, document in _unchanged(digests, corpus):
                all_utf8 = all_utf8 and is_utf8(document)
                if name in chosen:
                    validation.add(name, document)
                else:
                    train.write(vocabulary.separator, vocabulary.encode_array(document))
                progress.update(len(document))
            with ShardWriter(folder, "val") as val:
                for document in validation.documents():
                    val.write(vocabulary.separator, vocabulary.encode_array(document))
        fingerprint = digest([sorted(digests), sorted(chosen)])
        if corpus.identity != corpus_identity:
            raise _changed(corpus)
        about = {
            "fingerprint": fingerprint,
            "has_other_codings": not all_utf8,
            "skipped_other_codings": NOT_UTF8_FILES in corpus.left_out.counts,
            "left_out": str(corpus.left_out),
        }
        write_record(folder / "corpus.json", about)
        write_record(folder / MANIFEST, train.contents | val.contents)

    vocabulary = ByteTokenizer()
    corpus_identity = corpus.identity
    identity = digest([FORMAT, corpus.name, corpus_identity, data.val_fraction])
    folder = build_once(cache_root() / "text" / identity, build)
    stored = _read_about(folder)
    is_other = "skipped_other_codings" if corpus.allow_invalid_utf8 else "has_other_codings"
    if stored[is_other]:  # it was built for a tokenizer that takes other text
        identity = digest([identity, corpus.allow_invalid_utf8])
        folder = build_once(cache_root() / "text" / identity, build)
        stored = _read_about(folder)
    if stored["left_out"]:
        said_by(say)(f"left out of {corpus.name}: {stored['left_out']}")
    return Source(
        name=corpus.name,
        train=open_written(folder, "train", vocabulary),
        validation=open_written(folder, "val", vocabulary),
        vocabulary=vocabulary,
        fingerprint=stored["fingerprint"],
        identity=identity,
        left_out=stored["left_out"],
    )


def _read_about(folder: Path) -> dict[str, Any]:
    """What is known of the text in a folder of the cache."""
    return read_json(
        folder / "corpus.json",
        lambda about: {
            "fingerprint": str(about["fingerprint"]),
            "left_out": str(about["left_out"]),
            "has_other_codings": bool(about["has_other_codings"]),
            "skipped_other_codings": bool(about["skipped_other_codings"]),
        },
        remedy=f"remove the folder {folder}, which is then built again",
        error=DataError,
    )


class _Sorted:
    """The validation documents, of which there may be more than memory holds: in a file without a
    name, and read from it in the order of their digests."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._places: list[tuple[str, int, int]] = []

    def add(self, name: str, document: bytes) -> None:
        self._places.append((name, self._file.tell(), len(document)))
        self._file.write(document)

    def documents(self) -> Iterator[bytes]:
        for _, start, size in sorted(self._places):
            self._file.seek(start)
            yield self._file.read(size)

    def __enter__(self) -> _Sorted:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _unchanged(digests: list[str], corpus: Corpus) -> Iterator[tuple[str, bytes]]:
    """The documents, read a second time, with their digests.

    Raises: DataError when they are others than the first time.
    """
    documents = corpus.documents()
    for name in digests:
        document = next(documents, None)
        if document is None or document_digest(document) != name:
            raise _changed(corpus)
        yield name, document
    if next(documents, None) is not None:
        raise _changed(corpus)


def _changed(corpus: Corpus) -> DataError:
    return DataError(
        f"the text of data.corpus={corpus.name} has changed while it was read; give the command "
        "again once nothing writes to its files"
    )


def checked(shards: Iterable[Shard], vocabulary: Tokenizer) -> tuple[Shard, ...]:
    """The shards, each read through the first time that it is seen, on all cores.

    Raises: DataError when a shard is damaged, or has an id that the vocabulary has not.
    """
    found = tuple(shards)
    with ThreadPoolExecutor(num_cores()) as pool:
        contents = pool.map(lambda shard: shard_content(shard, vocabulary.byte_counts), found)
    for shard, content in zip(found, contents, strict=True):
        largest = content.largest_id
        if largest >= vocabulary.size:
            raise DataError(
                f"the shard {shard.path} has the id {largest}, but data.tokenizer="
                f"{vocabulary.name} knows only 0 to {vocabulary.size - 1}; use the tokenizer that "
                "wrote it"
            )
    return found


def tokenizer_digest(folder: Path) -> dict[str, str]:
    """That of a trained vocabulary; nothing where there is none."""
    path = folder / TOKENIZER_FILE
    return {path.name: file_digest(path)} if path.is_file() else {}


def open_written(folder: Path, name: str, vocabulary: Tokenizer) -> tuple[Shard, ...]:
    """The shards of a split that `ShardWriter` has written into a folder of the cache.

    Raises: DataError when one is not as it was written.
    """
    remedy = f"remove the folder {folder}, which is then built again"
    written = read_json(folder / MANIFEST, dict, remedy=remedy, error=DataError)
    expected = {key: value for key, value in written.items() if key.startswith(f"{name}_")}
    if tokenizer_digest(folder) != {k: v for k, v in written.items() if k == TOKENIZER_FILE}:
        raise DataError(f"{folder / TOKENIZER_FILE} is not as it was written; {remedy}")
    shards = checked((open_shard(folder / key) for key in sorted(expected)), vocabulary)
    for shard in shards:
        content = shard_content(shard, vocabulary.byte_counts).content
        if content != expected[shard.path.name]:
            raise DataError(f"{shard.path} is not as it was written; {remedy}")
    return shards


def num_text_bytes(shards: tuple[Shard, ...], vocabulary: Tokenizer) -> int:
    return sum(shard_content(shard, vocabulary.byte_counts).num_bytes for shard in shards)
