"""The tokenizer and the data that a run keeps: written when it begins, compared when it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nanozoo_core.config import DataConfig, TrainingConfig
from nanozoo_core.config.overrides import Referred
from nanozoo_core.config.settings import SourceConfig
from nanozoo_core.data.cache import digest
from nanozoo_core.data.prepare import AnyData
from nanozoo_core.data.shards import shard_content
from nanozoo_core.data.tokenizers import Tokenizer, load_tokenizer
from nanozoo_core.errors import CheckpointError, MissingDataError
from nanozoo_core.training.run_folder import RunFolder


@dataclass(frozen=True)
class RunData:
    """What a run reads, in two digests."""

    fingerprint: str
    """Of the documents and their split, whatever their order and the tokenizer."""
    tokens: str
    """Of the training tokens and the validation text as they are read."""

    @classmethod
    def of(cls, data: AnyData) -> RunData:
        parts = [
            pair
            for part in data.parts
            for pair in (
                (part.data.train, data.vocabulary),
                (part.data.source.validation, part.data.source.vocabulary),
            )
        ]
        contents = [
            [shard_content(shard, vocabulary.byte_counts).content for shard in shards]
            for shards, vocabulary in parts
        ]
        return cls(data.fingerprint, digest(contents))

    def write(self, folder: RunFolder) -> None:
        folder.write_data(asdict(self))

    @classmethod
    def read(cls, folder: RunFolder) -> RunData | None:
        """None where the run was begun by a version that did not write it."""
        stored = folder.read_data()
        return None if stored is None else cls(stored["fingerprint"], stored["tokens"])


def own_vocabulary(folder: RunFolder, config: TrainingConfig) -> Tokenizer | None:
    """The byte-pair vocabulary that a run keeps; None where its tokenizer is known by name.

    Raises: DataError when the run has lost it.
    """
    vocabulary = load_tokenizer(folder.path, config.data)
    return vocabulary if vocabulary.name == "bpe" else None


def lasting_path(data: DataConfig | SourceConfig) -> str | list[str] | None:
    """A path of data as it means the same from every folder; a reference to the environment
    stays."""
    if data.path is None or data.corpus not in ("text", "bin"):
        return data.path
    if isinstance(data.path, list):
        return [_absolute(path) for path in data.path]
    return _absolute(data.path)


def _absolute(path: str) -> str:
    return path if isinstance(path, Referred) else str(Path(path).expanduser().absolute())


@contextmanager
def told_where_to_look(folder: RunFolder) -> Iterator[None]:
    """Says of a run's data that are not where they were how to say where they are."""
    try:
        yield
    except MissingDataError as error:
        raise MissingDataError(
            error.what,
            f"the run in {folder} takes the same text from any place: say where it is now, as "
            "data.path=PLACE, or data.sources.NAME.path=PLACE for a source of a mixture",
        ) from error


def check_same_data(folder: RunFolder, data: AnyData, *, accept: bool) -> None:
    """Compares the data of a run that goes on with those that it began with.

    Raises: CheckpointError when they differ, unless the change is accepted.
    """
    then, now = RunData.read(folder), RunData.of(data)
    if accept or then == now:
        return
    if then is None:
        what = f"{folder} does not say which data it has read"
    elif then.fingerprint != now.fingerprint:
        what = (
            f"the text of {data.name} has changed since the run in {folder} began "
            f"(fingerprint {then.fingerprint} then, {now.fingerprint} now)"
        )
    else:
        what = (
            f"the documents of {data.name} come in another order than when the run in "
            f"{folder} began, since their files have other names or sizes"
        )
    raise CheckpointError(
        f"{what}; put data.corpus and data.path back as they were, or go on with the data of now "
        f"by resume_data=accept"
    )
