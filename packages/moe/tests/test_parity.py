"""Parity with the blocks of transformers on random weights; nothing is downloaded.

Their experts are W_down (act(W_gate h) * W_up h): with act = relu and W_gate = W_up that is ours.
"""

import pytest
import torch

from nanozoo_core.config import model_config
from nanozoo_moe.model import MixtureOfExperts

transformers = pytest.importorskip("transformers", minversion="5")

DIM, HIDDEN, EXPERTS, TOP_K = 32, 48, 8, 3
SIZES = {
    "hidden_size": DIM,
    "num_experts_per_tok": TOP_K,
    "hidden_act": "relu",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
OURS = {"model_dim": DIM, "num_heads": 2, "moe_hidden": HIDDEN}


def make_ours(**settings):
    """The mixture of a preset as it is, or one of EXPERTS by the settings."""
    torch.manual_seed(0)
    counts = {} if "preset" in settings else {"num_experts": EXPERTS, "top_k": TOP_K}
    mixture = MixtureOfExperts(model_config("moe", OURS | counts | settings))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_(std=0.3)
    return mixture


def assert_parity(ours, theirs):
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.up, ours.up], dim=1))
        theirs.experts.down_proj.copy_(ours.down)
    h = torch.randn(2, 20, DIM, generator=torch.Generator().manual_seed(1))
    routing = ours.router(h)
    ranked = routing.logits  # in the order of the scores, and further apart
    if ours.router.choice_bias is not None:
        ranked = routing.scores + ours.router.choice_bias
    best = ranked.topk(ours.router.top_k + 1, dim=-1).values
    assert (best[..., -2] - best[..., -1]).min() > 1e-5  # else rounding may choose another expert

    mine, copy = h.clone().requires_grad_(), h.clone().requires_grad_()
    found, expected = ours(mine)[0], theirs(copy)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    found.backward(grad)
    expected.backward(grad)
    assert (mine.grad - copy.grad).norm() < 1e-5 * copy.grad.norm()
    router = theirs.gate.weight.grad
    assert (ours.router.weight.grad - router).norm() < 1e-5 * router.norm()


def test_olmoe():
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    sizes = SIZES | {"num_experts_per_tok": 8, "num_experts": 64}
    config = transformers.OlmoeConfig(**sizes, intermediate_size=HIDDEN)
    assert not config.norm_topk_prob
    assert_parity(make_ours(preset="moe_olmoe"), OlmoeSparseMoeBlock(config))


def test_olmoe_with_weights_that_sum_to_one():
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = transformers.OlmoeConfig(
        **SIZES, intermediate_size=HIDDEN, num_experts=EXPERTS, norm_topk_prob=True
    )
    ours = make_ours(
        num_shared_experts=0, score_func="softmax", balance="loss", routed_scaling_factor=1.0
    )
    assert_parity(ours, OlmoeSparseMoeBlock(config))


def test_mixtral():
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    sizes = SIZES | {"num_experts_per_tok": 2, "num_local_experts": 8}
    config = transformers.MixtralConfig(**sizes, intermediate_size=HIDDEN)
    assert_parity(make_ours(preset="moe_mixtral"), MixtralSparseMoeBlock(config))


@torch.no_grad()
def test_mixtral_without_transformers():
    """Softmax over the two largest logits (arXiv 2401.04088, section 2.1), token by token."""
    ours = make_ours(preset="moe_mixtral").double()
    h = torch.randn(1, 9, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = ours(h)[0][0]
    for x, y in zip(h[0], found, strict=True):
        logits = ours.router.weight @ x
        chosen = sorted(range(8), key=lambda e: -float(logits[e]))[:2]
        shares = torch.stack([logits[e] for e in chosen]).softmax(0)
        expected = sum(
            share * (ours.down[e] @ torch.relu(ours.up[e] @ x).square())
            for share, e in zip(shares, chosen, strict=True)
        )
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_deepseek_v3():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = transformers.DeepseekV3Config(
        **SIZES,
        moe_intermediate_size=HIDDEN,
        n_routed_experts=EXPERTS,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    ours = make_ours(num_shared_experts=2, routed_scaling_factor=2.5)
    theirs = DeepseekV3MoE(config)
    with torch.no_grad():
        bias = 0.1 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(3))
        ours.router.choice_bias.copy_(bias)
        theirs.gate.e_score_correction_bias.copy_(bias)
        shared = theirs.shared_experts
        for projection in (shared.gate_proj, shared.up_proj):
            projection.weight.copy_(ours.shared.up.weight)
        shared.down_proj.weight.copy_(ours.shared.down.weight)
    assert_parity(ours, theirs)
