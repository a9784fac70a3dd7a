"""Corrupted words beside what they were: a map of letters, or a guess among known words.

Reference: the perturbations of BLT, arXiv 2412.09871, section 6.1; the task is ours. Upper case,
random case and ant speak can be undone letter by letter. Dropped and repeated characters cannot:
there the words that are known decide.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.lexicon import LONGEST_WORD, pseudo_words
from nanozoo_core.probing.perturbations import PERTURBATIONS, longest
from nanozoo_core.probing.task import Knob, Sample, Task, integers

ALPHABET = f"{string.ascii_letters} =."
SPACE, EQUALS, PAD = (ALPHABET.index(c) for c in " =.")


@dataclass(frozen=True)
class Restore(Task):
    """`PERTURBED WORDS=perturbed words `: each word with the space behind it is one answer; padding
    leads. The words are drawn from a lexicon of the seed, which stands in the weights alone."""

    name: ClassVar = "restore"
    number: ClassVar = 18
    group_name: ClassVar = "place in the answer"
    guess_name: ClassVar = "always the same word"
    symbol_bytes: ClassVar = ALPHABET.encode()
    long_knobs: ClassVar[Mapping[str, Knob]] = {"perturbation": "ant_speak"}

    perturbation: str = "upper_case"
    num_words: int = 4
    num_known: int = 64

    @property
    def num_symbols(self) -> int:
        return len(ALPHABET)

    @property
    def longest_text(self) -> int:
        """Characters of the longest words with a space between them."""
        return self.num_words * (LONGEST_WORD + 1) - 1

    @property
    def length(self) -> int:
        return longest(self.perturbation, self.longest_text) + 1 + self.longest_text + 1

    @property
    def chance(self) -> float:
        return 1 / self.num_known

    def check(self) -> list[str]:
        problems = []
        if self.perturbation not in PERTURBATIONS:
            problems.append(
                f"restore.perturbation={self.perturbation} must be one of "
                f"{', '.join(PERTURBATIONS)}"
            )
        if self.num_words < 1 or self.num_known < 2:
            problems.append(
                f"restore.num_words={self.num_words} must be at least 1, and restore.num_known="
                f"{self.num_known} at least 2"
            )
        return problems

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        known = self._known(seed)
        words = [known[n] for n in integers(generator, self.num_known, self.num_words)]
        corrupted = PERTURBATIONS[self.perturbation](" ".join(words), generator)
        text = f"{corrupted}={' '.join(words)} ".rjust(self.length, ALPHABET[PAD])
        sizes = [len(word) + 1 for word in words]
        first = self.length - sum(sizes)
        return Sample(
            tuple(ALPHABET.index(c) for c in text),
            tuple(first + sum(sizes[:n]) for n in range(self.num_words)),
            tuple(range(self.num_words)),
            tuple(sizes),
        )

    def _known(self, seed: int) -> list[str]:
        return [w.decode() for w in pseudo_words(seed, self.number, self.num_known, index=0)]

    def guess(self, before: Sequence[int], seed: int) -> int:
        begun = next(n for n, symbol in enumerate(reversed(before)) if symbol in (SPACE, EQUALS))
        word = f"{self._known(seed)[0]} ".ljust(LONGEST_WORD + 1)
        return ALPHABET.index(word[begun])
