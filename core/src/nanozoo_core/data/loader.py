"""Batches of windows: training batch s is a pure function of (seed, s), and validation reads the
same text, each token once, for every model.

Shapes: B windows, T seq_len, A lookahead.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.data.mixing import MixedWindows
from nanozoo_core.data.prepare import AnyData
from nanozoo_core.data.shards import Tokens
from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.data.windows import Align, Windows
from nanozoo_core.errors import DataError
from nanozoo_core.randomness import hash_integers


@dataclass(frozen=True)
class BatchStage:
    """From step `start` on, the global batch has `batch_windows` windows of `seq_len` scored
    tokens, which every process reads in `num_micro_steps` equal parts."""

    start: int
    batch_windows: int
    seq_len: int
    num_micro_steps: int = 1

    @property
    def tokens(self) -> int:
        """Scored tokens of a step."""
        return self.batch_windows * self.seq_len


class TrainLoader:
    """Reads training batches by number; it has no state, so any order of calls gives the same.

    The windows of an epoch are visited in a seeded order, one after the other, `batch_windows` to a
    step. Stages change the batch size or the window length, by rising `start`, the first at 0:
    windows of the same length go on where the stage before stopped, those of a new length begin an
    epoch.
    """

    def __init__(
        self,
        prepared: AnyData,
        stages: Sequence[BatchStage],
        *,
        lookahead: int = 1,
        seed: int = 0,
        align: Align = "stream",
    ) -> None:
        """Raises: DataError when the data hold no window of that length."""
        self.vocabulary = prepared.vocabulary
        self.lookahead = lookahead
        self.stages = tuple(stages)
        assert self.stages[0].start == 0
        assert all(a.start < b.start for a, b in zip(self.stages, self.stages[1:], strict=False))
        self._windows = {
            length: _find_windows(prepared, seq_len=length, lookahead=lookahead, align=align)
            for length in {stage.seq_len for stage in self.stages}
        }
        self._sources = [part.name for part in prepared.parts]
        self._seeds, self._visited = [hash_integers(seed, 0)], [0]
        for number, (stage, following) in enumerate(
            zip(self.stages, self.stages[1:], strict=False), start=1
        ):
            if following.seq_len == stage.seq_len:
                steps = following.start - stage.start
                self._visited.append(self._visited[-1] + steps * stage.batch_windows)
                self._seeds.append(self._seeds[-1])
            else:
                self._visited.append(0)
                self._seeds.append(hash_integers(seed, number))

    def stage(self, step: int) -> BatchStage:
        """The batch of a step."""
        return self.stages[self.stage_number(step)]

    def stage_number(self, step: int) -> int:
        return sum(stage.start <= step for stage in self.stages) - 1

    def num_windows(self, step: int = 0) -> int:
        """Windows in one epoch at the window length of that step."""
        return len(self._windows[self.stage(step).seq_len])

    def epochs(self, step: int) -> float:
        """How often the text has been read before a step, by the windows of each stage."""
        return sum(
            steps * stage.batch_windows / len(self._windows[stage.seq_len])
            for stage, steps in self._steps_of_stages(step)
        )

    def epochs_of_sources(self, step: int) -> dict[str, float]:
        """How often the text of each source has been read before a step, by its name."""
        epochs = dict.fromkeys(self._sources, 0.0)
        for (stage, steps), first in zip(self._steps_of_stages(step), self._visited, strict=True):
            windows = self._windows[stage.seq_len]
            before = windows.counts(first)
            after = windows.counts(first + steps * stage.batch_windows)
            for name, part, a, b in zip(self._sources, windows.parts, before, after, strict=True):
                epochs[name] += (b - a) / len(part)
        return epochs

    def _steps_of_stages(self, step: int) -> list[tuple[BatchStage, int]]:
        """Each stage with how many of its steps lie before a step."""
        ends = [*(stage.start for stage in self.stages[1:]), step]
        return [
            (stage, max(0, min(end, step) - stage.start))
            for stage, end in zip(self.stages, ends, strict=True)
        ]

    def batch(self, step: int, first_row: int = 0, num_rows: int | None = None) -> Batch:
        """Rows first_row .. first_row + num_rows - 1 (None: to the end) of the global batch of a
        step."""
        number = self.stage_number(step)
        stage = self.stages[number]
        if num_rows is None:
            num_rows = stage.batch_windows - first_row
        assert 0 <= first_row <= first_row + num_rows <= stage.batch_windows
        rows = np.arange(first_row, first_row + num_rows)
        indices = self._visited[number] + (step - stage.start) * stage.batch_windows + rows
        tokens = self._windows[stage.seq_len].visit(indices, self._seeds[number])  # (B, T + A)
        return make_batch(
            tokens,
            rows,
            separator=self.vocabulary.separator,
            num_rows=stage.batch_windows,
            lookahead=self.lookahead,
        )


def _find_windows(
    prepared: AnyData, *, seq_len: int, lookahead: int, align: Align
) -> Windows | MixedWindows:
    """Raises: DataError when a source holds no window of that length."""
    found = []
    for part in prepared.parts:
        try:
            windows = Windows.find(
                part.data.train,
                seq_len=seq_len,
                lookahead=lookahead,
                align=align,
                separator=prepared.vocabulary.separator,
            )
        except DataError as error:
            if len(prepared.parts) == 1:
                raise
            raise DataError(f"data.sources.{part.name}: {error}") from error
        found.append(windows)
    if len(found) == 1:
        return found[0]
    return MixedWindows.of(found, [part.share for part in prepared.parts])


class ValidationText(Protocol):
    """What a `ValidationSet` is made of: prepared data, or `GivenTexts`."""

    @property
    def vocabulary(self) -> Tokenizer: ...

    def validation_texts(self, num_bytes: int, split: str) -> dict[str, list[bytes]]:
        """The documents of each source, by its name, of `num_bytes` in all."""
        ...


@dataclass(frozen=True)
class GivenTexts:
    """Documents in the place of prepared data, to be scored whole."""

    documents: tuple[bytes, ...]
    vocabulary: Tokenizer

    def validation_texts(self, num_bytes: int, split: str) -> dict[str, list[bytes]]:
        return {"given": list(self.documents)}


class ValidationSet:
    """The first `num_bytes` bytes of the validation text, or of one half of its documents
    (`eval.split`), as windows in which each token is scored once; of several sources each gives its
    share of the bytes, one after the other.

    The stream of a source is a separator and a document, a separator and a document, ...; its first
    token is context only, so every byte is scored, and every separator but the first. Windows begin
    at multiples of T; the last is moved back to be full and leaves unscored what was scored before.
    Past the end of the stream (lookahead, or a text shorter than one window) stand separators.
    """

    def __init__(
        self,
        prepared: ValidationText,
        *,
        seq_len: int,
        lookahead: int = 1,
        num_bytes: int,
        split: str = "all",
    ) -> None:
        self.seq_len, self.lookahead = seq_len, lookahead
        self.separator = prepared.vocabulary.separator
        self.documents: list[bytes] = []
        self.source_bytes: dict[str, int] = {}
        streams, num_tokens, num_windows = [], [], []
        for name, documents in prepared.validation_texts(num_bytes, split).items():
            stream, count = self._stream_of(documents, prepared.vocabulary)
            if count < 1:
                raise DataError(f"eval.bytes={num_bytes} leaves no validation text; use more")
            self.documents += documents
            self.source_bytes[name] = sum(map(len, documents))
            streams.append(stream)
            num_tokens.append(count)
            num_windows.append(-(-count // seq_len))
        self.num_bytes = sum(self.source_bytes.values())
        self.num_tokens = sum(num_tokens)  # scored ones
        self.num_windows = sum(num_windows)
        self._stream = np.concatenate(streams)
        self._source_tokens = np.array(num_tokens)
        self._ends = np.cumsum(num_windows)
        self._firsts = self._ends - num_windows
        sizes = np.array([stream.size for stream in streams])
        self._offsets = np.cumsum(sizes) - sizes

    def _stream_of(self, documents: list[bytes], vocabulary: Tokenizer) -> tuple[Tokens, int]:
        """The tokens of a source, padded behind, and how many of them are scored."""
        separator = np.array([self.separator], dtype=vocabulary.dtype)
        parts = [part for d in documents for part in (separator, vocabulary.encode_array(d))]
        tokens = np.concatenate(parts)
        padding = max(0, self.seq_len - (tokens.size - 1)) + self.lookahead - 1
        return np.concatenate([tokens, np.repeat(separator, padding)]), tokens.size - 1

    def sources_of(self, rows: Tensor) -> Tensor:
        """(B,) int64: the number of the source that each window is of."""
        return torch.from_numpy(np.searchsorted(self._ends, rows.numpy(), side="right"))

    def batches(self, batch_windows: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's windows, `batch_windows` at a time, in every rank the same number of batches.

        Where the windows do not divide evenly, a rank repeats the last one with nothing scored.
        """
        share = -(-self.num_windows // world_size)
        mine = np.arange(rank, rank + share * world_size, world_size)
        for first in range(0, share, batch_windows):
            yield self._batch(mine[first : first + batch_windows])

    def _batch(self, numbers: npt.NDArray[np.int64]) -> Batch:
        rows = np.minimum(numbers, self.num_windows - 1)
        source = np.searchsorted(self._ends, rows, side="right")
        num_tokens, begin = (
            self._source_tokens[source],
            (rows - self._firsts[source]) * self.seq_len,
        )
        starts = np.minimum(begin, np.maximum(0, num_tokens - self.seq_len))
        positions = starts[:, None] + np.arange(self.seq_len + self.lookahead)  # (B, T + A)
        targets = positions[:, 1 : self.seq_len + 1]  # (B, T)
        fresh = (targets > begin[:, None]) & (targets <= num_tokens[:, None])
        scored = fresh & (numbers < self.num_windows)[:, None]
        return make_batch(
            self._stream[self._offsets[source][:, None] + positions],
            rows,
            separator=self.separator,
            num_rows=self.num_windows,
            lookahead=self.lookahead,
            scored=None if scored.all() else torch.from_numpy(scored),
        )


def make_batch(
    tokens: Tokens,
    rows: npt.NDArray[np.int64],
    *,
    separator: int,
    num_rows: int,
    lookahead: int,
    scored: Tensor | None = None,
) -> Batch:
    """A batch of windows (B, T + A); the documents of a window are counted from its start."""
    documents = np.cumsum(tokens == separator, axis=1, dtype=np.int32)
    documents -= documents[:, :1]
    return Batch(
        tokens=torch.from_numpy(tokens.astype(np.int64)),
        documents=torch.from_numpy(documents),
        rows=torch.from_numpy(rows),
        num_rows=num_rows,
        lookahead=lookahead,
        scored=scored,
    )


def compression_baselines(documents: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte of zlib, bz2 and xz at their strongest on validation text, in one stream:
    lines of reference for a model's."""
    text = b"".join(documents)
    # The preset's own dictionary of 64 MiB takes 700 MB; one as long as the text finds as much.
    strongest = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": min(max(len(text), 4096), 2**26),
    }
    compressed = {
        "zlib": zlib.compress(text, 9),
        "bz2": bz2.compress(text, 9),
        "xz": lzma.compress(text, filters=[strongest]),
    }
    return {name: 8 * len(data) / len(text) for name, data in compressed.items()}
