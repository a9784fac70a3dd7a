from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.optim.groups import ParameterGroup
from nanozoo_core.testing import chunking, sources
from nanozoo_core.testing.chunking import Bytes, text
from nanozoo_core.testing.laws import assert_document_is_scored_as_if_alone, perturb
from nanozoo_hnet.adapter import HNetAdapter
from nanozoo_hnet.boundaries import Counts
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.model import HNet

SMALL = chunking.SMALL | {"window_size": -1}
TWO_STAGES = chunking.TWO_STAGES | {"window_size": -1}
ADAPTER = HNetAdapter(HNetConfig, HNet)
STEP = Step(number=0, progress=0.0, seed=0)


def build(settings: dict[str, Any]) -> HNet:
    torch.manual_seed(0)
    model = ADAPTER.build(model_config("hnet", dict(settings)), Bytes())
    assert isinstance(model, HNet)
    return model


def batch_of(tokens: Tensor, documents: Tensor | None = None) -> Batch:
    batch = sources.batch_of(tokens)
    return batch if documents is None else replace(batch, documents=documents)


# -- loss ---------------------------------------------------------------------------------------


def test_training_loss_is_cross_entropy_and_ratio_losses() -> None:
    model, batch = build(TWO_STAGES), batch_of(text(3, 65))
    loss = ADAPTER.training_loss(model, batch, STEP)
    metrics = {key: float(value) for key, value in loss.metrics.items()}
    penalty = metrics["stage0_ratio_loss"] + metrics["stage1_ratio_loss"]
    assert float(loss.value.detach()) == pytest.approx(metrics["nll"] + 0.03 * penalty, rel=1e-6)
    nll = ADAPTER.nll(model, batch, Draw(0))
    assert float(nll.nats.detach().sum()) / nll.num_tokens == pytest.approx(
        metrics["nll"], rel=1e-6
    )
    share0, share1 = metrics["stage0_chunk_fraction"], metrics["stage1_chunk_fraction"]
    assert metrics["bytes_per_chunk"] == pytest.approx(1 / (share0 * share1), rel=1e-5)
    assert all(not value.requires_grad for value in loss.metrics.values())


@pytest.mark.parametrize("chunking", ["fixed", "space"])
def test_static_chunkings_have_no_ratio_loss(chunking: str) -> None:
    model, batch = build(SMALL | {"chunking": chunking}), batch_of(text(2, 61))
    loss = ADAPTER.training_loss(model, batch, STEP)
    assert float(loss.value.detach()) == float(loss.metrics["nll"])
    if chunking == "fixed":
        assert float(loss.metrics["bytes_per_chunk"]) == pytest.approx(6)


def test_share_of_chunks_behind_whitespace() -> None:
    model = build(SMALL | {"chunking": "fixed", "target_ratio": 2})
    tokens = torch.tensor([[*b"ab cd\nef g", 0]])  # starts at a, " ", d, e, " ": e follows \n
    loss = ADAPTER.training_loss(model, batch_of(tokens), STEP)
    assert float(loss.metrics["starts_after_whitespace"]) == pytest.approx(1 / 4)


def test_a_batch_in_one_part_has_the_totals_of_its_own_chunks() -> None:
    model = build(TWO_STAGES | {"reset_at_documents": True, "ratio_loss_coef": 1.0})
    batch = sources.short_documents(text(4, 61))
    totals = ADAPTER.batch_totals(perturb(model, 0.02), batch, STEP)
    given = ADAPTER.training_loss(model, batch, replace(STEP, totals=totals)).value
    torch.testing.assert_close(given, ADAPTER.training_loss(model, batch, STEP).value)


def test_a_document_is_scored_as_if_alone() -> None:
    model = build(SMALL | {"reset_at_documents": True})
    perturb(model, 0.02)
    assert_document_is_scored_as_if_alone(ADAPTER, model, text(2, 61), cut=20)


