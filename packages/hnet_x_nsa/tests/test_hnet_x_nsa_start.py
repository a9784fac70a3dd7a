from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from nanozoo_core.config import model_config
from nanozoo_core.testing.starts import assert_starts, between, constant, spread
from nanozoo_hnet_x_nsa.model import HNetXNSA


def test_each_tensor_of_the_preset_of_two_stages_starts_as_intended() -> None:
    """With pooling and unpooling, which need chunks of one length; hnet tests the router."""
    torch.manual_seed(0)
    ways = {"chunking": "fixed", "chunk_pool": "mlp", "unpool": "mlp"}
    config = {"preset": "hnet_x_nsa_2stage", "vocab_size": 258, "seq_len": 32768}
    model = HNetXNSA(model_config("hnet_x_nsa", config | ways))
    # Six layers without MLPs outside; two with and six without in the middle; ten with inside.
    additions = {"stage": 6, "stage.inner": 6 + 2 * 2 + 6, "stage.inner.inner": 6 + 10 + 20}
    convolution = spread(0.5 / math.sqrt(3))  # torch's own, uniform up to 1 / sqrt(4 taps)
    rules = {
        "embedding.weight": spread(1.0),
        "head.weight": spread(0.02),
        "*norm.weight": constant(1.0),
        "*.residual.*": constant(0.0),
        "*.widen.vector": constant(0.0),
        "*.qkv.weight": spread(0.02),
        "*.gate_weight": constant(0.0),
        "*.gate_bias": constant(0.0),
        "*.mixer.compress_*.positions": constant(0.0),
        "*.mixer.compress_*.*_bias": constant(0.0),
        "*.mixer.compress_*.down": constant(0.0),
        # Of the blocks of each stage, 32 and 16 positions of 64 channels, not of the model's std.
        "stage.inner.encoder.*.mixer.compress_*.up": spread(0.5 / math.sqrt(32 * 64)),
        "stage.inner.decoder.*.mixer.compress_*.up": spread(0.5 / math.sqrt(32 * 64)),
        "stage.inner.inner.*.mixer.compress_*.up": spread(0.5 / math.sqrt(16 * 64)),
        "*.gate_up.weight": spread(0.02),
        "*.in_proj.weight": spread(0.02),
        "*.dt_proj.weight": spread(0.02),
        "*.conv.weight": convolution,
        "*.conv.bias": convolution,
        "*.A_log": between(1.0, 16.0, torch.exp),
        "*.dt_bias": between(math.log(1e-3), math.log(1e-1), lambda x: F.softplus(x).log()),
        "*.skip": constant(1.0),
        "*.pooling.positions": constant(0.0),
        "*.pooling.up.weight": spread(0.02),
        "*.pooling.down.weight": constant(0.0),
        "*.unpooling.up.weight": spread(0.02),
        "*.unpooling.down.weight": constant(0.0),
    }
    for place, count in additions.items():
        output = spread(0.02 / math.sqrt(count))
        for network in ("network",) if count == 36 else ("encoder", "decoder"):
            rules[f"{place}.{network}.*.out_proj.weight"] = output
            if count > 6:
                rules[f"{place}.{network}.*.mlp.down.weight"] = output
    assert_starts(model, rules)

    tokens = torch.randint(258, (2, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    # Features of mean square 1 times 384 weights of deviation 0.02.
    loss = float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    assert abs(loss - math.log(258) - 384 * 0.02**2 / 2) < 0.05
