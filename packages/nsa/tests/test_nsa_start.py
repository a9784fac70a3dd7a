"""The start at the width of GPT-2 small: every tensor's deviation, and the first loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.contract import Draw
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.starts import assert_starts
from nanozoo_nsa.adapter import NSAAdapter
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.model import NSA

PUBLISHED: dict[str, Any] = {
    "vocab_size": 50257,
    "seq_len": 4096,
    "num_layers": 1,
    "model_dim": 768,
    "num_heads": 12,
    "num_kv_heads": 2,
    "preset": "paper",
}
MIXER = "blocks.*.attention."


def build(**settings: Any) -> NSA:
    torch.manual_seed(0)
    return NSA(model_config("nsa", PUBLISHED | settings))


def of_input(fan_in: int) -> float:
    return 0.5 / math.sqrt(fan_in)


@pytest.mark.parametrize("beside_mean", [True, False])
def test_every_tensor_starts_at_its_deviation(beside_mean: bool) -> None:
    model = build(vocab_size=4096, compress_residual_mean=beside_mean)
    expected = {"embedding.weight": 1.0, "head.weight": 0.001}
    expected |= {"blocks.*.mlp.up.weight": of_input(768), "blocks.*.mlp.down.weight": 0.0}
    expected |= {MIXER + "qkv.weight": of_input(768), MIXER + "out_proj.weight": 0.0}
    expected |= {MIXER + "gate_weight": 0.0, MIXER + "gate_bias": 0.0}
    for phi in ("compress_keys.", "compress_values."):
        expected |= {MIXER + phi + name: 0.0 for name in ("positions", "up_bias", "down_bias")}
        expected[MIXER + phi + "up"] = of_input(32 * 64)
        expected[MIXER + phi + "down"] = 0.0 if beside_mean else of_input(128)
    assert_starts(model, expected)


@torch.no_grad()
def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    tokens = torch.randint(50257, (1, 65), generator=torch.Generator().manual_seed(0))
    nll = NSAAdapter(NSAConfig, NSA).nll(build(), batch_of(tokens), Draw(0))
    assert float(nll.nats.sum()) / 64 == pytest.approx(math.log(50257), abs=0.01)
