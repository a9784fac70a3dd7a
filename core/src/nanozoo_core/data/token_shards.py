"""The training split of a source in the ids of a tokenizer: on all cores, and kept when it stops.

A build that was interrupted goes on behind the last document that its shards are known to hold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from nanozoo_core.config import DataConfig
from nanozoo_core.data.cache import build_once, cache_root, digest, is_whole, write_record
from nanozoo_core.data.corpora import document_digest
from nanozoo_core.data.encoding import encoded
from nanozoo_core.data.progress import ByteProgress, Say, said_by
from nanozoo_core.data.shards import Shard, ShardWriter
from nanozoo_core.data.sources import (
    FORMAT,
    MANIFEST,
    Source,
    num_text_bytes,
    open_written,
    tokenizer_digest,
)
from nanozoo_core.data.tokenizers import (
    TOKENIZER_FILE,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from nanozoo_core.errors import DataError

BPE_TRAINING_BYTES = 200_000_000  # of a larger corpus a sample of the documents is as good
NOTED_BYTES = 1 << 25  # of text between two notes of how far it is, some seconds' work


def tokenized(
    source: Source, data: DataConfig, given: Tokenizer | None, say: Say | None
) -> tuple[Tokenizer, tuple[Shard, ...]]:
    """The training split in another vocabulary than the source's: the one given, or one that is
    known by name or trained on it."""

    def build(folder: Path) -> None:
        vocabulary = given or kept_vocabulary(folder, data)
        if vocabulary is None and data.tokenizer == "bpe":
            vocabulary = _trained(source, data, say)
        elif vocabulary is None:
            vocabulary = load_tokenizer(folder, data)
        save_tokenizer(vocabulary, folder)
        said_by(say)(f"tokenizing {source.name} with {vocabulary.name}")
        contents = write_tokens(source, vocabulary, folder, say)
        write_record(folder / MANIFEST, contents | tokenizer_digest(folder))

    vocab_size = data.vocab_size if data.tokenizer == "bpe" else None
    kind = "file" if data.names_tokenizer_file else data.tokenizer
    key: list[object] = [FORMAT, source.identity, kind, vocab_size]
    folder = cache_root() / "tokens" / digest(key)
    if given is not None and not (is_whole(folder) and given.equals(load_tokenizer(folder, data))):
        folder = cache_root() / "tokens" / digest([*key, given.identity])
    build_once(folder, build, goes_on=True)
    vocabulary = load_tokenizer(folder, data)
    return vocabulary, open_written(folder, "train", vocabulary)


def write_tokens(
    source: Source, vocabulary: Tokenizer, folder: Path, say: Say | None
) -> dict[str, str]:
    """Writes the training split as shards, or goes on with it; returns their digests by name."""
    num_bytes = num_text_bytes(source.train, source.vocabulary)
    about = digest([source.identity, source.fingerprint, vocabulary.identity])
    with ShardWriter(folder, "train", about=about) as writer:
        documents = source.texts(source.train)
        done = sum(map(len, itertools.islice(documents, writer.num_documents)))
        noted = 0
        with (
            ByteProgress(f"tokenizing {source.name}", num_bytes, say, done=done) as progress,
            closing(encoded(documents, vocabulary, num_bytes=num_bytes - done)) as batches,
        ):
            for size, batch in batches:
                for tokens in batch:
                    writer.write(vocabulary.separator, tokens)
                progress.update(size)
                noted += size
                if noted >= NOTED_BYTES:
                    writer.note()
                    noted = 0
    return writer.contents


def kept_vocabulary(folder: Path, data: DataConfig) -> Tokenizer | None:
    """The vocabulary that an interrupted build has trained."""
    if not (folder / TOKENIZER_FILE).is_file():
        return None
    try:
        return load_tokenizer(folder, data)
    except DataError:  # what is damaged is trained again
        return None


def _trained(source: Source, data: DataConfig, say: Say | None) -> Tokenizer:
    """A vocabulary of a source's training text, or of a sample of so much of it."""
    num_bytes = num_text_bytes(source.train, source.vocabulary)
    return _learned([(source, min(1.0, BPE_TRAINING_BYTES / max(1, num_bytes)))], data, say)


def mixed_vocabulary(
    sources: Sequence[Source], shares: Sequence[float], data: DataConfig, say: Say | None
) -> Tokenizer:
    """A vocabulary trained on sources by their shares, each read as often as that takes."""
    sizes = [num_text_bytes(source.train, source.vocabulary) for source in sources]
    num_bytes = min(BPE_TRAINING_BYTES, sum(sizes))
    times = [share * num_bytes / size for share, size in zip(shares, sizes, strict=True)]

    def build(folder: Path) -> None:
        parts = list(zip(sources, times, strict=True))
        save_tokenizer(_learned(parts, data, say), folder)

    identities = [[source.identity, share] for source, share in zip(sources, shares, strict=True)]
    key = digest([FORMAT, data.vocab_size, identities])
    return load_tokenizer(build_once(cache_root() / "vocabularies" / key, build), data)


def _learned(parts: Sequence[tuple[Source, float]], data: DataConfig, say: Say | None) -> Tokenizer:
    """Args: parts: sources, and how often the training reads each: 2.3 is twice, and then the
    documents whose digest, as a number from 0 to 1, is below 0.3."""
    said_by(say)(f"learning a vocabulary of {data.vocab_size} ids")

    def texts() -> Iterator[str]:
        for source, times in parts:
            for reading in range(math.ceil(times)):
                share = times - reading
                for document in source.texts(source.train):
                    if share >= 1 or int(document_digest(document)[16:], 16) / 16**16 < share:
                        yield document.decode("utf-8", errors="replace")
                        progress.update(len(document))

    total = sum(times * num_text_bytes(s.train, s.vocabulary) for s, times in parts)
    with ByteProgress("learning a vocabulary", round(total), say) as progress:
        return train_bpe(texts(), vocab_size=data.vocab_size)
