from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Batch, Draw
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing import ToyVocabulary
from nanozoo_core.testing.sources import batch_of
from nanozoo_megabyte.adapter import MegabyteAdapter
from nanozoo_megabyte.config import MegabyteConfig
from nanozoo_megabyte.model import Megabyte

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "seq_len": 32,
    "patch_size": 4,
    "global_byte_dim": 16,
    "num_global_layers": 1,
    "num_global_heads": 2,
    "local_dim": 32,
    "num_local_layers": 1,
    "num_local_heads": 2,
}
ADAPTER = MegabyteAdapter(MegabyteConfig, Megabyte)


def build(**settings: Any) -> Megabyte:
    torch.manual_seed(0)
    model = Megabyte(model_config("megabyte", SMALL | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def windows(length: int, vocab_size: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return batch_of(torch.randint(vocab_size, (3, length + 1), generator=generator))


@torch.no_grad()
def nats(model: Megabyte, batch: Batch) -> torch.Tensor:
    return ADAPTER.nll(model, batch, Draw(0)).nats


# -- strided scores -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 23, 24])
def test_a_strided_score_takes_each_token_once_from_the_first_half_of_a_patch(
    size: int, length: int
) -> None:
    model = build(patch_size=size, seq_len=24, eval_strided=True)
    batch, half = windows(length), -(-size // 2)
    tokens, targets = batch.inputs, batch.targets
    expected = torch.zeros(3, dtype=torch.float64)
    for t in range(length):
        start = half if t % size >= half else 0
        assert (t - start) % size < half
        with torch.no_grad():
            logits = model(tokens[:, start : t + 1])[:, -1]
        expected -= logits.double().log_softmax(-1)[torch.arange(3), targets[:, t]]
    torch.testing.assert_close(nats(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_strided_probabilities_of_all_texts_sum_to_one() -> None:
    model = build(vocab_size=5, eval_strided=True)
    texts = torch.tensor([(1, *text) for text in itertools.product(range(5), repeat=5)])
    assert float((-nats(model, batch_of(texts))).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_strided_score_keeps_to_the_scored_tokens() -> None:
    model, batch = build(eval_strided=True), windows(23)
    masks = [torch.arange(23).expand(3, -1) % 3 == rest for rest in range(3)]
    parts = [nats(model, replace(batch, scored=mask)) for mask in masks]
    torch.testing.assert_close(sum(parts), nats(model, batch), rtol=1e-6, atol=1e-6)


def test_striding_changes_the_score_alone() -> None:
    plain, strided, batch = build(), build(eval_strided=True), windows(32)
    assert (nats(plain, batch) - nats(strided, batch)).abs().min() > 1e-3
    torch.testing.assert_close(plain(batch.inputs), strided(batch.inputs), rtol=0, atol=0)


# -- optimiser ------------------------------------------------------------------------------------


def test_matrices_are_muons_and_tables_do_not_decay() -> None:
    model = build(patch_conv=True, global_byte_dim=32)
    groups = ADAPTER.optimizer_groups(model, from_defaults(OptimConfig, weight_decay=0.1))
    found = {name: group for group in groups for name in group.names}
    muon = {name for name, group in found.items() if group.optimizer == "muon"}
    products = ("global_model.", "local_model.", "convolutions.", "to_local.")
    assert muon == {name for name in found if name.startswith(products)}
    decayed = {name for name, group in found.items() if group.weight_decay > 0}
    assert decayed - muon == {"head.weight"}


def test_each_model_has_its_multiple_of_the_rates() -> None:
    model = build(lr_multipliers=[2.0, 0.5], patch_conv=True)
    groups = ADAPTER.optimizer_groups(model, from_defaults(OptimConfig))
    factors = {name: group.lr_mult for group in groups for name in group.names}
    local = {name for name, factor in factors.items() if factor == 2.0}
    assert {name.split(".")[0] for name in local} == {
        "to_local", "local_embedding", "local_pad", "local_model", "head",
    }  # fmt: skip
    assert {factors[name] for name in factors.keys() - local} == {0.5}


# -- accounting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"cross_patch": 3}, {"tie_embeddings": True, "patch_conv": True}]
)
def test_flops_are_those_that_torch_counts(settings: dict[str, Any]) -> None:
    model, tokens = build(**settings), windows(32).inputs
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    found = ADAPTER.flops_per_token(model.config, 32) / 3
    if model.convolutions is not None:  # the last patch is not read, but its past is padded
        found -= 2 * 16**2 * 15 * 4 / 32
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(found, rel=1e-6)


def test_the_small_preset_costs_about_46_million_flops_per_byte() -> None:
    config = model_config("megabyte", {"preset": "megabyte_small", "seq_len": 8192})
    stacks = 2 * (4 * 12 * 512**2 + 12 * 12 * 768**2 / 8)
    assert stacks == pytest.approx(46e6, rel=0.02)
    beside = ADAPTER.flops_per_token(config, 8192) / 3 - stacks
    attention = 4 * (4 * 512 * 8 + 12 * 768 * 1024 / 8)
    assert beside == pytest.approx(attention + 2 * 512 * (258 + 96), rel=1e-6)


@pytest.mark.parametrize(("preset", "million"), [("megabyte_small", 98.7), ("megabyte_seed", 95.2)])
def test_presets_have_the_sizes_stated(preset: Any, million: float) -> None:
    with torch.device("meta"):
        model = Megabyte(model_config("megabyte", {"preset": preset, "seq_len": 8192}))
    report = ADAPTER.report(model)
    assert report["params"] == pytest.approx(million * 1e6, rel=1e-3)
    assert report["params"] == report["params_global"] + report["params_local"]


@pytest.mark.parametrize(
    ("preset", "global_layers", "local_layers", "total"),
    [("megabyte_1b", 14, 18, 934_092_288), ("megabyte_1.5b", 24, 15, 1_399_660_032)],
)
def test_the_papers_sizes_have_their_layers_and_widths(
    preset: str, global_layers: int, local_layers: int, total: int
) -> None:
    """Tables 13 to 15: a global width of 2048 and a local one of 1024, heads of 64, patches of 8,
    windows of 8192 bytes."""
    config = model_config("megabyte", {"preset": preset, "seq_len": 8192})
    assert config.global_dim // config.size("num_global_heads") == 64
    assert config.size("local_dim") // config.size("num_local_heads") == 64
    with torch.device("meta"):
        report = ADAPTER.report(Megabyte(config))
    stacks = 12 * (global_layers * 2048**2 + local_layers * 1024**2)
    tables = 258 * (256 + 2 * 1024) + 8192 * 256
    between = 256 * 1024 + 2048 + 1024  # W_GL, and the vectors before the first patch and byte
    assert report["params"] == total == stacks + tables + between


def test_another_width_is_legal_and_about_as_asked() -> None:
    config = model_config("megabyte", SMALL | {"pos_emb": "rope"})
    for factor in (0.4, 1.3, 2.0):
        wider = replace(config, **ADAPTER.at_width(config, factor))
        assert wider.size("local_dim") == pytest.approx(32 * factor, abs=2)
        assert wider.size("global_byte_dim") == pytest.approx(16 * factor, abs=1)


def test_another_depth_keeps_the_ratio_of_the_two_models() -> None:
    config = model_config("megabyte", {"vocab_size": 258})
    assert (config.size("num_global_layers"), config.size("num_local_layers")) == (3, 2)
    for num_layers, local in ((1, 1), (2, 1), (3, 2), (6, 4)):
        deeper = replace(config, **ADAPTER.at_depth(config, num_layers))
        assert deeper.size("num_global_layers") == num_layers
        assert deeper.size("num_local_layers") == local


# -- inspection -----------------------------------------------------------------------------------


def test_inspection_has_the_loss_at_each_place_of_a_patch() -> None:
    model, batch = build(), windows(30)
    found = ADAPTER.inspect(model, [batch, batch], ToyVocabulary(20))
    (curve,) = found.pictures
    (points,) = curve.series.values()  # type: ignore[union-attr]
    with torch.no_grad():
        scores = model(batch.inputs).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    for place, bits in points:
        expected = -float(scores[:, int(place) :: 4].mean()) / math.log(2)
        assert bits == pytest.approx(expected, rel=1e-5)
    assert found.metrics["bits_last_in_patch"] == points[3][1]


def test_a_kernel_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = build(local_backend="triton")  # always made on the CPU, then moved
    with pytest.raises(ConfigError, match=r"local_backend=triton needs a GPU"):
        ADAPTER.prepare_model(model, [])
