from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from ladder import LADDER as SIZES
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.testing import chunking
from nanozoo_core.testing.chunking import (
    assert_decoding_is_the_forward_pass,
    assert_documents_are_apart,
    assert_main_network_runs_at_chunks_alone,
    assert_rows_are_as_alone,
    moved_too_early,
    text,
)
from nanozoo_hnet.model import HNet
from nanozoo_hnet_x_nsa.mixers import SparseAttention
from nanozoo_hnet_x_nsa.model import HNetXNSA, PooledStage
from nanozoo_hnet_x_nsa.pooling import ChunkPool

pytestmark = pytest.mark.filterwarnings("ignore:stage . has about", "ignore:.*this is hnet")

SMALL = chunking.SMALL | {"nsa_cfg": {"num_selected_blocks": 3, "sliding_window_size": 4}}
TWO_STAGES: dict[str, Any] = chunking.TWO_STAGES | {
    "arch_layout": ["m1", ["N1m1", ["N1"], "m1n1"], "m1"],
    "num_kv_heads": 1,
    "nsa_cfg": {
        "compress_block_size": 4,
        "compress_stride": 2,
        "selection_block_size": 4,
        "num_selected_blocks": 3,
        "sliding_window_size": 4,
    },
}
LADDER = SIZES | {"vocab_size": 258}
MLP = {"chunk_pool": "mlp"}
FIXED = {"chunking": "fixed", "target_ratio": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "dynamic": SMALL,
    "dynamic, pooled": SMALL | MLP,
    "space": SMALL | {"chunking": "space"},
    "space, pooled": SMALL | MLP | {"chunking": "space", "pool_window": 5},
    "fixed": SMALL | FIXED,
    "fixed, pooled": SMALL | MLP | FIXED,
    "fixed, unpooled": SMALL | FIXED | {"unpool": "mlp"},
    "fixed, pooled and unpooled": SMALL | MLP | FIXED | {"unpool": "mlp"},
    "two stages": TWO_STAGES,
    "two stages, pooled": TWO_STAGES | MLP,
    "ladder": LADDER,
    "outside too": SMALL | {"arch_layout": ["N1m1", ["N1"], "m1n1"], "mlp_dim": 64},
}
each_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=list(VARIANTS))


def build(settings: dict[str, Any], *, noise: float = 0.02) -> HNetXNSA:
    return chunking.build(HNetXNSA, "hnet_x_nsa", settings, noise=noise)


# -- equal to its parents where it must be --------------------------------------------------------


@pytest.mark.parametrize("chunking", ["dynamic", "fixed", "space"])
def test_without_sparse_layers_it_is_hnet_to_the_bit(chunking: str) -> None:
    plain = {k: v for k, v in SMALL.items() if k != "nsa_cfg"}
    plain |= {"arch_layout": ["m1", ["T2"], "m1"], "chunking": chunking}
    torch.manual_seed(0)
    theirs = HNet(model_config("hnet", dict(plain)))
    torch.manual_seed(0)
    ours = HNetXNSA(model_config("hnet_x_nsa", dict(plain)))
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tokens = text(2, 90)
    assert torch.equal(ours(tokens), theirs(tokens))


def test_selection_of_all_blocks_is_hnets_attention() -> None:
    """Gates closed but for the selected branch, one pair of keys and values, all blocks taken."""
    dense = build(SMALL | {"arch_layout": ["m1", ["T2"], "m1"], "rotary_emb_dim": [8, 16]})
    nsa = {"shared_kv": True, "num_selected_blocks": 50}
    sparse = build(SMALL | {"num_kv_heads": [2, 3], "nsa_cfg": nsa})
    weights = dict(dense.named_parameters())
    with torch.no_grad():
        for name, parameter in sparse.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
        for mixer in sparse.mixers().values():
            mixer.gate_weight.zero_()
            mixer.gate_bias.copy_(torch.tensor([-200.0, 200.0, -200.0]).repeat(mixer.num_heads))
    tokens = text(2, 120)
    torch.testing.assert_close(sparse(tokens), dense(tokens), rtol=1e-5, atol=1e-5)


def test_pooling_and_unpooling_start_as_selecting_and_repeating() -> None:
    model = build(VARIANTS["fixed, pooled and unpooled"], noise=0)
    plain = build(VARIANTS["fixed"], noise=0)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    tokens = text(2, 50)
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=0)

    def reached() -> set[str]:
        model.zero_grad()
        model(tokens).square().sum().backward()
        return {
            name
            for name, p in model.named_parameters()
            if "pooling" in name and p.grad is not None and p.grad.abs().max() > 0
        }

    assert reached() == {"stage.pooling.down.weight", "stage.unpooling.down.weight"}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    names = {name for name, _ in model.named_parameters() if "pooling" in name}
    assert reached() == names
    assert len(names) == 5


# -- causality ------------------------------------------------------------------------------------


@each_variant
def test_later_bytes_change_nothing_before_them(settings: dict[str, Any]) -> None:
    model, tokens = build(settings), text(2, 90)
    for place in (1, 40, 41, 42, 43, 88):  # on a border of groups of four, and within one
        assert moved_too_early(model, tokens, place) <= 1e-5


class Leaking(ChunkPool):
    """Reads the group that begins, as if it had ended."""

    def forward(self, h: Tensor, order: Tensor, documents: Tensor | None) -> Tensor:
        end = (order + self.window - 1).clamp(max=h.shape[1] - 1)
        return super().forward(h, end, documents)


