"""The start at the widths of `megabyte_small`: every tensor's deviation, and the first loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.contract import Draw
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.starts import assert_starts
from nanozoo_megabyte.adapter import MegabyteAdapter
from nanozoo_megabyte.config import MegabyteConfig
from nanozoo_megabyte.model import Megabyte

LAYERS = {"global": 2, "local": 3}
PUBLISHED: dict[str, Any] = {
    "preset": "megabyte_small",
    "vocab_size": 258,
    "seq_len": 8192,
    "num_global_layers": LAYERS["global"],
    "num_local_layers": LAYERS["local"],
}


def build(**settings: Any) -> Megabyte:
    torch.manual_seed(0)
    return Megabyte(model_config("megabyte", PUBLISHED | settings))


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_starts_at_its_deviation(tied: bool) -> None:
    inputs = 0.02 if tied else 1.0
    tables = ("global_embedding.weight", "position.weight", "global_pad", "local_embedding.weight",
              "local_pad")  # fmt: skip
    expected = dict.fromkeys(tables, inputs) | {"to_local.weight": inputs / math.sqrt(96)}
    for which, layers in LAYERS.items():
        block = f"{which}_model.blocks.*."
        outputs = 0.02 / math.sqrt(2 * layers)
        expected |= {block + "attention.qkv.weight": 0.02, block + "attention.out.weight": outputs}
        expected |= {block + "mlp.up.weight": 0.02, block + "mlp.down.weight": outputs}
    expected["convolutions.layers.*.weight"] = 0.02
    if not tied:
        expected["head.weight"] = 0.02
    assert_starts(build(tie_embeddings=tied, patch_conv=True), expected)


@torch.no_grad()
def test_the_first_loss_is_a_tenth_of_a_nat_above_a_uniform_guess() -> None:
    """Logits of normed features and a head at 0.02 deviate by 0.02 sqrt(512), and half the square
    of a small deviation is what they cost."""
    tokens = torch.randint(258, (2, 257), generator=torch.Generator().manual_seed(0))
    nll = MegabyteAdapter(MegabyteConfig, Megabyte).nll(build(), batch_of(tokens), Draw(0))
    expected = math.log(258) + 0.02**2 * 512 / 2
    assert float(nll.nats.sum()) / 512 == pytest.approx(expected, abs=0.06)
