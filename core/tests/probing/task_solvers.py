"""Answers of all tasks, worked out from the symbols before each question, by no code of the tasks:
in another way where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from nanozoo_core.probing.task import Task

Solver = Callable[[Task, Sequence[int], Sequence[int]], int]
"""(task, symbols before the answer, symbols behind it) -> the answer."""


def parity(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    word = before[len(before) - 1 - list(reversed(before)).index(2) :]
    return word.count(1) & 1


def words(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """By products of permutation matrices."""
    size = task.num_symbols - 2
    start = len(before) - 1 - list(reversed(before)).index(size)
    matrices = _matrices(size)
    found = np.eye(len(matrices[0]), dtype=int)
    for element in before[start + 1 : -1]:
        found = matrices[element] @ found
    return next(n for n, matrix in enumerate(matrices) if (matrix == found).all())


@cache
def _matrices(size: int) -> list[np.ndarray]:
    degree = {6: 3, 24: 4, 60: 5, 120: 5}[size]
    found = []
    for images in itertools.permutations(range(degree)):
        matrix = np.zeros((degree, degree), dtype=int)
        matrix[list(images), range(degree)] = 1
        if size != 60 or round(np.linalg.det(matrix)) == 1:
            found.append(matrix)
    return found


def copying(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    go = before.index(task.num_symbols - 1)
    data = [symbol for symbol in before[:go] if symbol != task.num_symbols - 2]
    return data[len(before) - go - 1]


def memorization(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """From other samples of the same seed."""
    key = before[-1]
    if len(before) % 2 == 0 or key >= (task.num_symbols - 1) // 2:
        raise ValueError("a value is no question")
    return _memories(task, key)


@cache
def _memories(task: Task, key: int) -> int:
    for index in range(10**6):
        symbols = task.sample(0, 0, index).symbols
        for one, value in zip(symbols[::2], symbols[1::2], strict=True):
            if one == key:
                return value
    raise AssertionError


def recall(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """The symbol behind the same key, which stands nowhere but as a key."""
    return before[before.index(before[-1]) + 1]


def fuzzy(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """Keys and values are the runs of two alphabets."""
    text = "".join(chr(65 + symbol) for symbol in before if symbol != task.num_symbols - 1)
    first_value = chr(65 + (task.num_symbols - 1) // 2)
    runs = ["".join(run) for _, run in itertools.groupby(text, key=lambda c: c >= first_value)]
    told = runs.pop() if runs[-1][0] >= first_value else ""
    pairs = list(zip(runs[:-1:2], runs[1::2], strict=True))
    value = next(value for key, value in pairs if key == runs[-1])
    return ord(value[len(told)]) - 65


def mqar(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    return before[before.index(before[-1]) + 1]


def induction(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    return before[before.index(task.num_symbols - 2) + 1]


def needle(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    return before[before.index(before[-1]) + 1]


def star(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """Up from the goal, whose only parent is known, to the node below the one told last."""
    slash = before.index(task.num_symbols - 2)
    goal = before[slash + 2]
    edges = [tuple(before[n : n + 2]) for n in range(0, slash, 3)]
    node = goal
    while True:
        (parent,) = [a for a, b in edges if b == node]
        if parent == before[-1]:
            return node
        node = parent


def bridge(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """By trying all differences against both ends."""
    prime, steps = task.prime, task.num_steps  # type: ignore[attr-defined]
    size = steps + 1 + 2 * task.suffix_first  # type: ignore[attr-defined]
    text = [*before, None, *behind]
    first = len(before) // size * size
    problem = text[first : first + size]
    start = problem[0]
    if task.suffix_first:  # type: ignore[attr-defined]
        end, hole = problem[2], len(before) - first - 3
    else:
        end, hole = problem[-1], len(before) - first
    (step,) = [d for d in range(prime) if (start + d * steps - end) % prime == 0]
    return (start + hole * step) % prime


def polynomials(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """With numpy's polynomials over the integers, reduced in the end of each operation."""
    equals = before.index(11)
    text = [symbol for symbol in before[:equals] if symbol != 12]
    value, rest = _evaluate(text)
    assert not rest
    return value[len(before) - equals - 1]


def _evaluate(text: Sequence[int]) -> tuple[list[int], Sequence[int]]:
    if text[0] < 7:
        return list(text[:5]), text[5:]
    operator = text[0]
    a, rest = _evaluate(text[1:])
    one = np.polynomial.Polynomial(a)
    if operator == 7:
        return _reduced(one * -1), rest
    b, rest = _evaluate(rest)
    other = np.polynomial.Polynomial(b)
    return _reduced({8: one + other, 9: one * other, 10: one(other)}[operator]), rest


def _reduced(found: np.polynomial.Polynomial) -> list[int]:
    coefficients = [round(c) % 7 for c in found.coef[:5]]
    return coefficients + [0] * (5 - len(coefficients))


def hops(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """Forward: for every place what one hop gives, then composed."""
    alphabet = task.alphabet  # type: ignore[attr-defined]
    question = task.num_symbols - 1
    letters: list[int] = []
    body = list(before[1:-1])
    while body:
        symbol = body.pop(0)
        if symbol == question:
            body.pop(0)
        else:
            letters.append(symbol)
    last: dict[int, int] = {}
    back: list[int] = []
    for place, letter in enumerate(letters):
        if place:
            last[letters[place - 1]] = place
        back.append(last.get(letter, -1))
    place = len(letters) - 1
    for _ in range(1 << (before[0] - alphabet)):
        place = back[place]
        if place < 0:
            return question
    return letters[place]


def pointer(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    names = task.num_names  # type: ignore[attr-defined]
    table = dict(zip(before[: 2 * names : 2], before[1 : 2 * names : 2], strict=True))
    here = before[-1]
    for _ in range(before[-2] - names + 1):
        here = table[here]
    return here


def restore(task: Task, before: Sequence[int], behind: Sequence[int]) -> int:
    """Letter by letter, which upper case, random case and ant speak allow."""
    text = "".join(RESTORED[symbol] for symbol in before)
    corrupted, _, done = text.lstrip(".").partition("=")
    step = 2 if task.perturbation == "ant_speak" else 1  # type: ignore[attr-defined]
    clean = corrupted[::step].lower() + " "
    return RESTORED.index(clean[len(done)])


RESTORED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ =."

SOLVERS: dict[str, Solver] = {
    "parity": parity,
    "words": words,
    "copying": copying,
    "copying_mamba": copying,
    "memorization": memorization,
    "induction": induction,
    "recall": recall,
    "recall_noisy": recall,
    "recall_fuzzy": fuzzy,
    "mqar": mqar,
    "needle": needle,
    "star": star,
    "bridge": bridge,
    "polynomials": polynomials,
    "hops": hops,
    "pointer": pointer,
    "restore": restore,
}
