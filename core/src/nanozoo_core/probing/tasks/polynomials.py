"""Polynomial arithmetic over F7 modulo X^5: expressions of one to several operations.

Reference: arXiv 2404.19737, section 4.2 and appendix K; the text form is ours. Composition is not
defined on the quotient ring: representatives of degree at most 4 are composed, and the result cut
after every operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nanozoo_core.probing.task import Sample, Task, integers

FIELD = 7
DEGREE = 5  # coefficients of a polynomial, the lowest first
NEGATE, ADD, MULTIPLY, COMPOSE, EQUALS, PAD = range(FIELD, FIELD + 6)
NUM_OPERATORS = 4

Polynomial = list[int]


@dataclass(frozen=True)
class Polynomials(Task):
    """An expression in prefix notation, `=`, and the five coefficients of its value; padding leads.
    1 .. `most` operations; an operation shares those below it uniformly among its operands."""

    name: ClassVar = "polynomials"
    number: ClassVar = 12
    headline: ClassVar = "exact"
    group_name: ClassVar = "ten times the operations and the operator (- + * o)"
    guess_name: ClassVar = "always 0"
    batch_windows: ClassVar = 64
    long_knobs: ClassVar = {"most": 5, "length": 41}

    most: int = 2
    length: int = 40

    @property
    def num_symbols(self) -> int:
        return PAD + 1

    @property
    def chance(self) -> float:
        return 1 / FIELD

    def check(self) -> list[str]:
        needed = self.most + DEGREE * (self.most + 1) + 1 + DEGREE
        if self.most >= 1 and self.length >= needed:
            return []
        return [
            f"polynomials.length={self.length} must be at least {needed} with polynomials.most="
            f"{self.most}, which must be at least 1"
        ]

    def draw(self, generator: torch.Generator, seed: int) -> Sample:
        (operations,) = integers(generator, self.most + 1, 1, low=1)
        operators = iter(integers(generator, NUM_OPERATORS, self.most))
        shares = iter(torch.rand(self.most, generator=generator).tolist())
        numbers = iter(integers(generator, FIELD, DEGREE * (self.most + 1)))
        text, value = _expression(operations, operators, shares, numbers)
        symbols = [*text, EQUALS, *value]
        lead = self.length - len(symbols)
        answers = range(self.length - DEGREE, self.length)
        group = 10 * operations + text[0] - NEGATE
        return Sample((*[PAD] * lead, *symbols), tuple(answers), (group,) * DEGREE)

    def guess(self, before: Sequence[int], seed: int) -> int:
        return 0


def _expression(
    operations: int, operators: Iterator[int], shares: Iterator[float], numbers: Iterator[int]
) -> tuple[list[int], Polynomial]:
    """An expression as symbols, and its value."""
    if operations == 0:
        leaf = [next(numbers) for _ in range(DEGREE)]
        return leaf, leaf
    operator, share = NEGATE + next(operators), next(shares)
    below = operations - 1
    if operator == NEGATE:
        text, value = _expression(below, operators, shares, numbers)
        return [operator, *text], [-c % FIELD for c in value]
    left = int(share * (below + 1))
    first, a = _expression(left, operators, shares, numbers)
    second, b = _expression(below - left, operators, shares, numbers)
    return [operator, *first, *second], {ADD: add, MULTIPLY: multiply, COMPOSE: compose}[operator](
        a, b
    )


def add(a: Polynomial, b: Polynomial) -> Polynomial:
    return [(x + y) % FIELD for x, y in zip(a, b, strict=True)]


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Cut behind the fifth coefficient."""
    return [sum(a[i] * b[n - i] for i in range(n + 1)) % FIELD for n in range(DEGREE)]


def compose(a: Polynomial, b: Polynomial) -> Polynomial:
    """a(b(X)), by Horner's rule, cut behind the fifth coefficient."""
    found = [0] * DEGREE
    for coefficient in reversed(a):
        found = add(multiply(found, b), [coefficient, *[0] * (DEGREE - 1)])
    return found
