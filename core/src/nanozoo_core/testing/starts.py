"""Checks of what each tensor of a fresh model holds, by patterns of names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

Check = Callable[[str, Tensor], None]
Start = float | tuple[float, float] | Check
"""A deviation around 0; a mean and a deviation, which is meant exactly when it is 0; or a check."""


def assert_starts(model: nn.Module, rules: Mapping[str, Start]) -> None:
    """Every parameter is as the rule for its name says; each name has one rule, and no rule is
    without a name.

    Args:
        rules: by name with `*` for each number in it, which goes first, or with `*` for anything.
    """
    unused = set(rules)
    for name, parameter in model.named_parameters():
        numbered = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        found = [numbered] if numbered in rules else [p for p in rules if fnmatchcase(name, p)]
        assert len(found) == 1, f"{name} has the rules {found}"
        _check_of(rules[found[0]])(name, parameter.detach())
        unused -= set(found)
    assert unused == set()


def _check_of(start: Start) -> Check:
    if callable(start):
        return start
    mean, deviation = start if isinstance(start, tuple) else (0.0, start)
    return spread(deviation, mean) if deviation else constant(mean)


def spread(deviation: float, mean: float = 0.0) -> Check:
    """Independent draws with this deviation around a mean, up to five standard errors; those of
    draws from a normal distribution, which are no less than those of uniform ones."""

    def check(name: str, x: Tensor) -> None:
        centred, count = x.double() - mean, x.numel()
        off = float(centred.mean())
        assert abs(off) < 5 * deviation / math.sqrt(count), f"{name}: {off} off the mean {mean}"
        found = float(centred.square().mean().sqrt())
        assert abs(found / deviation - 1) < 5 / math.sqrt(2 * count), f"{name}: {found}"

    return check


def constant(value: float) -> Check:
    def check(name: str, x: Tensor) -> None:
        assert bool((x == value).all()), name

    return check


def identity(name: str, x: Tensor) -> None:
    assert torch.equal(x, torch.eye(len(x))), name


def between(low: float, high: float, transform: Callable[[Tensor], Tensor]) -> Check:
    """Uniform draws from an interval after `transform`: none lies outside, and mean and deviation
    are within five standard errors."""

    def check(name: str, x: Tensor) -> None:
        y, width = transform(x), high - low
        assert low - 1e-4 * width <= float(y.min()), name
        assert float(y.max()) <= high + 1e-4 * width, name
        deviation = width / math.sqrt(12)
        assert abs(float(y.mean()) - (low + high) / 2) < 5 * deviation / math.sqrt(len(y)), name
        assert abs(float(y.std()) / deviation - 1) < 5 / math.sqrt(2 * len(y)), name

    return check
