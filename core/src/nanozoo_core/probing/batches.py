"""Batches of samples as models read them: one sample a window, its answers scored.

B windows, T ids of a window without its first, A lookahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.probing.coding import Coding
from nanozoo_core.probing.task import TRAIN, Sample, Task

LossOn = Literal["answers", "all"]


@dataclass(frozen=True)
class Questions:
    """A batch, and which answer each of its targets belongs to, (B, T) int64 with -1 for none."""

    batch: Batch
    answer: Tensor
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Source:
    """A task in a coding, for a seed."""

    task: Task
    coding: Coding
    seed: int

    @property
    def length(self) -> int:
        """T."""
        return self.coding.length(self.task)

    def training_batch(self, step: int, windows: int, lookahead: int, loss: LossOn) -> Batch:
        """Window r of step s is sample `s * windows + r`."""
        first = step * windows
        indices = [self.task.train_index(index) for index in range(first, first + windows)]
        found = self.questions(TRAIN, indices, lookahead=lookahead).batch
        return found if loss == "answers" else replace(found, scored=None)

    def questions(
        self, split: int, indices: Sequence[int], *, lookahead: int = 1, first_row: int = 0
    ) -> Questions:
        """Some samples of a split. Documents are 0 but in the tail that only the lookahead reads.

        Args: first_row: the place of the first one in the global batch.
        """
        samples, ids, answers = [], [], []
        for index in indices:
            generator = self.task.generator(self.seed, split, index)
            sample = self.task.draw(generator, self.seed)
            coded = self.coding.encode(self.task, sample, generator)
            samples.append(sample)
            ids.append(coded.ids)
            answers.append(coded.answer)
        separator, tail = self.coding.separator, lookahead - 1
        text = torch.tensor(ids)  # (B, T)
        tokens = torch.nn.functional.pad(text, (1, tail), value=separator)
        documents = torch.zeros(tokens.shape, dtype=torch.int32)
        if tail:
            documents[:, -tail:] = 1
        answer = torch.tensor(answers)
        batch = Batch(
            tokens=tokens,
            documents=documents,
            rows=torch.arange(first_row, first_row + len(ids)),
            num_rows=len(ids),
            lookahead=lookahead,
            scored=answer >= 0,
        )
        return Questions(batch, answer, tuple(samples))
