"""Marks are what a model deserves: an oracle gets all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from task_solvers import SOLVERS
from torch import Tensor, nn

from nanozoo_core.contract import PartialText, SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.probing.batches import Source
from nanozoo_core.probing.coding import Bytes, Coding, Tokens, Words
from nanozoo_core.probing.scoring import Marks, fill_samples, read_samples
from nanozoo_core.probing.task import TEST, Sample, Task
from nanozoo_core.probing.tasks import TASKS
from nanozoo_core.probing.tasks.bridge import Bridge
from nanozoo_core.probing.tasks.restore import Restore
from nanozoo_core.probing.training import Learner

NO_ANSWER = (ValueError, TypeError, IndexError, KeyError, StopIteration, AssertionError)


def symbols_of(coding: Coding, task: Task, ids: Sequence[int]) -> list[int | None]:
    """The symbols of whole ids, None for a hole. The reverse of a coding."""
    if isinstance(coding, Tokens):
        return [n for n in ids if n != coding.separator]  # type: ignore[return-value]
    shown = [n for n in ids if n != coding.separator]
    if isinstance(coding, Bytes):
        parts = [shown[n : n + coding.width] for n in range(0, len(shown), coding.width)]
        known = {tuple(coding.symbol(n)): n for n in range(task.num_symbols)}
        return [known.get(tuple(part)) for part in parts if len(part) == coding.width]
    assert isinstance(coding, Words)
    whole = bytes(n for n in shown if n is not None).split(b" ")[:-1]
    return [coding.words.index(word) for word in whole]


def ids_of(coding: Coding, symbol: int) -> list[int]:
    if isinstance(coding, Tokens):
        return [symbol]
    if isinstance(coding, Bytes):
        return coding.symbol(symbol)
    assert isinstance(coding, Words)
    return [*coding.words[symbol], ord(" ")]


class Nothing(nn.Module):
    """A network that is never asked."""

    max_context = 10**6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Oracle(DefaultModelAdapter):
    """Answers by the solver of the task whatever has an answer; reads from left to right."""

    def __init__(self, task: Task, coding: Coding) -> None:
        super().__init__(object, Nothing)
        self.task, self.coding = task, coding

    def has_cache(self, model: nn.Module) -> bool:
        return True

    def init_cache(self, model: nn.Module, batch_size: int, max_length: int) -> Any:
        return [[] for _ in range(batch_size)]

    def prefill(self, model: nn.Module, tokens: Tensor, lengths: Tensor, cache: Any) -> Tensor:
        return self.append(model, tokens, cache)[:, -1]

    def append(self, model: nn.Module, tokens: Tensor, cache: Any) -> Tensor:
        logits = torch.zeros(*tokens.shape, self.coding.size)
        for row, new in enumerate(tokens.tolist()):
            for place, token in enumerate(new):
                cache[row].append(token)
                logits[row, place, self.next_id(cache[row])] = 1
        return logits

    def next_id(self, ids: list[int]) -> int:
        before = symbols_of(self.coding, self.task, ids)
        done = sum(len(ids_of(self.coding, s)) for s in before if s is not None)
        begun = len([n for n in ids if n != self.coding.separator]) - done
        try:
            answer = SOLVERS[self.task.name](self.task, before, [])  # type: ignore[arg-type]
            return ids_of(self.coding, answer)[begun]
        except NO_ANSWER:
            return 0


class FillingOracle(Oracle):
    """The same for a model that fills holes, and sees what is behind them."""

    def denoise(
        self,
        model: nn.Module,
        window: PartialText,
        settings: SamplingSettings,
        generator: torch.Generator,
    ) -> Iterator[list[int | None]]:
        symbols: list[int | None] = list(window[1:])
        for place, symbol in enumerate(symbols):
            if symbol is None:
                solve = SOLVERS[self.task.name]
                behind = symbols[place + 1 :]
                symbols[place] = solve(self.task, symbols[:place], behind)  # type: ignore[arg-type]
        yield [window[0], *symbols]

    def denoised_length(self, model: nn.Module, length: int) -> int:
        return length


def learner(adapter: DefaultModelAdapter) -> Learner:
    return Learner(adapter, None, Nothing(), torch.device("cpu"))


READABLE = {name: kind() for name, kind in TASKS.items()} | {"bridge": Bridge(suffix_first=1)}


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("kind", ["tokens", "bytes", "spell"])
def test_an_oracle_is_always_right(name: str, kind: str) -> None:
    """Read from left to right, in every coding, fed its own answers or the true ones."""
    task = READABLE[name].tested()
    size = task.num_symbols
    codings = {"tokens": lambda: Tokens(size), "bytes": lambda: Bytes(size, task.symbol_bytes)}
    coding = codings[kind]() if kind in codings else Words.of(task, 0)
    source = Source(task, coding, 0)
    count = 3 if kind == "tokens" else 1
    for free in (True, False):
        marks = read_samples(learner(Oracle(task, coding)), source, count, free=free)
        assert marks.accuracy == marks.exact == 1.0


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("hide_right", [False, True])
def test_an_oracle_fills_every_hole(name: str, hide_right: bool) -> None:
    if name == "bridge" and hide_right:
        pytest.skip("its answers are told by what is right of them")
    task = TASKS[name]().tested()
    source = Source(task, Tokens(task.num_symbols), 0)
    oracle = learner(FillingOracle(task, source.coding))
    if hide_right:
        _blind_what_is_right(oracle)
    marks = fill_samples(oracle, source, 2, at_once=True, hide_right=hide_right)
    assert marks.accuracy == 1.0


def _blind_what_is_right(oracle: Learner) -> None:
    """Only the first hole is filled by the solver; no task has an answer behind the others."""

    def denoise(model: nn.Module, window: PartialText, *_: object) -> Iterator[list[int | None]]:
        adapter = oracle.adapter
        assert isinstance(adapter, Oracle)
        place = window.index(None)
        assert all(token is None for token in window[place:])
        before = list(window[1:place])
        answer = SOLVERS[adapter.task.name](adapter.task, before, [])  # type: ignore[arg-type]
        yield [*window[:place], answer, *[0] * (len(window) - place - 1)]

    oracle.adapter.denoise = denoise  # type: ignore[method-assign,assignment]


@dataclass(frozen=True)
class Counting(Task):
    """0 5 6 with the last two asked for: to count on is right behind the true 5 alone."""

    name: ClassVar = "counting"
    number: ClassVar = 0
    num_symbols: int = 8
    length: int = 3

    @property
    def chance(self) -> float:
        return 1 / 8

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        return Sample((0, 5, 6), (1, 2), (1, 2))


class CountsOn(Oracle):
    def next_id(self, ids: list[int]) -> int:
        return (ids[-1] + 1) % 8


@pytest.mark.parametrize("keeps_state", [True, False])
def test_free_decoding_feeds_the_model_its_own_answers(keeps_state: bool) -> None:
    """With a cache, and by reading the whole text again."""
    task = Counting()
    adapter = CountsOn(task, Tokens(8))
    asked = learner(adapter)
    if not keeps_state:
        adapter.has_cache = lambda model: False  # type: ignore[method-assign]

        def forward(tokens: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((tokens + 1) % 8, 9).float()

        asked.model.forward = forward  # type: ignore[method-assign]
    source = Source(task, Tokens(8), 0)
    assert read_samples(asked, source, 2, free=False).right == ((False, True),) * 2
    assert read_samples(asked, source, 2, free=True).right == ((False, False),) * 2


def test_marks_are_counted_by_answers_samples_and_groups() -> None:
    marks = Marks(((True, False), (True, True), ()), ((1, 2), (1, 2), ()))
    assert marks.accuracy == 0.75
    assert marks.exact == 0.5
    assert marks.first == 1.0
    assert marks.by_group() == {"1": 1.0, "2": 0.5}
    assert marks.standard_error(0.5) == pytest.approx((0.25 / 2) ** 0.5)


def test_a_symbol_of_two_bytes_is_right_when_both_are() -> None:
    task = TASKS["memorization"]()
    coding = Bytes(task.num_symbols)
    adapter = Oracle(task, coding)
    whole = adapter.next_id
    adapter.next_id = lambda ids: whole(ids) if len(ids) % 2 else 0  # type: ignore[method-assign]
    source = Source(task, coding, 0)
    assert read_samples(learner(adapter), source, 2, free=False).accuracy == 0.0


@pytest.mark.parametrize("name", TASKS)
def test_codings_round_trip_at_one_length(name: str) -> None:
    """Symbols, and which of them are answers, can be read off the ids."""
    task = TASKS[name]()
    size = task.num_symbols
    for coding in (Tokens(size), Bytes(size, task.symbol_bytes), Words.of(task, 0)):
        leads = set()
        for index in range(12):
            generator = task.generator(0, TEST, index)
            sample = task.draw(generator, 0)
            coded = coding.encode(task, sample, generator)
            assert len(coded.ids) == len(coded.answer) == coding.length(task)
            assert symbols_of(coding, task, coded.ids) == list(sample.symbols)
            for number, span in enumerate(sample.spans()):
                own = [n for n, a in zip(coded.ids, coded.answer, strict=True) if a == number]
                assert own == [n for place in span for n in ids_of(coding, sample.symbols[place])]
            leads.add(next(n for n, token in enumerate(coded.ids) if token != coding.separator))
        if isinstance(coding, Bytes):
            assert len(leads) > 3
            assert coding.length(task) % 8 == 0


def test_a_model_of_bytes_reads_a_text_as_it_is() -> None:
    """And each of its words is one answer, with the space behind it."""
    task = Restore()
    found = Source(task, Bytes(task.num_symbols, task.symbol_bytes), 0).questions(TEST, [0])
    sample, ids = found.samples[0], found.batch.targets[0].tolist()
    text = bytes(n for n in ids if n < 256).decode().lstrip(".")
    before, _, clean = text.partition("=")
    assert before.lower() + " " == clean
    for number, size in enumerate(sample.sizes):
        own = [chr(ids[n]) for n in (found.answer[0] == number).nonzero()[:, 0].tolist()]
        assert "".join(own) == clean.split(" ")[number] + " "
        assert len(own) == size


def test_an_answer_of_several_symbols_is_right_when_all_are() -> None:
    """An oracle that misses the last letter of each word has no word right."""
    task = Restore()
    adapter = Oracle(task, Tokens(task.num_symbols))
    whole, space = adapter.next_id, 52
    adapter.next_id = lambda ids: 0 if whole(ids) == space else whole(ids)  # type: ignore[method-assign]
    source = Source(task, adapter.coding, 0)
    assert read_samples(learner(adapter), source, 2, free=False).accuracy == 0.0


def test_words_are_different_and_end_with_a_space() -> None:
    words = Words.of(TASKS["memorization"](), 0).words
    assert len(set(words)) == 256
    assert all(3 <= len(word) <= 6 and b" " not in word for word in words)


def test_a_batch_is_laid_out_as_the_contract_says() -> None:
    """A separator leads; what only a lookahead reads is another document of separators."""
    task = TASKS["star"]()
    source = Source(task, Tokens(task.num_symbols), 0)
    found = source.questions(TEST, [0, 1], lookahead=3)
    batch, sample = found.batch, found.samples[0]
    assert batch.tokens[0].tolist() == [15, *sample.symbols, 15, 15]
    assert batch.targets[0].tolist() == list(sample.symbols)
    assert batch.documents[0].tolist() == [0] * 33 + [1] * 2
    assert batch.scored is not None
    assert batch.scored[0].nonzero()[:, 0].tolist() == list(sample.answers)
    assert source.training_batch(0, 2, 1, "all").scored is None
