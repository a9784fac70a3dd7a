"""How the symbols of a task become ids that a model reads: a token each, some bytes, or a word.

S symbols, w ids of a symbol, T ids of a window without its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from nanozoo_core.evaluation.estimate import UnknownVocabulary
from nanozoo_core.probing.lexicon import pseudo_words
from nanozoo_core.probing.task import Sample, Task, integers

FIRST_PRINTABLE, NUM_PRINTABLE = ord("!"), 94
BYTE_SEPARATOR = 256  # that of core's bytes: ids below it are bytes
BYTE_VOCABULARY = 258  # with a separator and padding
PATCH = 8  # windows of bytes are whole patches, and answers stand at all places of one


@dataclass(frozen=True)
class Coded:
    """A sample as ids. `answer` names for each id the answer that it belongs to, -1 for none."""

    ids: tuple[int, ...]  # (T,)
    answer: tuple[int, ...]  # (T,)


class Coding(Protocol):
    """How symbols are written."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Ids of the vocabulary."""
        ...

    @property
    def separator(self) -> int:
        """Starts every window, and is no symbol."""
        ...

    def length(self, task: Task) -> int:
        """T: the same for all samples of a task."""
        ...

    def encode(self, task: Task, sample: Sample, generator: torch.Generator) -> Coded:
        """Args: generator: that of the sample, which has drawn its symbols."""
        ...


class ProbeVocabulary(UnknownVocabulary):
    """The ids of a coding as a model is built for them."""

    name = "probe"

    def __init__(self, coding: Coding) -> None:
        super().__init__(coding.size)
        self.separator = coding.separator


@dataclass(frozen=True)
class Tokens:
    """An id for each symbol, and one more for the separator."""

    num_symbols: int
    name: str = "tokens"

    @property
    def size(self) -> int:
        return self.num_symbols + 1

    @property
    def separator(self) -> int:
        return self.num_symbols

    def length(self, task: Task) -> int:
        return task.length

    def encode(self, task: Task, sample: Sample, generator: torch.Generator) -> Coded:
        return _written(sample, [[symbol] for symbol in sample.symbols])


@dataclass(frozen=True)
class Bytes:
    """One printable byte for each symbol, or two where there are more than 94 symbols; those of a
    task's own alphabet as they are.

    Windows are whole patches of `PATCH` bytes. 0 .. PATCH - 1 separators lead, and as many as are
    missing follow, so that answers are asked for at all places of a patch.
    """

    num_symbols: int
    symbol_bytes: bytes = b""
    name: str = "bytes"
    size: int = BYTE_VOCABULARY
    separator: int = BYTE_SEPARATOR

    @property
    def width(self) -> int:
        return 1 if self.num_symbols <= NUM_PRINTABLE else 2

    def symbol(self, number: int) -> list[int]:
        if self.symbol_bytes:
            return [self.symbol_bytes[number]]
        digits = [number] if self.width == 1 else [*divmod(number, NUM_PRINTABLE)]
        return [FIRST_PRINTABLE + digit for digit in digits]

    def length(self, task: Task) -> int:
        return (self.width * task.length // -PATCH) * -PATCH + PATCH

    def encode(self, task: Task, sample: Sample, generator: torch.Generator) -> Coded:
        coded = _written(sample, [self.symbol(symbol) for symbol in sample.symbols])
        (drawn,) = integers(generator, PATCH, 1)
        lead = self.length(task) - PATCH - len(coded.ids) + drawn
        return _padded(coded, lead, self.length(task), self.separator)


@dataclass(frozen=True)
class Words:
    """A fixed pseudo-word of some letters and a space for each symbol, so that chunks can help.

    Separators lead, as words differ in length.
    """

    words: tuple[bytes, ...]
    name: str = "spell"
    size: int = BYTE_VOCABULARY
    separator: int = BYTE_SEPARATOR

    @classmethod
    def of(cls, task: Task, seed: int) -> Words:
        """The words of a task, drawn for a seed."""
        return cls(pseudo_words(seed, task.number, task.num_symbols, index=1))

    def length(self, task: Task) -> int:
        longest = max(map(len, self.words)) + 1
        return (longest * task.length // -PATCH) * -PATCH

    def encode(self, task: Task, sample: Sample, generator: torch.Generator) -> Coded:
        coded = _written(sample, [[*self.words[symbol], ord(" ")] for symbol in sample.symbols])
        length = self.length(task)
        return _padded(coded, length - len(coded.ids), length, self.separator)


def _written(sample: Sample, parts: Sequence[Sequence[int]]) -> Coded:
    spans = enumerate(sample.spans())
    answers = {place: number for number, span in spans for place in span}
    ids: list[int] = []
    answer: list[int] = []
    for place, part in enumerate(parts):
        ids += part
        answer += [answers.get(place, -1)] * len(part)
    return Coded(tuple(ids), tuple(answer))


def _padded(coded: Coded, lead: int, length: int, separator: int) -> Coded:
    behind = length - lead - len(coded.ids)
    assert min(lead, behind) >= 0
    return Coded(
        (*(separator,) * lead, *coded.ids, *(separator,) * behind),
        (*(-1,) * lead, *coded.answer, *(-1,) * behind),
    )


CODINGS = ("plain", "spell")


def coding_for(task: Task, kind: str, seed: int, *, reads_bytes: bool) -> Coding:
    """How a model reads a task: `plain` is tokens, or bytes for a model that reads bytes; `spell`
    is words for all."""
    if kind == "spell":
        return Words.of(task, seed)
    return Bytes(task.num_symbols, task.symbol_bytes) if reads_bytes else Tokens(task.num_symbols)