def test_score_keeps_documents_apart_when_asked() -> None:
    tokens = text(2, 61)
    documents = (torch.arange(61) >= 20).int().expand(2, -1)
    scores = {}
    for reset in (False, True):
        model = build(SMALL | {"reset_at_documents": reset}).eval()
        other = tokens.clone()
        other[:, :15] = 101
        scores[reset] = [
            float(ADAPTER.nll(model, batch_of(x, documents), Draw(0)).nats.detach().sum())
            for x in (tokens, other)
        ]
        features = [model.encode(x, documents)[0][:, 20:] for x in (tokens, other)]
        same = bool((features[0] - features[1]).abs().max() < 1e-5)
        assert same == reset
    assert scores[True] != scores[False]


# -- optimiser ----------------------------------------------------------------------------------


def groups_by_name(model: HNet, optim: OptimConfig) -> dict[str, ParameterGroup]:
    groups = ADAPTER.optimizer_groups(model, optim)
    found = {name: group for group in groups for name in group.names}
    assert len(found) == len(list(model.parameters()))
    return found


def test_adamw_multiplies_rates_by_stage() -> None:
    model = build(TWO_STAGES)
    groups = groups_by_name(model, from_defaults(OptimConfig, name="adamw"))
    expected = model.config.stage_lr_multipliers()
    for name, stage in model.parameter_stages().items():
        assert groups[name].lr_mult == expected[stage]
    assert groups["embedding.weight"].lr_mult == groups["head.weight"].lr_mult == expected[0]
    assert groups["stage.inner.widen.vector"].lr_mult == expected[1]
    assert groups["stage.inner.inner.widen.vector"].lr_mult == expected[2]
    assert groups["stage.chunker.query.weight"].lr_mult == expected[0]


def test_muon_takes_matrices_of_blocks_and_ignores_width() -> None:
    with torch.device("meta"):
        model = build({"preset": "hnet_2stage", "ssm_cfg": {"head_dim": 32}})  # of 24 heads
    groups = groups_by_name(model, from_defaults(OptimConfig, name="muon"))
    stages = model.parameter_stages()
    muon = {name for name, group in groups.items() if group.optimizer == "muon"}
    assert {name.split(".")[-2] for name in muon} == {
        "in_proj",
        "out_proj",
        "qkv",
        "gate_up",
        "down",
    }
    by_batch = model.config.stage_lr_multipliers(by_width=False)
    assert all(groups[name].lr_mult == by_batch[stages[name]] for name in muon)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_does_not_decay(optimizer: Any) -> None:
    """At a width at which Muon would take the step sizes of the scan: 32 heads of 64 channels."""
    wide = {"model_dim": [1024, 1536], "num_heads": [16, 16], "ssm_cfg": {"head_dim": 64}}
    with torch.device("meta"):
        model = build(SMALL | wide)
    groups = groups_by_name(model, from_defaults(OptimConfig, name=optimizer, weight_decay=0.1))
    free = ("norm", "bias", "embedding", "A_log", "skip", "vector", "chunker", "conv", "dt_proj")
    for name, group in groups.items():
        is_free = any(part in name for part in free)
        if is_free:
            assert (group.optimizer, group.weight_decay) == ("adamw", 0.0), name
        elif group.optimizer == "adamw":
            assert group.weight_decay == 0.1, name
    residual = groups["stage.residual.weight"]
    assert (residual.optimizer, residual.weight_decay) == ("adamw", 0.1)


