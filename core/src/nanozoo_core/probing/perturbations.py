"""Text as a careless typist leaves it: five ways to corrupt what a reader still understands.

Reference: BLT, arXiv 2412.09871, section 6.1, which names the five and their shares. Where it says
no more, ours is: draws are independent for each character, a repeated one stands two to four times,
and ASCII letters alone change their case.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import torch

from nanozoo_core.probing.task import integers

DROPPED, REPEATED, UPPER = 0.1, 0.2, 0.5  # shares of the characters
MOST_REPEATS = 4

_TO_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_TO_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def _ant_speak(text: str, generator: torch.Generator) -> str:
    """All in upper case, a space between any two characters."""
    return " ".join(text.translate(_TO_UPPER))


def _drop(text: str, generator: torch.Generator) -> str:
    return "".join(c for c, draw in _with_draws(text, generator) if draw >= DROPPED)


def _random_case(text: str, generator: torch.Generator) -> str:
    return "".join(
        c.translate(_TO_UPPER if draw < UPPER else _TO_LOWER)
        for c, draw in _with_draws(text, generator)
    )


def _repeat(text: str, generator: torch.Generator) -> str:
    drawn = _with_draws(text, generator)
    times = integers(generator, MOST_REPEATS + 1, len(text), low=2)
    return "".join(
        c * count if draw < REPEATED else c for (c, draw), count in zip(drawn, times, strict=True)
    )


def _upper_case(text: str, generator: torch.Generator) -> str:
    return text.translate(_TO_UPPER)


def _with_draws(text: str, generator: torch.Generator) -> list[tuple[str, float]]:
    """Each character with a number that is uniform in [0, 1)."""
    return list(zip(text, torch.rand(len(text), generator=generator).tolist(), strict=True))


PERTURBATIONS: dict[str, Callable[[str, torch.Generator], str]] = {
    "ant_speak": _ant_speak,
    "drop": _drop,
    "random_case": _random_case,
    "repeat": _repeat,
    "upper_case": _upper_case,
}
"""By name: (text, the source of all draws) -> the corrupted text."""


def longest(name: str, length: int) -> int:
    """The most characters that `length` of them become."""
    if name == "ant_speak":
        return 2 * length - 1
    return MOST_REPEATS * length if name == "repeat" else length
