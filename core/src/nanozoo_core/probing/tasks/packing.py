"""Words of mixed lengths, one behind another in a sample of fixed length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nanozoo_core.probing.task import Sample, integers

EXTRA = 3  # symbols of a word beside its elements: its start, "=", and the answer


def packed(
    generator: torch.Generator,
    *,
    length: int,
    shortest: int,
    longest: int,
    num_elements: int,
    start: int,
    equals: int,
    answer: Callable[[Sequence[int]], int],
) -> Sample:
    """As many words `start g1 .. gn equals answer` as fit into `length` symbols, then `start` to
    its end. Numbers of elements and the elements are uniform; groups are the numbers.

    What is drawn is enough for the most words that could fit, so that no draw depends on another.
    """
    most = length // (shortest + EXTRA)
    sizes = integers(generator, longest + 1, most, low=shortest)
    elements = integers(generator, num_elements, most * longest)
    symbols: list[int] = []
    answers, groups = [], []
    for number, size in enumerate(sizes):
        if len(symbols) + size + EXTRA > length:
            break
        word = elements[number * longest : number * longest + size]
        symbols += [start, *word, equals, answer(word)]
        answers.append(len(symbols) - 1)
        groups.append(size)
    symbols += [start] * (length - len(symbols))
    return Sample(tuple(symbols), tuple(answers), tuple(groups))
