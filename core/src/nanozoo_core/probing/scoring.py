"""What a model answers, asked as it would be used: token after token, or as holes to be filled.

The forward pass of training is never asked: routing over a whole window would see the answers.

B windows, T ids of a window without its first, N answers, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation.denoising import denoised
from nanozoo_core.probing.batches import Questions, Source
from nanozoo_core.probing.task import TEST
from nanozoo_core.probing.training import Learner
from nanozoo_core.randomness import seeded_generator

WINDOWS = 64  # that are decoded together


@dataclass(frozen=True)
class Marks:
    """Which answers of which samples were right."""

    right: tuple[tuple[bool, ...], ...]
    """For each sample, each answer in order."""
    groups: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """The share of answers."""
        return _mean([one for sample in self.right for one in sample])

    @property
    def exact(self) -> float:
        """The share of samples with all answers right, of those that have any."""
        return _mean([all(sample) for sample in self.right if sample])

    @property
    def first(self) -> float:
        """The share of the answers of the least group."""
        return next(iter(self.by_group().values()))

    def standard_error(self, value: float) -> float:
        """Of a share, over samples: sqrt(p (1 - p) / N)."""
        return math.sqrt(value * (1 - value) / sum(map(bool, self.right)))

    def by_group(self) -> dict[str, float]:
        """The accuracy of the answers of each group."""
        found: dict[int, list[bool]] = {}
        for marks, groups in zip(self.right, self.groups, strict=True):
            for is_right, group in zip(marks, groups, strict=True):
                found.setdefault(group, []).append(is_right)
        return {str(group): _mean(found[group]) for group in sorted(found)}

    @classmethod
    def joined(cls, parts: Sequence[Marks]) -> Marks:
        right = tuple(sample for part in parts for sample in part.right)
        return cls(right, tuple(sample for part in parts for sample in part.groups))


def _mean(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)


def marks_of(questions: Questions, found: Tensor) -> Marks:
    """Args: found: (B, T), what stands at each target; an answer is right when all its ids are."""
    wrong = (found != questions.batch.targets.cpu()).tolist()
    right = []
    rows = zip(questions.samples, questions.answer.tolist(), wrong, strict=True)
    for sample, answer, is_wrong in rows:
        missed = {number for number, miss in zip(answer, is_wrong, strict=True) if miss}
        right.append(tuple(number not in missed for number in range(len(sample.answers))))
    return Marks(tuple(right), tuple(sample.groups for sample in questions.samples))


def guessed(source: Source, num_samples: int, split: int = TEST) -> Marks:
    """What the task's trivial strategy gets right, told the true answers before each."""
    task, seed = source.task, source.seed
    right, groups = [], []
    for index in range(num_samples):
        sample = task.sample(seed, split, index)
        symbols = sample.symbols
        right.append(
            tuple(
                all(task.guess(symbols[:place], seed) == symbols[place] for place in answer)
                for answer in sample.spans()
            )
        )
        groups.append(sample.groups)
    return Marks(tuple(right), tuple(groups))


# -- from left to right -------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a model that reads from left to right says of the targets of a batch."""

    found: Tensor  # (B, T): the likeliest id at each target from the first answer on, else -1
    nats: Tensor  # (B, T): of the true id, at the answers, else 0


@torch.no_grad()
def read(learner: Learner, questions: Questions, *, free: bool) -> Reading:
    """Decodes a batch. Args: free: whether the model is fed its own answers, or the true ones."""
    batch = questions.batch.to(learner.device)
    targets, scored = batch.targets, batch.scored
    assert scored is not None
    places = scored.any(0).nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1])
    inputs = batch.inputs[:, : last + 1].clone()
    found = torch.full_like(targets, -1)
    nats = torch.zeros(targets.shape, dtype=torch.float64, device="cpu")
    decoder = _Decoder(learner, len(inputs), last + 1)

    def note(place: int, logits: Tensor) -> None:
        """Logits (B, K, V) of the targets from `place` on."""
        stop = place + logits.shape[1]
        found[:, place:stop] = logits.argmax(-1)
        truth = targets[:, place:stop, None]
        own = -logits.float().log_softmax(-1).gather(-1, truth)[..., 0]
        nats[:, place:stop] = (own * scored[:, place:stop]).double().cpu()

    note(first, decoder.read(inputs[:, : first + 1]))
    if not free:
        if last > first:
            note(first + 1, decoder.read(inputs[:, first + 1 :]))
        return Reading(found.cpu(), nats)
    for place in range(first + 1, last + 1):
        inputs[:, place] = torch.where(scored[:, place - 1], found[:, place - 1], inputs[:, place])
        note(place, decoder.read(inputs[:, place : place + 1]))
    return Reading(found.cpu(), nats)


