"""Answers follow from the text and not from which ids stand in it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from task_solvers import RESTORED, SOLVERS

from nanozoo_core.probing.task import TEST, Task, integers, shuffled
from nanozoo_core.probing.tasks import TASKS
from nanozoo_core.probing.tasks.words import elements, product
from nanozoo_core.randomness import seeded_generator

CLASSES: dict[str, Callable[[Task], list[range]]] = {
    "copying": lambda task: [range(task.num_symbols - 2)],
    "induction": lambda task: [range(task.num_symbols - 2)],
    "recall": lambda task: [range(8), range(8, 16)],
    "recall_noisy": lambda task: [range(8), range(8, 16), range(16, 32)],
    "recall_fuzzy": lambda task: [range(7), range(7, 15)],
    "mqar": lambda task: [range(1, 33), range(33, 65)],
    "needle": lambda task: [range(32), range(32, 64), range(65, 69)],
    "star": lambda task: [range(task.num_symbols - 3)],
    "hops": lambda task: [range(4)],
    "pointer": lambda task: [range(8)],
}
"""Symbols that may take each other's place; those in none of the ranges are marks of the task."""

Relabelling = list[int]


def exchanged(task: Task, generator: torch.Generator) -> Relabelling:
    found = list(range(task.num_symbols))
    for one in CLASSES[task.name](task):
        for symbol, place in zip(one, shuffled(generator, len(one)), strict=True):
            found[symbol] = one[place]
    return found


def affine(task: Task, generator: torch.Generator) -> Relabelling:
    """a x + b modulo the prime, which keeps steps equal."""
    (factor,), (offset,) = integers(generator, 31, 1, low=1), integers(generator, 31, 1)
    return [*[(factor * x + offset) % 31 for x in range(31)], 31, 32]


def conjugated(task: Task, generator: torch.Generator) -> Relabelling:
    """c^-1 g c, which keeps products."""
    (c,) = integers(generator, 6, 1)
    (inverse,) = [n for n in range(len(elements(6))) if product(6, [n, c]) == 0]
    return [*[product(6, [inverse, g, c]) for g in range(6)], 6, 7]


def respelled(task: Task, generator: torch.Generator) -> Relabelling:
    """Other letters, small and large alike."""
    order = shuffled(generator, 26)
    return [*order, *[26 + n for n in order], *range(52, len(RESTORED))]


RELABELLINGS = dict.fromkeys(CLASSES, exchanged) | {
    "bridge": affine,
    "words": conjugated,
    "restore": respelled,
}


@pytest.mark.parametrize("name", RELABELLINGS)
def test_other_ids_have_the_same_answers_in_other_ids(name: str) -> None:
    """By the solver, which agrees with the task on the ids that it drew."""
    task = TASKS[name]()
    for index in range(40):
        sample = task.sample(0, TEST, index)
        new = RELABELLINGS[name](task, seeded_generator(7, index))
        assert sorted(new) == list(range(task.num_symbols))
        text = [new[symbol] for symbol in sample.symbols]
        for place in itertools.chain(*sample.spans()):
            found = SOLVERS[name](task, text[:place], text[place + 1 :])
            assert found == new[sample.symbols[place]]


@pytest.mark.parametrize("name", CLASSES)
def test_no_id_tells_the_answer(name: str) -> None:
    """The last answer of a sample is any symbol of its class, and a table of what was the answer to
    the same question in other samples names it no more often than a draw among the others."""
    task = TASKS[name]()
    asked = []
    for index in range(1600):
        sample = task.sample(0, TEST, index)
        if sample.answers:
            place = sample.answers[-1]
            question = sample.groups[-1], sample.symbols[place - 1]
            asked.append((question, sample.symbols[place]))
    (answers,) = [one for one in CLASSES[name](task) if asked[0][1] in one]
    counts = Counter(answer for _, answer in asked)
    expected = len(asked) / len(answers)
    assert set(counts) == set(answers)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    half = len(asked) // 2
    table: dict[tuple[int, int], Counter[int]] = {}
    for question, answer in asked[:half]:
        table.setdefault(question, Counter())[answer] += 1
    right = [
        bool(table.get(question)) and table[question].most_common(1)[0][0] == answer
        for question, answer in asked[half:]
    ]
    chance = 1 / (len(answers) - 1)
    assert sum(right) / len(right) < chance + 4 * (chance * (1 - chance) / len(right)) ** 0.5
