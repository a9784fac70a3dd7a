"""The pretended Apple GPU refuses what a real one refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from nanozoo_core.machine.precision import finest_dtype, in_float64
from nanozoo_core.testing.pretend_mps import pretend_mps


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretend_mps(monkeypatch):
        yield


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.double(),
        lambda x: x.to(torch.float64),
        lambda x: x.cpu().double().to("mps"),
        lambda x: torch.zeros(2, dtype=torch.float64, device=x.device),
        lambda x: x + torch.zeros(3, 2),
        lambda x: torch.rand(2, device=x.device, generator=torch.Generator()),
        lambda x: x.sum() / torch.tensor([2, 3], device=x.device).sum().cpu().double().to("mps"),
    ],
    ids=["double", "to", "back", "factory", "mixed", "generator", "late"],
)
def test_what_the_device_lacks_is_refused(ask: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(3, 2).to("mps")
    with pytest.raises((TypeError, RuntimeError), match="MPS"):
        ask(x)


def test_float64_is_had_on_the_cpu() -> None:
    x = torch.full((3, 2), 0.1, device="mps", requires_grad=True)
    total = in_float64(x).sum()
    assert (total.device.type, total.dtype) == ("cpu", torch.float64)
    assert in_float64(torch.ones(1)).dtype == torch.float64
    total.backward()
    assert x.grad is not None
    assert (x.grad.device.type, x.grad.tolist()) == ("mps", [[1.0, 1.0]] * 3)
    assert finest_dtype(x.device) == torch.float32


def test_a_module_trains_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    usual = nn.Linear(4, 4)
    moved = nn.Linear(4, 4)
    moved.load_state_dict(usual.state_dict())
    tied = nn.ModuleList([moved, nn.Linear(4, 4)])
    tied[1].weight = moved.weight
    tied.to("mps")
    assert tied[1].weight is moved.weight
    x = torch.randn(5, 4)
    usual(x).square().sum().backward()
    moved(x.to("mps")).square().sum().backward()
    assert moved.weight.grad is not None
    torch.testing.assert_close(moved.weight.grad.cpu(), usual.weight.grad)