def test_rates_keep_their_multiple_through_the_schedule() -> None:
    model, optim = build(SMALL), from_defaults(OptimConfig, name="adamw", lr=1e-3, warmup=0.1)
    groups = ADAPTER.optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=100, device=torch.device("cpu"))
    names = {id(p): name for name, p in model.named_parameters()}
    stages, factors = model.parameter_stages(), model.config.stage_lr_multipliers()
    for number in (0, 50, 99):
        optimizers.set_schedule(number, number / 100)
        bases = {
            group["lr"] / factors[stages[names[id(p)]]]
            for optimizer in optimizers.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        assert max(bases) == pytest.approx(min(bases), rel=1e-9)
        assert number != 50 or max(bases) == pytest.approx(1e-3)


# -- decoding and display -----------------------------------------------------------------------


def test_prefill_returns_the_logits_after_each_prompt() -> None:
    model, tokens = build(SMALL).eval(), text(3, 30)
    lengths = torch.tensor([30, 7, 1])
    cache = ADAPTER.init_cache(model, 3, 40)
    with torch.no_grad():
        found = ADAPTER.prefill(model, tokens, lengths, cache)
        expected = model(tokens)[torch.arange(3), lengths - 1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert cache.lengths.tolist() == [30, 7, 1]


def test_sample_shows_where_chunks_start() -> None:
    model = build(SMALL | {"chunking": "space"})
    assert ADAPTER.show_sample(model, Bytes(), "im port, os") == "im| port|, os"


def test_sample_shows_nested_chunks() -> None:
    model = build(TWO_STAGES | {"chunking": "fixed", "target_ratio": [2, 2]})
    # Positions count from the separator in front: 0 2 4 6 start chunks, 0 4 start chunks of chunks.
    assert ADAPTER.show_sample(model, Bytes(), "abcdefg") == "a|bc||de|fg"


def test_inspection_measures_the_chunks() -> None:
    model = build(SMALL | {"chunking": "space"})
    tokens = torch.tensor([[256, *b"im port, os a", 0]])
    found = ADAPTER.inspect(model, [batch_of(tokens)], Bytes())
    assert found is not None
    # Chunks start at the separator and behind "im", "port" and "os": 3, 5 and 4 long, one cut off.
    assert found.metrics["stage0_mean_length"] == pytest.approx(4)
    assert found.metrics["starts_behind_letter"] == pytest.approx(3 / 8)
    assert found.metrics["starts_behind_punctuation"] == 0
    assert found.metrics["starts_behind_space"] == 0
    assert "starts_behind_digit" not in found.metrics
    (curves,) = found.pictures
    assert dict(curves.series["stage 0"])[3.0] == pytest.approx(1 / 3)  # type: ignore[union-attr]


def test_inspection_of_nested_chunks_counts_in_chunks() -> None:
    model = build(TWO_STAGES | {"chunking": "fixed", "target_ratio": [3, 2]})
    found = ADAPTER.inspect(model, [batch_of(text(2, 61))], Bytes())
    assert found is not None
    assert found.metrics["stage0_mean_length"] == 3
    assert found.metrics["stage1_mean_length"] == 2


PROSE = b"im port, os  a and then, some more words of it 42 caf\xc3\xa9 ends"


def agreement(changes: dict[str, Any]) -> dict[str, float]:
    model = build(changes)
    tokens = torch.tensor([[256, *PROSE, 0], [256, *reversed(PROSE), 0]])
    found = ADAPTER.inspect(model, [batch_of(tokens)], Bytes())
    assert found is not None
    return dict(found.metrics)


def starts_of_words(text: Sequence[int]) -> dict[str, set[int]]:
    """By the letters themselves, of what stands behind the separator, whose place is 0."""
    spaces = [not chr(b).isalnum() if b < 128 else not 0x80 <= b < 0xC0 for b in text]
    kinds: dict[str, set[int]] = {"spaces": set(), "words": set()}
    for place, (before, here) in enumerate(pairwise([True, *spaces]), start=1):
        if here != before:
            kinds["spaces" if here else "words"].add(place)
    return kinds | {"either": kinds["spaces"] | kinds["words"]}


def test_chunks_at_spaces_agree_with_them() -> None:
    """And with words within a byte, as almost every space is one byte long."""
    found = agreement(SMALL | {"chunking": "space"})
    assert found["stage0_spaces_f1"] == found["stage0_spaces_precision"] == 1
    assert found["stage0_words_f1"] == 0
    assert found["stage0_either_precision"] == 1
    assert 0.45 < found["stage0_either_recall"] < 0.55
    assert 0.7 < found["stage0_words_f1_within_one"] < 1


@pytest.mark.parametrize("changes", [
    SMALL | {"chunking": "fixed", "target_ratio": 3},
    TWO_STAGES | {"chunking": "fixed", "target_ratio": [3, 2]},
], ids=["one stage", "two stages"])  # fmt: skip
def test_chunks_of_a_fixed_length_agree_as_counted(changes: dict[str, Any]) -> None:
    found = agreement(changes)
    for stage, stride in enumerate((3, 6)[: len(build(changes).config.ratios)]):
        hits, near, drawn, true = (dict.fromkeys(("spaces", "words", "either"), 0) for _ in "1234")
        for prose in (PROSE, bytes(reversed(PROSE))):
            own = set(range(stride, len(prose) + 1, stride))
            for kind, places in starts_of_words(prose).items():
                hits[kind] += len(own & places)
                left = sorted(places)
                for place in sorted(own):
                    while left and left[0] < place - 1:
                        left.pop(0)
                    if left and left[0] <= place + 1:
                        left.pop(0)
                        near[kind] += 1
                drawn[kind] += len(own)
                true[kind] += len(places)
        for kind in hits:
            name = f"stage{stage}_{kind}"
            assert found[f"{name}_precision"] == pytest.approx(hits[kind] / drawn[kind])
            assert found[f"{name}_recall"] == pytest.approx(hits[kind] / true[kind])
            total = drawn[kind] + true[kind]
            assert found[f"{name}_f1"] == pytest.approx(2 * hits[kind] / total)
            assert found[f"{name}_f1_within_one"] == pytest.approx(2 * near[kind] / total)
            p, r = true[kind] / (2 * len(PROSE)), drawn[kind] / (2 * len(PROSE))
            assert found[f"{name}_f1_by_chance"] == pytest.approx(2 * p * r / (p + r))
            assert found[f"stage{stage}_starts_per_byte"] == pytest.approx(r)


@pytest.mark.parametrize(
    ("found", "expected", "pairs"),
    [((4, 5, 6), (5,), 1), ((1, 2), (2, 3), 2), ((3,), (5,), 0), ((6, 7), (5, 6, 7, 9), 2)],
)
def test_a_start_makes_one_pair_at_most(
    found: Sequence[int], expected: Sequence[int], pairs: int
) -> None:
    row = torch.arange(12)[None]
    counts = Counts()
    counts.add(
        torch.isin(row, torch.tensor(found)),
        torch.isin(row, torch.tensor(expected)),
        torch.ones_like(row).bool(),
    )
    assert counts.near == pairs


# -- accounting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "ratios"),
    [(["t1", ["T1"], "T1"], [4]), (["t1", ["T1", ["T2"], "t1"], "T1"], [4, 2])],
    ids=["one stage", "two stages"],
)
def test_flops_are_those_that_torch_counts(layout: list[Any], ratios: list[float]) -> None:
    """In attention layers: torch does not see all of the scan."""
    sizes = {"arch_layout": layout, "mlp_dim": 64, "model_dim": [32, 48, 64][: len(ratios) + 1]}
    heads = {"num_heads": 2, "rotary_emb_dim": 8}
    chunks = {"chunking": "fixed", "target_ratio": ratios}
    model = build(SMALL | sizes | heads | chunks)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(text(2, 128))
    expected = ADAPTER.flops_per_token(model.config, 128) / 3
    assert counter.get_total_flops() / (2 * 128) == pytest.approx(expected, rel=1e-6)


def test_attention_costs_its_window_and_its_own_position() -> None:
    attention = build(SMALL | {"window_size": [-1, 5]}).stage.inner.network.blocks[0].mixer
    lengths = torch.tensor([4.0, 100.0])
    assert attention.flops(lengths).tolist() == [4 * 48 * 4, 4 * 48 * 6]


def test_measured_flops_follow_the_chunks() -> None:
    model, batch = build(SMALL | {"chunking": "fixed", "target_ratio": 4}), batch_of(text(2, 129))
    metrics = ADAPTER.training_loss(model, batch, STEP).metrics
    expected = ADAPTER.flops_per_token(model.config, 128)
    assert float(metrics["flops_per_token"]) == pytest.approx(expected, rel=1e-5)


def test_small_model_costs_about_75_million_flops_per_byte() -> None:
    config = model_config("hnet", {"preset": "hnet_small", "vocab_size": 258, "target_ratio": 5})
    assert ADAPTER.flops_per_token(config, 1024) / 3 == pytest.approx(75e6, rel=0.1)


def test_another_width_is_legal_where_one_number_stands_for_all_stages() -> None:
    config = model_config("hnet", {"model_dim": 96, "mlp_dim": 256, "num_heads": 4})
    wider = replace(config, **ADAPTER.at_width(config, 2.0))
    assert (wider.model_dim, wider.mlp_dim) == ([192, 192], [512, 512])


def test_a_narrower_stage_has_heads_that_divide_it() -> None:
    """Widths go by what the state spaces need, and heads follow where they must."""
    config = model_config("hnet", {"vocab_size": 258})
    assert ADAPTER.at_width(config, 1.0) == {
        "model_dim": [96, 128], "mlp_dim": [0, 352], "num_heads": [3, 4]}  # fmt: skip
    for factor in (0.34, 0.4, 0.5, 0.65, 0.8, 1.3):
        changes = ADAPTER.at_width(config, factor)
        narrow = replace(config, **changes)  # which is legal
        for width, own in zip(narrow.model_dim, (96, 128), strict=True):
            assert width % 16 == 0
            assert width == pytest.approx(factor * own, abs=8)
    assert ADAPTER.at_width(config, 0.4)["num_heads"] == [2, 3]


def test_report_counts_stages_and_caches() -> None:
    model = build(SMALL)
    report = ADAPTER.report(model)
    assert report["params"] == report["params_stage0"] + report["params_stage1"]
    assert report["params_non_embedding"] == report["params"] - 258 * 32
    assert report["cache_bytes_per_token"] == pytest.approx(2 * 2 * 48 * 4 / 6)  # two T layers
    conv, state = (64 + 16) * 3, 64 * 8
    assert report["state_bytes"] == 2 * 4 * (conv + state)


# -- learning -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_source_of_known_entropy_is_learned_with_chunks_near_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    transitions = torch.rand(27, 27, generator=generator).pow(6)
    transitions[:, 26] += 0.5 * transitions.sum(1)  # the last symbol is a frequent space
    transitions /= transitions.sum(1, keepdim=True)
    stationary = torch.linalg.matrix_power(transitions, 200)[0]
    entropy = -float((stationary[:, None] * transitions * transitions.log()).sum()) / math.log(2)
    symbols = torch.tensor([*range(97, 123), 32])

    def sample(rows: int, length: int) -> Tensor:
        state = torch.multinomial(stationary, rows, replacement=True, generator=generator)
        states = [state]
        for _ in range(length - 1):
            state = torch.multinomial(transitions[state], 1, generator=generator)[:, 0]
            states.append(state)
        return symbols[torch.stack(states, dim=1)]

    model = build({"vocab_size": 258})
    optim = from_defaults(OptimConfig, name="adamw", lr=2e-3)
    groups = ADAPTER.optimizer_groups(model, optim)
    optimizers = build_optimizers(groups, optim, total_steps=300, device=torch.device("cpu"))
    shares = []
    for number in range(300):
        optimizers.set_schedule(number, number / 300)
        loss = ADAPTER.training_loss(model, batch_of(sample(8, 257)), STEP)
        loss.value.backward()
        optimizers.clip(1.0)
        optimizers.step()
        optimizers.zero_grad()
        shares.append(float(loss.metrics["stage0_chunk_fraction"]))
    model.eval()
    with torch.no_grad():
        nll = ADAPTER.nll(model, batch_of(sample(64, 257)), Draw(0))
    bits = float(nll.nats.sum()) / nll.num_tokens / math.log(2)
    assert entropy - 0.05 < bits < entropy + 0.05
    assert 0.1 <= sum(shares[-20:]) / 20 <= 0.35
