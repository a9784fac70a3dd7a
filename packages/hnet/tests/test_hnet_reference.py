from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_core.testing.chunking_reference import (
    ChunkingReference,
    Sizes,
    assert_is_the_reference,
    exact_angles,
    perturb,
    weights_of,
)
from nanozoo_core.testing.sources import batch_of
from nanozoo_hnet import mixers
from nanozoo_hnet.adapter import HNetAdapter
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.model import HNet

COEFFICIENT = 0.7
LAYOUT = ["t1M1", ["T1m1", ["T2"], "m1t1"], "m1T1"]
# No two sizes agree by accident: heads 3, 2 and 4 of 4, 10 and 7 channels, scans of 3 and 5 heads
# of 8 channels and 6 states.
SETTINGS: dict[str, Any] = {
    "vocab_size": 29,
    "arch_layout": LAYOUT,
    "model_dim": [12, 20, 28],
    "mlp_dim": [17, 22, 35],
    "num_heads": [3, 2, 4],
    "rotary_emb_dim": [2, 6, 4],
    "window_size": [3, 2, -1],
    "ssm_cfg": {"d_state": 6, "d_conv": 3, "expand": 2, "head_dim": 8, "chunk_size": 5},
    "target_ratio": [2.5, 4.0],
    "ratio_loss_coef": COEFFICIENT,
    "boundary_clamp": 0.03,
    "norm_eps": 1e-2,
}
SIZES = Sizes(
    layout=LAYOUT,
    num_heads=[3, 2, 4],
    rotary=[2, 6, 4],
    window=[3, 2, -1],
    ratios=[2.5, 4.0],
    clamp=0.03,
    eps=1e-2,
)


@pytest.mark.parametrize("reset", [False, True], ids=["one document", "documents"])
def test_loss_logits_and_gradients_are_those_of_the_equations(
    reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixers, "rotary_angles", exact_angles)
    torch.manual_seed(0)
    model = perturb(HNet(model_config("hnet", SETTINGS | {"reset_at_documents": reset})))
    tokens = torch.randint(29, (2, 19), generator=torch.Generator().manual_seed(1))
    documents = torch.zeros(2, 19, dtype=torch.int32)
    documents[0, 9:], documents[1, 1:], documents[1, 15:] = 1, 1, 2
    assert_is_the_reference(
        HNetAdapter(HNetConfig, HNet),
        model,
        replace(batch_of(tokens), documents=documents),
        ChunkingReference(weights_of(model), SIZES),
        COEFFICIENT,
        reset=reset,
    )
