"""From a corpus to token shards: built once, then reused from the cache folder.

    files -> bytes shards (train, val) -> token shards of a tokenizer (train)

The validation split is kept as text and tokenized on loading, so its first bytes are the same for
every tokenizer. Corpora that come as shards take the place of the first step's result, and their
validation text is decoded from them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.config import DataConfig
from nanozoo_core.config.settings import MIXTURE
from nanozoo_core.data.cache import digest
from nanozoo_core.data.corpora import split_of, stdlib_corpus, text_corpus, utf8_prefix
from nanozoo_core.data.fineweb import fineweb_folder
from nanozoo_core.data.foreign_shards import open_foreign
from nanozoo_core.data.hub import hub_corpus
from nanozoo_core.data.packages import packages_corpus
from nanozoo_core.data.progress import Say, said_by
from nanozoo_core.data.shards import Shard, shard_content
from nanozoo_core.data.sources import Source, checked, import_text, num_text_bytes
from nanozoo_core.data.token_shards import mixed_vocabulary, tokenized
from nanozoo_core.data.tokenizers import TOKENIZER_FILE, Tokenizer, gpt2_tokenizer, load_tokenizer
from nanozoo_core.data.vocabulary_file import named_vocabulary
from nanozoo_core.errors import DataError, MissingDataError, suggest

logger = logging.getLogger(__name__)

CORPORA = ("stdlib", "packages", "text", "huggingface", "bin", "fineweb10B", "fineweb100B", MIXTURE)


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
    def name(self) -> str:
        return self.source.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sources with their shares: this one alone."""
        return (Part(self.name, 1.0, self),)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def bytes_per_token(self) -> float:
        """Mean over the training split; the separators count as tokens without bytes."""
        return self.train_bytes / self.train_tokens

    def validation_texts(self, num_bytes: int, split: str = "all") -> dict[str, list[bytes]]:
        """`validation_text` by the name of its source."""
        return {self.name: self.validation_text(num_bytes, split)}

    def validation_text(self, num_bytes: int, split: str = "all") -> list[bytes]:
        """The documents that make up the first `num_bytes` bytes of the validation text, or of one
        half of its documents, the last one cut before the character that would pass them: the same
        for every tokenizer.

        All of it, with a warning, when it is shorter.

        Args: split: as `eval.split`. Raises: DataError where no document belongs to that half.
        """
        found: list[bytes] = []
        left = num_bytes
        for document in self.source.texts(self.source.validation):
            if split != "all" and split_of(document) != split:
                continue
            found.append(utf8_prefix(document, left))
            left -= len(document)
            if left <= 0:
                return found
        if split != "all" and not found:
            raise DataError(
                f"eval.split={split} holds no document of {self.name}, whose validation text has "
                "too few of them to be halved; use eval.split=all, a larger data.val_fraction or "
                "more text"
            )
        logger.warning(
            "eval.bytes=%d is more than the validation text of %s holds%s; all %d bytes are scored",
            num_bytes,
            self.name,
            "" if split == "all" else f" in eval.split={split}",
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


@dataclass(frozen=True)
class Part:
    """One source of the data, with its share of the training windows and of the scored bytes."""

    name: str
    share: float
    data: PreparedData


@dataclass(frozen=True)
class MixedData:
    """Several sources in one vocabulary, as `PreparedData` for what they are together."""

    vocabulary: Tokenizer
    parts: tuple[Part, ...]
    name: str = MIXTURE

    @property
    def fingerprint(self) -> str:
        """Of the sources and their shares, whatever their names."""
        return digest(sorted([part.data.fingerprint, part.share] for part in self.parts))

    @property
    def bytes_per_token(self) -> float:
        """The mean over a training that reads each source by its share."""
        return sum(part.share * part.data.bytes_per_token for part in self.parts)

    def validation_texts(self, num_bytes: int, split: str = "all") -> dict[str, list[bytes]]:
        """The documents of each source, by its name: its share of the bytes, one at least."""
        return {
            part.name: part.data.validation_text(max(1, round(part.share * num_bytes)), split)
            for part in self.parts
        }

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [
            f"corpus       {self.name} ({self.fingerprint})",
            f"tokenizer    {self.vocabulary.name}, {self.vocabulary.size} ids",
        ]
        for part in self.parts:
            data = part.data
            lines.append(
                f"  {part.name}: {part.share:.1%} from {data.name}, {data.train_bytes:,} bytes of "
                f"training in {data.train_tokens:,} tokens, {data.validation_bytes:,} of validation"
            )
        return "\n".join(lines)


AnyData = PreparedData | MixedData


def prepare(
    data: DataConfig, *, vocabulary: Tokenizer | None = None, progress: Say | None = None
) -> AnyData:
    """Builds whatever of the prepared data is not in the cache folder yet, and opens it.

    Args:
        vocabulary: one to use instead of what `data.tokenizer` says, such as a run's own.
        progress: called with a line of text before each piece of work, and during a long one where
            no terminal shows a bar; None is silent.

    Raises: DataError when the corpus or the tokenizer cannot be had, or the cache not written.
    """
    vocabulary = vocabulary or named_vocabulary(data)
    if data.corpus == MIXTURE:
        return _mixture(data, vocabulary, progress)
    return _in_tokens(_source(data, progress), data, vocabulary, progress)


def _in_tokens(
    source: Source, data: DataConfig, vocabulary: Tokenizer | None, say: Say | None
) -> PreparedData:
    is_its_own = vocabulary is None and data.tokenizer == source.vocabulary.name
    if is_its_own or (vocabulary is not None and vocabulary.equals(source.vocabulary)):
        vocabulary, train = source.vocabulary, source.train
    elif data.corpus == "bin" and data.tokenizer == source.vocabulary.name:
        raise DataError(
            f"the shards of data.path={data.path} are written in another vocabulary than the "
            f"run's own; give shards of its {TOKENIZER_FILE}"
        )
    else:
        vocabulary, train = tokenized(source, data, vocabulary, say)
    return PreparedData(
        source=source,
        vocabulary=vocabulary,
        train=train,
        train_tokens=sum(shard.num_tokens for shard in train),
        train_bytes=num_text_bytes(train, vocabulary),
        validation_bytes=num_text_bytes(source.validation, source.vocabulary),
    )


def _mixture(data: DataConfig, vocabulary: Tokenizer | None, say: Say | None) -> MixedData:
    """All sources in one vocabulary: the one given, known by name, or trained on all of them."""
    settings = {name: data.of_source(name) for name in data.sources}
    sources = {name: _source(own, say) for name, own in settings.items()}
    weights = [source.weight for source in data.sources.values()]
    shares = [weight / sum(weights) for weight in weights]
    if vocabulary is None and data.tokenizer == "bpe":
        vocabulary = mixed_vocabulary(list(sources.values()), shares, data, say)
    parts = []
    for (name, source), share in zip(sources.items(), shares, strict=True):
        parts.append(Part(name, share, _in_tokens(source, settings[name], vocabulary, say)))
    return MixedData(parts[0].data.vocabulary, tuple(parts))


def _source(data: DataConfig, say: Say | None) -> Source:
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
        return import_text(stdlib_corpus(), data, say)
    if data.corpus == "packages":
        return import_text(packages_corpus(), data, say)
    if data.corpus == "text":
        allow = data.tokenizer == "bytes"
        found = text_corpus(data.path, allow_invalid_utf8=allow, text_key=data.text_key)
        return import_text(found, data, say)
    if data.corpus == "huggingface":
        return import_text(hub_corpus(data.path, data.text_key), data, say)
    if data.corpus == "bin":
        return _shard_source(data, _shards_at(data.path), say)
    folder = fineweb_folder(data.corpus)
    if not any(folder.glob("*.bin")):
        raise DataError(
            f"data.corpus={data.corpus} is not on this machine; run "
            f"`nanozoo prepare {data.corpus}` once (looked in {folder})"
        )
    return _shard_source(data, _shards_at(str(folder)), say)


def _shard_source(data: DataConfig, paths: list[Path], say: Say | None) -> Source:
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
        vocabulary = named_vocabulary(data) or load_tokenizer(paths[0].parent, data)
    else:
        vocabulary = gpt2_tokenizer()
    validation, train = (
        checked((open_foreign(path, vocabulary, said_by(say)) for path in of_part), vocabulary)
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