class _Decoder:
    """The decoding path of an adapter: `prefill` and `append`, or all of the text again where the
    model keeps no state."""

    def __init__(self, learner: Learner, num_rows: int, length: int) -> None:
        self.learner = learner
        self.cache = None
        self.text: Tensor | None = None
        if learner.adapter.has_cache(learner.model):
            self.cache = learner.adapter.init_cache(learner.model, num_rows, length)

    def read(self, tokens: Tensor) -> Tensor:
        """Reads K more tokens, (B, K) -> the logits after each, (B, K, V); of the first ones only
        those after the last, (B, 1, V)."""
        adapter, model = self.learner.adapter, self.learner.model
        is_first = self.text is None
        text = tokens if self.text is None else torch.cat([self.text, tokens], dim=1)
        self.text = text
        if self.cache is None:
            after = [model(text[:, :stop])[:, -1] for stop in self._stops(tokens, is_first)]
            return torch.stack(after, dim=1)
        if is_first:
            lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
            return adapter.prefill(model, tokens, lengths, self.cache)[:, None]
        return adapter.append(model, tokens, self.cache)

    def _stops(self, tokens: Tensor, is_first: bool) -> list[int]:
        assert self.text is not None
        length = self.text.shape[1]
        return [length] if is_first else list(range(length - tokens.shape[1] + 1, length + 1))


def read_samples(
    learner: Learner, source: Source, num_samples: int, *, free: bool, split: int = TEST
) -> Marks:
    """The marks of a model that reads from left to right."""
    parts = []
    for questions in _batches(source, num_samples, split):
        parts.append(marks_of(questions, read(learner, questions, free=free).found))
    return Marks.joined(parts)


def _batches(source: Source, num_samples: int, split: int) -> list[Questions]:
    return [
        source.questions(split, range(first, min(first + WINDOWS, num_samples)))
        for first in range(0, num_samples, WINDOWS)
    ]


# -- holes --------------------------------------------------------------------------------------


def fill_samples(
    learner: Learner,
    source: Source,
    num_samples: int,
    *,
    at_once: bool,
    split: int = TEST,
    hide_right: bool = False,
) -> Marks:
    """The marks of a model that fills holes: all answers of a sample are holes, and the rest of it
    is seen from both sides.

    Args: at_once: in one step, each hole by itself, else in as many as there are holes.
        hide_right: see no symbol behind an answer that is asked for: one answer is asked at a time,
        with holes on all its right.
    Raises: ConfigError where the model's sampler takes no number of steps and `at_once` asks for 1.
    """
    parts: list[Marks] = []
    for questions in _batches(source, num_samples, split):
        found = torch.full(questions.answer.shape, -1)
        rows = zip(questions.batch.window.tolist(), questions.answer.tolist(), strict=True)
        for row, (text, answer) in enumerate(rows):
            index = len(parts) * WINDOWS + row
            generator = seeded_generator(source.seed, source.task.number, split, index, 1)
            for window, asked in _windows(text, answer, hide_right=hide_right):
                whole = _filled(learner, window, generator, at_once=at_once)
                for place in asked:
                    found[row, place] = whole[place + 1]
        parts.append(marks_of(questions, found))
    return Marks.joined(parts)


def _windows(
    text: Sequence[int], answer: Sequence[int], *, hide_right: bool
) -> Iterator[tuple[list[int | None], list[int]]]:
    """The windows that are shown, and the targets that each is asked for: one with all answers as
    holes, or one for each id of an answer, in which it and all behind it are holes."""
    places = [place for place, own in enumerate(answer) if own >= 0]
    if not hide_right:
        holes = [token if own < 0 else None for token, own in zip(text[1:], answer, strict=True)]
        yield [text[0], *holes], places
        return
    for place in places:
        yield [*text[: place + 1], *[None] * (len(answer) - place)], [place]


def _filled(
    learner: Learner,
    window: list[int | None],
    generator: torch.Generator,
    *,
    at_once: bool,
) -> list[int]:
    steps = 1 if at_once else window.count(None)
    settings = SamplingSettings(temperature=0.0, num_steps=steps)

    def fill(settings: SamplingSettings) -> list[int]:
        return denoised(learner.adapter, learner.model, [], window, [], settings, generator)

    try:
        return fill(settings)
    except ConfigError:
        if at_once:
            raise
        return fill(SamplingSettings(temperature=0.0))  # its own number, as one token a step
