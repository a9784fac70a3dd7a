from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.errors import NanozooError
from nanozoo_core.testing import chunking
from nanozoo_core.testing.chunking import (
    SMALL,
    TWO_STAGES,
    assert_decoding_is_the_forward_pass,
    assert_documents_are_apart,
    assert_main_network_runs_at_chunks_alone,
    assert_rows_are_as_alone,
    moved_too_early,
    text,
)
from nanozoo_hnet.model import ChunkedStage, HNet
from nanozoo_hnet.routing import FixedStride, Router, chunk_order, ratio_loss
from nanozoo_hnet.state import StageState

VARIANTS: dict[str, dict[str, Any]] = {
    "one stage": SMALL,
    "two stages": TWO_STAGES,
    "attention outside": SMALL | {"arch_layout": ["t1", ["T1"], "T1"], "mlp_dim": 64},
    "fixed": SMALL | {"chunking": "fixed", "target_ratio": 4},
    "fixed, two stages": TWO_STAGES | {"chunking": "fixed"},
    "space": SMALL | {"chunking": "space"},
}
each_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=list(VARIANTS))


def build(settings: dict[str, Any], noise: float = 0.0) -> HNet:
    return chunking.build(HNet, "hnet", settings, noise=noise)


@torch.no_grad()
def boundaries(model: HNet, tokens: Tensor) -> list[Tensor]:
    return [routing.boundaries for routing in model.encode(tokens)[1]]


# -- size and start -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"), [(None, 0.607), ("hnet_small", 99.77), ("hnet_2stage", 94.9)]
)
def test_parameter_counts(name: Any, millions: float) -> None:
    with torch.device("meta"):
        model = HNet(model_config("hnet", {"preset": name, "vocab_size": 258}))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=1e-3)


def test_outer_parts_of_the_small_model_have_14_5_million_parameters() -> None:
    with torch.device("meta"):
        model = HNet(model_config("hnet", {"preset": "hnet_small", "vocab_size": 258}))
    stages = model.parameter_stages()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    inner = sum(n for name, n in sizes.items() if stages[name] == 1)
    tables = 2 * 258 * 512
    assert inner == pytest.approx(85.0e6, rel=1e-2)
    assert sum(sizes.values()) - inner - tables == pytest.approx(14.5e6, rel=1e-2)


@pytest.mark.parametrize("settings", [{}, TWO_STAGES], ids=["tiny", "two stages"])
def test_fresh_model(settings: dict[str, Any]) -> None:
    model = build({"vocab_size": 258, **settings})
    tokens = torch.randint(0, 258, (4, 256), generator=torch.Generator().manual_seed(0))
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(math.log(258), abs=0.1)
    share = boundaries(model, tokens)[0].float().mean()
    assert 0.4 <= share <= 0.55
    for stage in model.stages()[:-1]:
        assert not stage.residual(torch.randn(3, stage.residual.in_features)).any()
        assert torch.equal(stage.chunker.query.weight, torch.eye(stage.residual.in_features))
    assert float(model.embedding.weight.detach().std()) == pytest.approx(1.0, rel=0.05)


@each_variant
def test_every_parameter_gets_a_gradient_at_once(settings: dict[str, Any]) -> None:
    model = build(settings)
    tokens = text(2, 80)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_output_projections_shrink_with_the_residual_additions() -> None:
    settings = {**TWO_STAGES, "model_dim": [256, 256, 256], "num_heads": 4}
    model = build(settings)
    outer, middle, main = model.stages()
    heights = [2, 2 + 2 + 1 + 1 + 1, 2 + 5 + 2]
    networks = [outer.encoder, middle.decoder, main.network]
    for network, height in zip(networks, heights, strict=True):
        std = float(network.blocks[0].mixer.out_proj.weight.detach().std())
        assert std == pytest.approx(0.02 / math.sqrt(height), rel=0.03)


# -- causality and packing ----------------------------------------------------------------------


@each_variant
def test_later_bytes_change_nothing_before_them(settings: dict[str, Any]) -> None:
    model, tokens = build(settings, noise=0.02), text(2, 90)
    cuts = boundaries(model, tokens)[0]
    for t in (1, 40, 41, 42, 88):
        assert moved_too_early(model, tokens, t) <= 1e-5
        changed = tokens.clone()
        changed[:, t] = 300 - changed[:, t] - 97
        assert torch.equal(boundaries(model, changed)[0][:, :t], cuts[:, :t])


