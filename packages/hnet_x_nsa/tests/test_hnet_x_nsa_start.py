from __future__ import annotations

import math

import torch

from nanozoo_core.config import model_config
from nanozoo_core.testing.chunking import (
    assert_first_loss_is_that_of_a_small_head,
    hierarchy_starts,
)
from nanozoo_core.testing.starts import assert_starts, constant, spread
from nanozoo_hnet_x_nsa.model import HNetXNSA

# Six layers without MLPs outside; two with and six without in the middle; ten with inside.
ADDITIONS = {"stage": 6, "stage.inner": 6 + 2 * 2 + 6, "stage.inner.inner": 6 + 10 + 20}


def test_each_tensor_of_the_preset_of_two_stages_starts_as_intended() -> None:
    """With pooling and unpooling, which need chunks of one length; hnet tests the router."""
    torch.manual_seed(0)
    ways = {"chunking": "fixed", "chunk_pool": "mlp", "unpool": "mlp"}
    config = {"preset": "hnet_x_nsa_2stage", "vocab_size": 258, "seq_len": 32768}
    model = HNetXNSA(model_config("hnet_x_nsa", config | ways))
    rules = hierarchy_starts(ADDITIONS, with_mlp=("stage.inner", "stage.inner.inner"))
    rules |= {
        "*.gate_weight": constant(0.0),
        "*.gate_bias": constant(0.0),
        "*.mixer.compress_*.positions": constant(0.0),
        "*.mixer.compress_*.*_bias": constant(0.0),
        "*.mixer.compress_*.down": constant(0.0),
        # Of the blocks of each stage, 32 and 16 positions of 64 channels, not of the model's std.
        "stage.inner.encoder.*.mixer.compress_*.up": spread(0.5 / math.sqrt(32 * 64)),
        "stage.inner.decoder.*.mixer.compress_*.up": spread(0.5 / math.sqrt(32 * 64)),
        "stage.inner.inner.*.mixer.compress_*.up": spread(0.5 / math.sqrt(16 * 64)),
        "*.pooling.positions": constant(0.0),
        "*.pooling.up.weight": spread(0.02),
        "*.pooling.down.weight": constant(0.0),
        "*.unpooling.up.weight": spread(0.02),
        "*.unpooling.down.weight": constant(0.0),
    }
    assert_starts(model, rules)
    assert_first_loss_is_that_of_a_small_head(model, 384)
