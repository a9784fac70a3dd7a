from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from nanozoo_core.config import model_config
from nanozoo_core.testing.starts import assert_starts, between, constant, identity, spread
from nanozoo_hnet.model import HNet


def test_each_tensor_of_the_preset_of_two_stages_starts_as_published() -> None:
    torch.manual_seed(0)
    model = HNet(model_config("hnet", {"preset": "hnet_2stage", "vocab_size": 258}))
    # Six layers without MLPs outside; two with and six without in the middle; ten with inside.
    additions = {"stage": 6, "stage.inner": 6 + 2 * 2 + 6, "stage.inner.inner": 6 + 10 + 20}
    # Four taps of one channel each: torch's own start, uniform up to 1 / sqrt(4).
    convolution = spread(0.5 / math.sqrt(3))
    rules = {
        "embedding.weight": spread(1.0),
        "head.weight": spread(0.02),
        "*norm.weight": constant(1.0),
        "*.chunker.*.weight": identity,
        "*.residual.*": constant(0.0),
        "*.widen.vector": constant(0.0),
        "*.qkv.weight": spread(0.02),
        "*.gate_up.weight": spread(0.02),
        "*.in_proj.weight": spread(0.02),
        "*.dt_proj.weight": spread(0.02),
        "*.conv.weight": convolution,
        "*.conv.bias": convolution,
        "*.A_log": between(1.0, 16.0, torch.exp),
        "*.dt_bias": between(math.log(1e-3), math.log(1e-1), lambda x: F.softplus(x).log()),
        "*.skip": constant(1.0),
    }
    for place, count in additions.items():
        output = spread(0.02 / math.sqrt(count))
        for network in ("network",) if count == 36 else ("encoder", "decoder"):
            kinds = ("out_proj", "down") if count > 6 else ("out_proj",)
            rules |= {f"{place}.{network}.*.{kind}.weight": output for kind in kinds}
    assert_starts(model, rules)

    tokens = torch.randint(258, (2, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    # Features of mean square 1 times 384 weights of deviation 0.02: logits of variance 0.154, which
    # costs half of that beyond a uniform guess.
    loss = float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    assert abs(loss - math.log(258) - 384 * 0.02**2 / 2) < 0.05
    assert abs(float(logits.var()) / (384 * 0.02**2) - 1) < 0.1
