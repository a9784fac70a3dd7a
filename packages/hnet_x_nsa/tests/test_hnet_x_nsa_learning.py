"""What selection over chunks is for: bytes that lie further back than any window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_hnet_x_nsa.adapter import HNetXNSAAdapter
from nanozoo_hnet_x_nsa.config import HNetXNSAConfig
from nanozoo_hnet_x_nsa.model import HNetXNSA

HALF, NUM_SYMBOLS, STEPS = 48, 8, 240
ADAPTER = HNetXNSAAdapter(HNetXNSAConfig, HNetXNSA)
SETTINGS: dict[str, Any] = {
    "vocab_size": 258,
    "chunking": "fixed",
    "target_ratio": 4,
    "arch_layout": ["T1", ["N2"], "T1"],
    "model_dim": 64,
    "mlp_dim": 128,
    "num_heads": 2,
    "num_kv_heads": 1,
    "window_size": [5, -1],  # the outer networks see a chunk and a byte
    "initializer_range": 0.1,  # 0.02 leaves the scores of so narrow a model near zero
    "lr_multipliers": [1.0, 1.0],
}
NSA: dict[str, Any] = {
    "compress_block_size": 2,
    "compress_stride": 1,
    "selection_block_size": 2,
    "num_selected_blocks": 4,
    "sliding_window_size": 3,  # two layers reach back 4 of the 12 chunks
}


def accuracy_of_repeating(gate_bias: list[float]) -> float:
    """Trains to repeat 48 random bytes, which lie 12 chunks back, and scores those that do not come
    from the first block, which every chunk reads."""
    torch.manual_seed(0)
    settings = SETTINGS | {"nsa_cfg": NSA | {"gate_bias_init": gate_bias}}
    model = HNetXNSA(model_config("hnet_x_nsa", settings))
    optim = from_defaults(OptimConfig, name="muon", lr=5e-3, warmup=10, decay_fraction=0.7)
    groups = ADAPTER.optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=STEPS, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    accuracies = []
    for number in range(STEPS):
        optimizers.set_schedule(number, number / STEPS)
        half = torch.randint(97, 97 + NUM_SYMBOLS, (32, HALF), generator=generator)
        scored = (torch.arange(2 * HALF - 1) >= HALF + 8).expand(32, -1)
        batch = replace(batch_of(torch.cat([half, half], dim=1)), scored=scored)
        step = Step(number=number, progress=number / STEPS, seed=0)
        ADAPTER.training_loss(model, batch, step).value.backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
        if number >= STEPS - 5:
            with torch.no_grad():
                right = model(batch.inputs).argmax(-1) == batch.targets
            accuracies.append(float(right[scored].float().mean()))
    return sum(accuracies) / len(accuracies)


@pytest.mark.slow
def test_bytes_beyond_the_window_are_copied_unless_the_window_is_all() -> None:
    shut = -100.0  # a gate that no gradient opens
    assert accuracy_of_repeating([0.0, 0.0, 0.0]) > 0.9
    assert accuracy_of_repeating([shut, shut, 0.0]) < 2 / NUM_SYMBOLS
