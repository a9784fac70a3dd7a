"""What selection is for: reading again what lies further back than the window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.optim.build import build_optimizers
from nanozoo_nsa.adapter import NSAAdapter
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.model import NSA

HALF, NUM_TOKENS, STEPS = 48, 16, 120


def accuracy_of_repeating(gate_bias: tuple[float, float, float]) -> float:
    """Trains to repeat 48 random tokens, 6 windows later, and scores those that do not come from
    the first block, which every position reads."""
    torch.manual_seed(0)
    changes = {
        "vocab_size": NUM_TOKENS,
        "num_layers": 2,
        "model_dim": 64,
        "sliding_window_size": 8,
        "compress_block_size": 4,
        "compress_stride": 2,
        "selection_block_size": 8,
        "num_selected_blocks": 4,
        "local_blocks": 1,
        "gate_bias_init": list(gate_bias),
        "mlp_ratio": 2,
    }
    model = NSA(model_config("nsa", changes))
    optim = from_defaults(OptimConfig, name="muon", lr=5e-3, warmup=10, decay_fraction=0.7)
    groups = NSAAdapter(NSAConfig, NSA).optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=STEPS, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    accuracies = []
    for step in range(STEPS):
        optimizers.set_schedule(step, step / STEPS)
        half = torch.randint(NUM_TOKENS, (32, HALF), generator=generator)
        tokens = torch.cat([half, half], dim=1)
        logits = model(tokens[:, :-1])[:, HALF + 7 :]
        targets = tokens[:, HALF + 8 :]
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
        accuracies.append(float((logits.argmax(-1) == targets).float().mean()))
    return sum(accuracies[-5:]) / 5


@pytest.mark.slow
def test_what_lies_beyond_the_window_is_copied_unless_the_window_is_all() -> None:
    shut = -100.0  # a gate that no gradient opens
    assert accuracy_of_repeating((0.0, 0.0, 0.0)) > 0.95
    assert accuracy_of_repeating((shut, shut, 0.0)) < 2 / NUM_TOKENS
