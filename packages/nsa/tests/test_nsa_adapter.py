from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.errors import ConfigError
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.testing.laws import assert_document_is_scored_as_if_alone, perturb
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_nsa.adapter import NSAAdapter
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.model import NSA

ADAPTER = NSAAdapter(NSAConfig, NSA)
SMALL: dict[str, Any] = {
    "num_layers": 2,
    "model_dim": 32,
    "sliding_window_size": 4,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 4,
}

UNSET = dict.fromkeys(  # so that a preset sets them
    (
        "sliding_window_size", "compress_block_size", "compress_stride", "selection_block_size",
    )
)  # fmt: skip


def build(**settings: Any) -> NSA:
    torch.manual_seed(0)
    return NSA(model_config("nsa", {"vocab_size": 50} | SMALL | settings))


def random_batch(length: int = 64, documents: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    batch = batch_of(torch.randint(50, (3, length + 1), generator=generator))
    if documents is None:
        return batch
    return Batch(batch.tokens, documents, batch.rows, batch.num_rows)


def test_shared_weights_start_by_the_controls_rule() -> None:
    model, control = build(), ControlModel(build().config)
    ours, theirs = dict(model.named_parameters()), dict(control.named_parameters())
    assert set(theirs) - set(ours) == {f"blocks.{n}.attention.out.weight" for n in (0, 1)}
    for name in set(theirs) & set(ours):
        one, two = ours[name].detach(), theirs[name].detach()
        if not name.endswith("attention.qkv.weight"):
            assert one.shape == two.shape, name
        torch.testing.assert_close(one.abs().mean(), two.abs().mean(), rtol=0.05, atol=0, msg=name)
        torch.testing.assert_close(one.std(), two.std(), rtol=0.05, atol=0, msg=name)


def test_the_loss_starts_at_a_uniform_guess() -> None:
    loss = ADAPTER.training_loss(build(), random_batch(), Step(0, 0.0, 0))
    assert float(loss.value.detach()) == pytest.approx(math.log(50), abs=0.01)
    assert float(loss.metrics["block1_gate_window"]) == 0.5
    assert len(loss.metrics) == 6


def test_gates_and_positions_are_adamws_without_decay() -> None:
    """At a size at which they would be Muon's: 24 gates, and positions of 32 tokens."""
    with torch.device("meta"):
        model = build(num_heads=8, model_dim=128, num_kv_heads=2, preset="paper", **UNSET)
    groups = ADAPTER.optimizer_groups(
        model, from_defaults(OptimConfig, name="muon", weight_decay=0.1)
    )
    where = {name: group for group in groups for name in group.names}
    mixer = "blocks.0.attention."
    for name in (
        "gate_weight", "gate_bias", "compress_keys.positions", "compress_values.positions",
        "compress_values.up_bias",
    ):  # fmt: skip
        assert where[mixer + name].optimizer == "adamw"
        assert where[mixer + name].weight_decay == 0
    for name in ("qkv.weight", "out_proj.weight", "compress_keys.up"):
        assert where[mixer + name].optimizer == "muon"
    assert model.mixers()[0].qkv.weight.muon_split == (128, *[32] * 6)


@torch.no_grad()
def test_documents_count_only_when_asked() -> None:
    documents = (torch.arange(65) >= 20).int().expand(3, -1)
    for resets in (False, True):
        model = build(reset_at_documents=resets)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        one = ADAPTER.nll(model, random_batch(), Draw(0)).nats
        two = ADAPTER.nll(model, random_batch(documents=documents), Draw(0)).nats
        assert torch.equal(one, two) is not resets


def test_a_document_is_scored_as_if_alone() -> None:
    model = perturb(build(reset_at_documents=True))
    assert_document_is_scored_as_if_alone(ADAPTER, model, random_batch().tokens, cut=20)


def test_flops_of_the_default_by_hand() -> None:
    config = model_config("nsa")
    linear = 4 * (128 * (128 + 6 * 32) + 128**2 + 8 * 128**2) + 4096 * 128
    phi = 2 * (8 * 32 * 64 + 64 * 32)
    keys = (256 - 8) / 4 + 1 + 4 * 16 + 32
    per_layer = 2 * 12 * 128 + 2 * phi / 4 + 4 * 128 * keys
    assert ADAPTER.flops_per_token(config, 256) == 6 * linear + 3 * 4 * per_layer


def test_the_size_of_the_fineweb_recipe_has_its_number_of_parameters() -> None:
    """Of GPT-2 small's shape: 162.0 M. The paper's own model is a mixture of experts."""
    settings = {"vocab_size": 50304, "seq_len": 4096, "num_layers": 12, "model_dim": 768}
    heads = {"num_heads": 12, "num_kv_heads": 2}
    blocks = {"compress_block_size": 32, "compress_stride": 16, "selection_block_size": 64}
    blocks |= {"num_selected_blocks": 8, "sliding_window_size": 256}
    with torch.device("meta"):
        model = NSA(model_config("nsa", settings | heads | blocks))
    phi = 32 * 64 * (1 + 128) + 128 + 128 * 64 + 64
    layer = 2 * 768**2 + 6 * 128 * 768 + 2 * phi + 36 * (768 + 1) + 8 * 768**2
    total = 12 * layer + 2 * 50304 * 768
    assert sum(p.numel() for p in model.parameters()) == total == 161_997_744


@torch.no_grad()
def test_inspection_shows_what_is_read() -> None:
    batches = [random_batch(), random_batch(48)]
    found = ADAPTER.inspect(build(), batches, ToyVocabulary(50))
    assert found is not None
    assert found.metrics["block0_gate_selected"] == 0.5
    assert 0.75 <= found.metrics["forced_share"] < 1  # 3 of 4 blocks, and all of the first three
    distances, reads = found.pictures
    for points in distances.series.values():
        shares = dict(points)
        assert shares[0.0] == shares[1.0] == 0  # forced
        assert sum(shares.values()) == pytest.approx(1)
    assert len(reads.values) == 2
    for row in reads.values:
        assert sum(row) == 4
        assert row[0] == row[14] == row[15] == 1


@torch.no_grad()
def test_a_sample_marks_what_its_last_token_chose() -> None:
    class Letters(ToyVocabulary):
        def encode(self, text: str | bytes) -> list[int]:
            return [ord(letter) - 96 for letter in str(text)]

        def decode_bytes(self, tokens: Sequence[int]) -> bytes:
            return bytes(96 + token for token in tokens if token != self.separator)

    vocabulary = Letters(50)
    text = "abcdefghijklmnopqrstuvwxyz"
    marked = ADAPTER.show_sample(build(), vocabulary, text)
    assert marked is not None
    assert marked.replace("[", "").replace("]", "") == text
    assert marked.count("[") == marked.count("]") == 2  # one free block in each of two layers
    assert marked[:3] == "abc"  # the first block, with the separator, is forced
    assert marked[-7:] == "tuvwxyz"  # and so are the last two


def test_kernels_without_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = build(num_heads=2, model_dim=64, selection_block_size=16, nsa_impl="triton")
    with pytest.raises(ConfigError, match=r"nsa_impl=triton needs a GPU"):
        ADAPTER.prepare_model(model, [])
