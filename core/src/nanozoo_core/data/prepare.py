"""From a corpus to token shards: built once, then reused from the cache folder.

    files -> bytes shards (train, val) -> token shards of a tokenizer (train)

The validation split is kept as text and tokenized on loading, so its first bytes are the same for
every tokenizer. Corpora that come as shards take the place of the first step's result, and their
validation text is decoded from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanozoo_core.config import DataConfig
from nanozoo_core.data.cache import (
    build_once,
    cache_root,
    digest,
    file_digest,
    is_whole,
    write_record,
)
from nanozoo_core.data.corpora import (
    NOT_UTF8_FILES,
    Corpus,
    document_digest,
    is_utf8,
    stdlib_corpus,
    text_corpus,
    utf8_prefix,
)
from nanozoo_core.data.fineweb import fineweb_folder
from nanozoo_core.data.foreign_shards import open_foreign
from nanozoo_core.data.hub import hub_corpus
from nanozoo_core.data.packages import packages_corpus
from nanozoo_core.data.shards import Shard, ShardWriter, documents, open_shard, shard_content
from nanozoo_core.data.tokenizers import (
    TOKENIZER_FILE,
    ByteTokenizer,
    Tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from nanozoo_core.errors import DataError, MissingDataError, suggest
from nanozoo_core.files import read_json

logger = logging.getLogger(__name__)

CORPORA = ("stdlib", "packages", "text", "huggingface", "bin", "fineweb10B", "fineweb100B")
BPE_TRAINING_BYTES = 200_000_000  # of a larger corpus a sample of the documents is as good
MANIFEST = "shards.json"  # the digests of a folder's shards and tokenizer, by name
_FORMAT = 3  # part of every folder's name: raise it when the stored layout changes

Progress = Callable[[str], None]


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


@dataclass(frozen=True)
class PreparedData:
    """What training and validation read.

    Attributes: train, the token shards; fingerprint, of the corpus and its split, equal for all
    tokenizers: two runs with different ones are never ranked together.
    """

    source: Source
    vocabulary: Tokenizer
    train: tuple[Shard, ...]
    train_tokens: int  # separators included
    train_bytes: int
    validation_bytes: int

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def bytes_per_token(self) -> float:
        """Mean over the training split; the separators count as tokens without bytes."""
        return self.train_bytes / self.train_tokens

    def validation_text(self, num_bytes: int) -> list[bytes]:
        """The documents that make up the first `num_bytes` bytes of the validation split, the last
        one cut before the character that would pass them: the same for every tokenizer.

        All of the split, with a warning, when it is shorter.
        """
        found: list[bytes] = []
        left = num_bytes
        for document in self.source.texts(self.source.validation):
            found.append(utf8_prefix(document, left))
            left -= len(document)
            if left <= 0:
                return found
        logger.warning(
            "eval.bytes=%d is more than the validation split holds; all %d bytes are scored",
            num_bytes,
            sum(map(len, found)),
        )
        return found

    def summary(self) -> str:
        """A few lines for the terminal."""
        left_out = self.source.left_out
        return "\n".join(
            [
                f"corpus       {self.source.name} ({self.fingerprint})",
                f"tokenizer    {self.vocabulary.name}, {self.vocabulary.size} ids",
                f"training     {self.train_bytes:,} bytes, {self.train_tokens:,} tokens "
                f"({self.bytes_per_token:.2f} bytes per token)",
                f"validation   {self.validation_bytes:,} bytes",
                f"shards       {len(self.train)} in {self.train[0].path.parent}",
                *([f"left out     {left_out}"] if left_out else []),
            ]
        )


def prepare(
    data: DataConfig, *, vocabulary: Tokenizer | None = None, progress: Progress | None = None
) -> PreparedData:
    """Builds whatever of the prepared data is not in the cache folder yet, and opens it.

    Args:
        vocabulary: a trained one to use instead of training one on this corpus.
        progress: called with a line of text before each piece of work.

    Raises: DataError when the corpus or the tokenizer cannot be had, or the cache not written.
    """
    say = progress or logger.info
    source = _source(data, say)
    if data.tokenizer == source.vocabulary.name:
        if vocabulary is not None and not vocabulary.equals(source.vocabulary):
            raise DataError(
                f"the shards of data.path={data.path} are written in another vocabulary than the "
                f"run's own; give shards of its {TOKENIZER_FILE}"
            )
        vocabulary, train = source.vocabulary, source.train
    else:
        vocabulary, train = _tokenized(source, data, vocabulary, say)
    return PreparedData(
        source=source,
        vocabulary=vocabulary,
        train=train,
        train_tokens=sum(shard.num_tokens for shard in train),
        train_bytes=_num_bytes(train, vocabulary),
        validation_bytes=_num_bytes(source.validation, source.vocabulary),
    )


def _source(data: DataConfig, say: Progress) -> Source:
    if data.corpus not in CORPORA:
        raise DataError(
            f"data.corpus={data.corpus} is unknown; use {', '.join(CORPORA[:-1])} or {CORPORA[-1]}"
            + suggest(data.corpus, CORPORA)
        )
    if data.path and data.corpus not in ("text", "huggingface", "bin"):
        raise DataError(
            f"data.path={data.path} has no effect with data.corpus={data.corpus}; use "
            "data.corpus=text for files of text, or data.corpus=bin for shards"
        )
    if data.corpus == "stdlib":
        return _import_text(stdlib_corpus(), data, say)
    if data.corpus == "packages":
        return _import_text(packages_corpus(), data, say)
    if data.corpus == "text":
        allow = data.tokenizer == "bytes"
        found = text_corpus(data.path, allow_invalid_utf8=allow, text_key=data.text_key)
        return _import_text(found, data, say)
    if data.corpus == "huggingface":
        return _import_text(hub_corpus(data.path, data.text_key), data, say)
    if data.corpus == "bin":
        return _shard_source(data, _shards_at(data.path), say)
    folder = fineweb_folder(data.corpus)
    if not any(folder.glob("*.bin")):
        raise DataError(
            f"data.corpus={data.corpus} is not on this machine; run "
            f"`nanozoo prepare {data.corpus}` once (looked in {folder})"
        )
    return _shard_source(data, _shards_at(str(folder)), say)


# -- text ---------------------------------------------------------------------------------------


def _import_text(corpus: Corpus, data: DataConfig, say: Progress) -> Source:
    """Splits a corpus by document and writes both sides as bytes shards.

    Validation documents are ordered by digest: their first bytes are a sample of the whole corpus,
    and the same ones for every `data.val_fraction` that holds enough of them.
    """

    def build(folder: Path) -> None:
        say(f"reading {corpus.description}")
        digests, chosen = corpus.split(data.val_fraction)
        all_utf8 = True
        validation: list[tuple[str, bytes]] = []
        with ShardWriter(folder, "train") as train:
            for name, document in _unchanged(digests, corpus):
                all_utf8 = all_utf8 and is_utf8(document)
                if name in chosen:
                    validation.append((name, document))
                else:
                    train.write(vocabulary.separator, vocabulary.encode_array(document))
        with ShardWriter(folder, "val") as val:
            for _, document in sorted(validation):
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
    identity = digest([_FORMAT, corpus.name, corpus_identity, data.val_fraction])
    folder = build_once(cache_root() / "text" / identity, build)
    stored = _read_about(folder)
    is_other = "skipped_other_codings" if corpus.allow_invalid_utf8 else "has_other_codings"
    if stored[is_other]:  # it was built for a tokenizer that takes other text
        identity = digest([identity, corpus.allow_invalid_utf8])
        folder = build_once(cache_root() / "text" / identity, build)
        stored = _read_about(folder)
    if stored["left_out"]:
        say(f"left out of {corpus.name}: {stored['left_out']}")
    return Source(
        name=corpus.name,
        train=_open_written(folder, "train", vocabulary),
        validation=_open_written(folder, "val", vocabulary),
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


def _tokenized(
    source: Source, data: DataConfig, given: Tokenizer | None, say: Progress
) -> tuple[Tokenizer, tuple[Shard, ...]]:
    """The training split in another vocabulary than the source's: the one given, or one that is
    known by name or trained on it."""

    def build(folder: Path) -> None:
        if given is not None:
            vocabulary = given
        elif data.tokenizer == "bpe":
            vocabulary = _trained_vocabulary(source, data, say)
        else:
            vocabulary = load_tokenizer(folder, data)
        save_tokenizer(vocabulary, folder)
        say(f"tokenizing {source.name} with {vocabulary.name}")
        with ShardWriter(folder, "train") as writer:
            for document in source.texts(source.train):
                writer.write(vocabulary.separator, vocabulary.encode_array(document))
        write_record(folder / MANIFEST, writer.contents | _tokenizer_digest(folder))

    vocab_size = data.vocab_size if data.tokenizer == "bpe" else None
    key: list[object] = [_FORMAT, source.identity, data.tokenizer, vocab_size]
    folder = cache_root() / "tokens" / digest(key)
    if given is not None and not (is_whole(folder) and given.equals(load_tokenizer(folder, data))):
        folder = cache_root() / "tokens" / digest([*key, given.identity])
    build_once(folder, build)
    vocabulary = load_tokenizer(folder, data)
    return vocabulary, _open_written(folder, "train", vocabulary)


def _trained_vocabulary(source: Source, data: DataConfig, say: Progress) -> Tokenizer:
    say(f"learning a vocabulary of {data.vocab_size} ids")
    share = BPE_TRAINING_BYTES / max(1, _num_bytes(source.train, source.vocabulary))
    texts = (
        document.decode("utf-8", errors="replace")
        for document in source.texts(source.train)
        if share >= 1 or int(document_digest(document)[16:], 16) / 16**16 < share
    )
    return train_bpe(texts, vocab_size=data.vocab_size)


# -- shards -------------------------------------------------------------------------------------


def _shard_source(data: DataConfig, paths: list[Path], say: Progress) -> Source:
    """Shards that are there already, with the vocabulary they were written in.

    FineWeb's are GPT-2's; those of `data.corpus=bin` are what `data.tokenizer` says, a trained one
    being read from the tokenizer.json beside the first shard. Some have no header.
    """
    where = f"data.path={data.path}" if data.corpus == "bin" else f"{paths[0].parent}"
    for part in ("train", "val"):
        if not any(part in path.name for path in paths):
            raise DataError(
                f"{where} has no shard with '{part}' in its name; name the shards of the two "
                "splits like fineweb_train_000001.bin and fineweb_val_000000.bin"
            )
    both = next((path for path in paths if "train" in path.name and "val" in path.name), None)
    if both is not None:
        raise DataError(
            f"{both} has both 'train' and 'val' in its name, but no shard may be in both splits; "
            "rename it"
        )
    if data.corpus == "bin":
        vocabulary = load_tokenizer(paths[0].parent, data)
    else:
        vocabulary = gpt2_tokenizer()
    validation, train = (
        _checked((open_foreign(path, vocabulary, say) for path in of_part), vocabulary)
        for of_part in (sorted(p for p in paths if part in p.name) for part in ("val", "train"))
    )
    contents = [
        {shard_content(shard, vocabulary.byte_counts).content: shard.path for shard in shards}
        for shards in (train, validation)
    ]
    for content in contents[0].keys() & contents[1].keys():
        raise DataError(
            f"{contents[0][content]} and {contents[1][content]} are the same shard: what trains "
            "cannot be scored; remove one of them"
        )
    fingerprint = digest([sorted(part) for part in contents])
    return Source(data.corpus, train, validation, vocabulary, fingerprint, identity=fingerprint)


def _shards_at(path: str | list[str] | None) -> list[Path]:
    if not path:
        raise DataError("data.corpus=bin needs data.path: a folder of .bin shards, or their files")
    found: list[Path] = []
    for name in [path] if isinstance(path, str) else path:
        place = Path(name).expanduser().absolute()
        found += sorted(place.glob("*.bin")) if place.is_dir() else [place]
        if not place.exists():
            raise MissingDataError(
                f"data.path={name} does not exist (looked from {Path.cwd()})",
                "give a folder of .bin shards, or their files",
            )
    if not found:
        raise DataError(f"data.path={path} has no .bin shard")
    return found


def _checked(shards: Iterable[Shard], vocabulary: Tokenizer) -> tuple[Shard, ...]:
    """The shards, each read through the first time that it is seen.

    Raises: DataError when a shard is damaged, or has an id that the vocabulary has not.
    """
    checked = tuple(shards)
    for shard in checked:
        largest = shard_content(shard, vocabulary.byte_counts).largest_id
        if largest >= vocabulary.size:
            raise DataError(
                f"the shard {shard.path} has the id {largest}, but data.tokenizer="
                f"{vocabulary.name} knows only 0 to {vocabulary.size - 1}; use the tokenizer that "
                "wrote it"
            )
    return checked


def _tokenizer_digest(folder: Path) -> dict[str, str]:
    """That of a trained vocabulary; nothing where there is none."""
    path = folder / TOKENIZER_FILE
    return {path.name: file_digest(path)} if path.is_file() else {}


def _open_written(folder: Path, name: str, vocabulary: Tokenizer) -> tuple[Shard, ...]:
    """The shards of a split that `ShardWriter` has written into a folder of the cache.

    Raises: DataError when one is not as it was written.
    """
    remedy = f"remove the folder {folder}, which is then built again"
    written = read_json(folder / MANIFEST, dict, remedy=remedy, error=DataError)
    expected = {key: value for key, value in written.items() if key.startswith(f"{name}_")}
    if _tokenizer_digest(folder) != {k: v for k, v in written.items() if k == TOKENIZER_FILE}:
        raise DataError(f"{folder / TOKENIZER_FILE} is not as it was written; {remedy}")
    shards = _checked((open_shard(folder / key) for key in sorted(expected)), vocabulary)
    for shard in shards:
        content = shard_content(shard, vocabulary.byte_counts).content
        if content != expected[shard.path.name]:
            raise DataError(f"{shard.path} is not as it was written; {remedy}")
    return shards


def _num_bytes(shards: tuple[Shard, ...], vocabulary: Tokenizer) -> int:
    return sum(shard_content(shard, vocabulary.byte_counts).num_bytes for shard in shards)
