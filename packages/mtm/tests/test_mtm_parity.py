"""Parity of a module with the one of transformers on random weights; nothing is downloaded."""

import pytest
import torch
from torch import nn

from nanozoo_core.config import model_config
from nanozoo_mtm.model import PredictionModule

transformers = pytest.importorskip("transformers", minversion="5.23")

DIM, LENGTH = 32, 20


class TheirBlock(nn.Module):
    """A Llama layer in the place of the control's block."""

    def __init__(self, layer, rotary):
        super().__init__()
        self.layer, self.rotary = layer, rotary

    def forward(self, u, angles, *, cache=None):
        positions = torch.arange(u.shape[1])[None]
        mask = torch.full((u.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        return self.layer(
            u,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.rotary(u, position_ids=positions),
        )


@pytest.mark.parametrize("order", ["embed_first", "hidden_first"])
@pytest.mark.parametrize("share_final_norm", [False, True])
def test_a_chain_of_two_modules(order, share_final_norm):
    from transformers.modeling_layers import MtpLayer
    from transformers.models.llama.modeling_llama import (
        LlamaDecoderLayer,
        LlamaRMSNorm,
        LlamaRotaryEmbedding,
    )

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=DIM,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    config.mtp_hidden_states_first = order == "hidden_first"
    rotary = LlamaRotaryEmbedding(config)
    ours_config = model_config(
        "mtm",
        {
            "vocab_size": 31,
            "model_dim": DIM,
            "num_heads": 2,
            "concat_order": order,
            "share_final_norm": share_final_norm,
        },
    )
    mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
    positions = torch.arange(LENGTH)[None]
    mine = theirs = torch.randn(2, LENGTH, DIM)
    for depth in range(2):
        layer = MtpLayer(config, LlamaDecoderLayer, LlamaRMSNorm, depth)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        ours = PredictionModule(ours_config)
        ours.block = TheirBlock(layer.mtp_block, rotary)
        with torch.no_grad():
            ours.hidden_norm.weight.copy_(layer.hnorm.weight)
            ours.embed_norm.weight.copy_(layer.enorm.weight)
            ours.fuse.weight.copy_(layer.eh_proj.weight)
            if share_final_norm:
                layer.post_norm.weight.fill_(1)
            else:
                ours.out_norm.weight.copy_(layer.post_norm.weight)
            embedded = torch.randn(2, LENGTH, DIM)
            theirs = layer(
                inputs_embeds=embedded,
                previous_hidden_state=theirs,
                position_embeddings=rotary(embedded, position_ids=positions),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=None,
            )
            mine = ours(mine, embedded, angles=None)
        assert theirs.std() > 0.1
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
