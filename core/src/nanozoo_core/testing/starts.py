"""How the weights of a model start."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

Start = float | tuple[float, float]
"""A deviation around 0, or a mean and a deviation; a deviation of 0 is meant exactly."""


def assert_starts(model: nn.Module, expected: Mapping[str, Start]) -> None:
    """Every parameter starts with its mean and deviation, up to five standard errors of a sample of
    its size.

    Args:
        expected: by name, with `*` for a number in it; each parameter has exactly one.
    """
    names = {name: re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_parameters()}
    assert set(names.values()) == set(expected)
    for name, parameter in model.named_parameters():
        start = expected[names[name]]
        mean, deviation = start if isinstance(start, tuple) else (0.0, start)
        values = parameter.detach().double()
        if deviation == 0:
            assert bool((values == mean).all()), f"{name} is not {mean} everywhere"
            continue
        found, size = float(values.std()), values.numel()
        # Of a normal sample; the flatter laws in use here vary less.
        assert abs(found / deviation - 1) < 5 / (2 * size) ** 0.5, f"{name}: {found}, {deviation}"
        error = 5 * deviation / size**0.5
        assert abs(float(values.mean()) - mean) < error, f"{name}: mean {float(values.mean())}"
