"""Checks of what each tensor of a fresh model holds, by patterns of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

Check = Callable[[str, Tensor], None]


def assert_starts(model: nn.Module, rules: Mapping[str, Check]) -> None:
    """Every parameter is as the rule for its name says; each name has one rule, and no rule is
    without a name. In a pattern `*` stands for anything."""
    unused = set(rules)
    for name, parameter in model.named_parameters():
        found = [pattern for pattern in rules if fnmatchcase(name, pattern)]
        assert len(found) == 1, f"{name} has the rules {found}"
        rules[found[0]](name, parameter.detach())
        unused -= set(found)
    assert unused == set()


def spread(deviation: float) -> Check:
    """Independent draws with this standard deviation around zero, up to five standard errors; those
    of draws from a normal distribution, which are no less than those of uniform ones."""

    def check(name: str, x: Tensor) -> None:
        count = x.numel()
        assert abs(float(x.mean())) < 5 * deviation / math.sqrt(count), name
        found = float(x.square().mean().sqrt())
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