def test_pooling_the_group_that_begins_would_show() -> None:
    model, tokens = build(VARIANTS["fixed, pooled"]), text(2, 90)
    pooling = model.stage.pooling  # type: ignore[union-attr]
    assert isinstance(pooling, ChunkPool)
    pooling.__class__ = Leaking
    assert moved_too_early(model, tokens, 42) > 1e-3


def test_pooling_reads_up_to_the_first_byte_of_a_chunk_and_no_further_back_than_asked() -> None:
    pooling = ChunkPool(4, 3)
    torch.nn.init.normal_(pooling.down.weight)
    h = torch.randn(1, 9, 4, requires_grad=True)
    for first in (0, 1, 5):
        (grad,) = torch.autograd.grad(pooling(h, torch.tensor([[first]]), None).sum(), h)
        reached = grad[0].abs().amax(1).nonzero()[:, 0].tolist()
        assert reached == list(range(max(first - 2, 0), first + 1))


def test_pooling_before_the_start_reads_zeros() -> None:
    pooling = ChunkPool(4, 3)
    torch.nn.init.normal_(pooling.down.weight)
    h = torch.randn(2, 5, 4)
    padded = torch.cat([torch.zeros(2, 2, 4), h], dim=1)
    order = torch.tensor([[0, 1], [0, 3]])
    torch.testing.assert_close(pooling(h, order, None), pooling(padded, order + 2, None))


# -- rows, padding and documents ------------------------------------------------------------------


@each_variant
def test_rows_in_a_batch_equal_rows_alone(settings: dict[str, Any]) -> None:
    assert_rows_are_as_alone(build(settings), text(3, 100))


@pytest.mark.parametrize("name", ["dynamic, pooled", "ladder", "two stages"])
def test_documents_do_not_see_each_other(name: str) -> None:
    model = build(VARIANTS[name] | {"reset_at_documents": True})
    assert_documents_are_apart(model, text(2, 90), 37)


@pytest.mark.parametrize("with_documents", [False, True])
def test_few_chunks_use_every_parameter_and_change_nothing(with_documents: bool) -> None:
    """Processes that train together must agree on what takes part."""
    config = model_config("hnet_x_nsa", dict(SMALL))
    torch.manual_seed(0)
    mixer = SparseAttention(config, 1)
    torch.nn.init.normal_(mixer.out_proj.weight)
    x = torch.randn(2, 3, 48)  # fewer than the 4 of a compressed block
    documents = torch.tensor([[0, 0, 1], [0, 1, 1]]) if with_documents else None
    found = mixer(x, documents=documents)
    with torch.no_grad():
        expected = mixer(x, documents=documents)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found.sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())


# -- decoding -------------------------------------------------------------------------------------


@each_variant
def test_prefill_and_steps_equal_the_forward_pass(settings: dict[str, Any]) -> None:
    model, tokens = build(settings), text(3, 170)
    lengths = torch.tensor([1, 42, 90])
    routings = model.encode(tokens)[1]
    if model.config.chunking == "dynamic":
        assert all((r.probs - 0.5).abs().min() > 1e-5 for r in routings)  # no doubtful decision
    if settings is not LADDER:  # several compressed blocks, more chunks than the window holds
        assert int(routings[0].boundaries.sum(1).min()) > 12
    # Too little room: the caches grow.
    assert_decoding_is_the_forward_pass(model, tokens, lengths, 80, room=16)


def test_the_sparse_network_runs_only_where_chunks_start() -> None:
    model = build(VARIANTS["fixed, pooled"])
    assert_main_network_runs_at_chunks_alone(model, text(1, 60), 10, 40)


# -- the ladder -----------------------------------------------------------------------------------


def test_the_ladder_has_a_block_at_each_resolution_on_both_sides() -> None:
    model = build(LADDER)
    kinds = [
        [type(block.mixer).__name__ for network in stage.networks() for block in network.blocks]
        for stage in model.stages()
    ]
    assert kinds == [["Attention"] * 2, ["Attention"] * 2, ["SparseAttention"]]
    outer = model.stage
    assert isinstance(outer, PooledStage)
    assert outer.pooling is not None
    assert outer.unpooling is not None
    assert (outer.pooling.window, outer.unpooling.stride) == (4, 2)


def test_each_byte_of_a_group_has_its_part_of_the_unpooled_vector() -> None:
    stage = build(VARIANTS["fixed, unpooled"]).stage
    assert isinstance(stage, PooledStage)
    assert stage.unpooling is not None
    chunks = torch.randn(1, 3, 32)
    index = torch.arange(10)[None] // 4
    found = stage.refine(torch.zeros(1, 10, 32), chunks, index, torch.tensor([[0, 4, 8]]))
    parts = stage.unpooling.parts(chunks)  # (1, 3, 4, 32)
    torch.testing.assert_close(found[0], parts[0].flatten(0, 1)[:10])


@pytest.mark.parametrize("preset", ["hnet_x_nsa_small", "hnet_x_nsa_2stage", "hnet_x_nsa_fixed"])
def test_presets_build_at_their_stated_size(preset: str) -> None:
    millions = {"hnet_x_nsa_small": 96.4, "hnet_x_nsa_2stage": 93.0, "hnet_x_nsa_fixed": 100}
    with torch.device("meta"), warnings.catch_warnings():
        model = HNetXNSA(
            model_config("hnet_x_nsa", {"preset": preset, "vocab_size": 258, "seq_len": 16384})
        )
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions[preset], abs=0.5)
