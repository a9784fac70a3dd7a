"""What a short training reaches beside a dense model of equal active size and beside routes drawn
at random."""

from typing import Any

import pytest
import torch

from nanozoo_core.testing.source_code import held_out_bits, trained
from nanozoo_moe.routing import Router

STEPS = 120
MUON = {"name": "muon", "lr": 0.01}


def bits(seed: int, **changes: Any) -> float:
    return held_out_bits(*trained("moe", seed, STEPS, MUON, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_the_dense_model_and_random_routes(seed, monkeypatch):
    learned = bits(seed)
    assert learned < bits(seed, num_experts=1)
    generator, route = torch.Generator().manual_seed(seed), Router.forward

    def at_random(self, h, generators=None):
        return route(self, torch.randn(h.shape, generator=generator), generators)

    monkeypatch.setattr(Router, "forward", at_random)
    assert learned < bits(seed) - 0.03
