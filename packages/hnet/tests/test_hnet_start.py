from __future__ import annotations

import torch

from nanozoo_core.config import model_config
from nanozoo_core.testing.chunking import (
    assert_first_loss_is_that_of_a_small_head,
    hierarchy_starts,
)
from nanozoo_core.testing.starts import assert_starts, identity
from nanozoo_hnet.model import HNet

# Six layers without MLPs outside; two with and six without in the middle; ten with inside.
ADDITIONS = {"stage": 6, "stage.inner": 6 + 2 * 2 + 6, "stage.inner.inner": 6 + 10 + 20}


def test_each_tensor_of_the_preset_of_two_stages_starts_as_published() -> None:
    torch.manual_seed(0)
    model = HNet(model_config("hnet", {"preset": "hnet_2stage", "vocab_size": 258}))
    rules = hierarchy_starts(ADDITIONS, with_mlp=("stage.inner", "stage.inner.inner"))
    assert_starts(model, rules | {"*.chunker.*.weight": identity})
    assert_first_loss_is_that_of_a_small_head(model, 384)