@each_variant
def test_rows_in_a_batch_equal_rows_alone(settings: dict[str, Any]) -> None:
    assert_rows_are_as_alone(build(settings, noise=0.02), text(4, 100))


def test_padding_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding every row to all its positions, as GPU buckets may, equals padding to the longest."""
    model, tokens = build(TWO_STAGES, noise=0.02).double(), text(3, 60)

    def run() -> list[Tensor]:
        model.zero_grad()
        features, routings = model.encode(tokens)
        losses = [ratio_loss(routing.share, routing.mean_prob, 3.0) for routing in routings]
        (features.square().sum() + sum(losses)).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [features.detach(), *(loss.detach() for loss in losses), *grads]

    expected = run()
    for stage in model.stages()[:-1]:
        monkeypatch.setattr(stage, "_pack", lambda cuts: (cuts, chunk_order(cuts, cuts.shape[1])))
    for found, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-10)


def test_documents_do_not_see_each_other() -> None:
    settings = TWO_STAGES | {"reset_at_documents": True}
    assert_documents_are_apart(build(settings, noise=0.02), text(2, 90), 37)


# -- degenerate forms ---------------------------------------------------------------------------


def test_chunks_of_one_byte_are_the_networks_in_sequence() -> None:
    model, tokens = build(VARIANTS["fixed"], noise=0.02), text(2, 50)
    stage = model.stage
    stage.chunker = FixedStride(1)
    h = stage.encoder(model.embedding(tokens))
    z = stage.inner.network(stage.inner.widen(h))[..., :32]
    expected = stage.decoder(z + stage.residual(h))
    torch.testing.assert_close(model.features(tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_router_that_always_cuts_is_the_fixed_stride_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = build(SMALL, noise=0.02), text(2, 50)
    monkeypatch.setattr(Router, "forward", lambda self, x, tokens, starts: torch.ones(x.shape[:2]))
    found = model.features(tokens)
    model.stage.chunker = FixedStride(1)
    expected = model.features(tokens)
    assert 0 < (found - expected).abs().max() < 1e-3  # the clamp holds back 1e-4 of each chunk


def test_a_probability_of_one_half_starts_no_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Router, x: Tensor, tokens: Tensor, starts: Tensor | None) -> Tensor:
        return torch.full(x.shape[:2], 0.5).index_fill(1, torch.tensor([0]), 1.0)

    model, tokens = build(SMALL, noise=0.02), text(2, 20)
    monkeypatch.setattr(Router, "forward", half)
    assert boundaries(model, tokens)[0].sum(1).tolist() == [1, 1]
    cache = model.init_cache(2, 20)
    model.read(tokens[:, :10], torch.tensor([10, 10]), cache)
    state = cache.state.chunker
    monkeypatch.setattr(Router, "step", lambda self, x, tokens, old: (x[:, 0] * 0 + 0.5, state))
    calls = []
    monkeypatch.setattr(model.stage.inner, "step", lambda *args: calls.append(args))
    model(tokens[:, 10:11], cache=cache)
    assert calls == []


def test_capacity_keeps_the_first_boundaries_and_only_in_training() -> None:
    model, tokens = build(SMALL | {"capacity": 0.1}), text(2, 60)
    seen = []
    model.stage.inner.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    model.features(tokens)
    model.train()
    model.features(tokens)
    cuts = boundaries(model.eval(), tokens)[0]
    assert seen[0].shape[1] == cuts.sum(1).max() > 6
    for row in range(2):
        assert torch.equal(seen[1][row], tokens[row][cuts[row]][:6])


def test_static_chunking_has_no_router() -> None:
    names = [name for name, _ in build(VARIANTS["fixed"]).named_parameters()]
    assert not any("chunker" in name for name in names)


def test_tied_head_is_the_embedding() -> None:
    model = build(SMALL | {"tie_embeddings": True})
    assert model.head.weight is model.embedding.weight
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


# -- decoding -----------------------------------------------------------------------------------


@each_variant
def test_prefill_and_steps_equal_the_forward_pass(settings: dict[str, Any]) -> None:
    model, tokens = build(settings, noise=0.02), text(3, 300)
    lengths = torch.tensor([1, 40, 100])
    for routing in model.encode(tokens)[1]:
        assert model.config.chunking == "fixed" or routing.boundaries.unique(dim=0).shape[0] == 3
        if model.config.chunking == "dynamic":
            assert (routing.probs - 0.5).abs().min() > 1e-5  # else the two may decide differently
    # Too little room: the caches grow.
    assert_decoding_is_the_forward_pass(model, tokens, lengths, 200, room=16)


def test_prefill_of_ragged_prompts_equals_the_forward_pass() -> None:
    model, tokens = build(TWO_STAGES, noise=0.02), text(3, 64)
    lengths = torch.tensor([5, 64, 33])
    cache = model.init_cache(3, 64)
    found, full = model.read(tokens, lengths, cache), model.features(tokens)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], full[row, :length], rtol=0, atol=1e-5)


def test_a_cache_fed_without_prefill_counts_its_tokens() -> None:
    model, tokens = build(SMALL), text(2, 12)
    cache = model.init_cache(2, 12)
    with torch.no_grad():
        found = torch.cat([model(tokens[:, :5], cache=cache), model(tokens[:, 5:], cache=cache)], 1)
        torch.testing.assert_close(found, model(tokens), rtol=0, atol=1e-5)
    assert cache.lengths.tolist() == [12, 12]


def test_main_network_runs_only_at_boundaries() -> None:
    assert_main_network_runs_at_chunks_alone(build(VARIANTS["space"]), text(1, 60), 10, 50)


def test_cache_cannot_forget() -> None:
    model = build(SMALL)
    cache = model.init_cache(1, 8)
    model(text(1, 5), cache=cache)
    cache.crop(torch.tensor([5]))
    with pytest.raises(NanozooError, match="cannot forget"):
        cache.crop(torch.tensor([4]))


# -- precision and compilation ------------------------------------------------------------------


def test_bf16_autocast_stays_near_float32() -> None:
    model, tokens = build(VARIANTS["space"], noise=0.02), text(2, 100)
    expected = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
    # Relative rounding 2^-9 in each of some ten matrix products, on logits of order 1.
    assert (found.float() - expected).abs().max() < 0.1
    assert (found.float() - expected).abs().mean() < 0.01


def test_bf16_rounds_the_number_of_chunks_up_and_the_rest_has_no_part() -> None:
    model, tokens = build(VARIANTS["space"], noise=0.02), text(2, 100)
    boundaries = torch.zeros(2, 100, dtype=torch.bool)
    boundaries[0, ::7], boundaries[1, ::9] = True, True
    stage = next(each for each in model.modules() if hasattr(each, "_pack"))
    assert stage._pack(boundaries)[1].shape[1] == 15
    with torch.autocast("cpu", torch.bfloat16):
        assert stage._pack(boundaries)[1].shape[1] == 16
        boundaries[0] = True
        assert stage._pack(boundaries)[1].shape[1] == 100
        few = model(tokens[:, :96])
        longer = model(tokens)[:, :96]
    torch.testing.assert_close(few.float(), longer.float(), rtol=0, atol=0.1)


@pytest.mark.slow
def test_compiled_networks_around_eager_chunking() -> None:
    model, tokens = build(SMALL, noise=0.02), text(2, 100)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


# -- what a package may build on it ---------------------------------------------------------------


class Halved(ChunkedStage):
    """Chunk vectors by half, and as much beside them as a position's chunk holds."""

    def pool(self, h: Tensor, order: Tensor, documents: Tensor | None) -> Tensor:
        return super().pool(h, order, documents) / 2

    def pool_step(self, h: Tensor, new: Tensor, state: StageState, rows: Tensor | None) -> Tensor:
        return h[new] / 2

    def refine(self, y: Tensor, chunks: Tensor, index: Tensor, order: Tensor) -> Tensor:
        return y + chunks.gather(1, index[..., None].expand_as(y))

    def refine_step(self, y: Tensor, state: StageState, rows: Tensor | None) -> Tensor:
        return y + (state.smoothed if rows is None else state.smoothed[rows])


class HalvedHNet(HNet):
    stage_class = Halved


def test_a_stage_of_another_kind_is_used_on_all_levels_and_in_decoding() -> None:
    settings = TWO_STAGES | {"chunking": "fixed"}
    torch.manual_seed(0)
    model = HalvedHNet(model_config("hnet", dict(settings))).eval()
    assert [type(stage) for stage in model.stages()[:2]] == [Halved, Halved]
    tokens, lengths = text(2, 40), torch.tensor([7, 18])
    full = model(tokens).detach()
    assert (full - build(settings)(tokens)).abs().max() > 1e-3
    assert_decoding_is_the_forward_pass(model, tokens, lengths, 20, 40)
