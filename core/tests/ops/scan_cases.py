"""What the tests of the scans share: random segments, gradients of a run, errors to scale."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def make_segments(batch: int, length: int, seed: int = 0) -> Tensor:
    """Numbers that change at random places, different for every row, and return to old values."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(batch, length, generator=generator) < 0.15
    return starts.long().cumsum(1) % 2


def values_and_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """Results of a run in `inputs`' type: y, the last state, and the gradient of each input."""
    fresh = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    y, last = function(**fresh, **options)
    weights = torch.Generator().manual_seed(9)
    parts = [
        (out * torch.randn(out.shape, generator=weights, dtype=torch.float64).to(out)).sum()
        for out in (y, last)
    ]
    (parts[0] + parts[1]).backward()
    results = {"y": y.detach(), "last": last.detach()}
    for name, tensor in fresh.items():
        assert tensor.grad is not None, name
        results[name] = tensor.grad
    return results


def doubles(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in inputs.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Largest error of each result, relative to its largest value."""
    for name, want in expected.items():
        scale = want.abs().max().clamp(min=1e-6)
        error = (actual[name].double() - want.double()).abs().max() / scale
        assert error <= tolerance, f"{name}: relative error {error:.1e}"
