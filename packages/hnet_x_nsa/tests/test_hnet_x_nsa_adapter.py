from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.config import OptimConfig, TrainingConfig, from_defaults, model_config
from nanozoo_core.contract import Step
from nanozoo_core.testing import ToyVocabulary, chunking
from nanozoo_core.testing.chunking import Bytes
from nanozoo_core.testing.sources import batch_of
from nanozoo_hnet_x_nsa.adapter import HNetXNSAAdapter, keys_of
from nanozoo_hnet_x_nsa.config import HNetXNSAConfig
from nanozoo_hnet_x_nsa.model import HNetXNSA
from nanozoo_hnet_x_nsa.reads import blocks_read, show
from nanozoo_nsa.mixer import NSAMixer

pytestmark = pytest.mark.filterwarnings("ignore:stage . has about", "ignore:.*this is hnet")

SMALL: dict[str, Any] = chunking.SMALL | {
    "window_size": -1,
    "nsa_cfg": {"num_selected_blocks": 2, "sliding_window_size": 4},
}
ADAPTER = HNetXNSAAdapter(HNetXNSAConfig, HNetXNSA)


def build(**settings: Any) -> HNetXNSA:
    torch.manual_seed(0)
    return HNetXNSA(model_config("hnet_x_nsa", SMALL | settings))


def tokens(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(97, 123, (batch, length), generator=generator)


# -- optimiser ------------------------------------------------------------------------------------


def test_gates_and_positions_are_adamws_without_decay() -> None:
    """At sizes at which Muon would take them: 36 gates, blocks of 32 positions, 17 pooled ones."""
    ways = {"chunk_pool": "mlp", "pool_window": 17, "chunking": "fixed", "unpool": "mlp"}
    sizes = {"preset": "hnet_x_nsa_2stage", "vocab_size": 258, "seq_len": 32768}
    with torch.device("meta"):
        model = HNetXNSA(model_config("hnet_x_nsa", sizes | ways | {"ssm_cfg": {"head_dim": 32}}))
    optim = from_defaults(OptimConfig, name="muon", weight_decay=0.1)
    found = {name: g for g in ADAPTER.optimizer_groups(model, optim) for name in g.names}
    assert len(found) == len(list(model.parameters()))
    gates = ("gate_weight", "gate_bias")
    free = [name for name in found if name.endswith((*gates, "positions", "dt_proj.weight"))]
    assert len(free) == 12 * 4 + 12 + 2  # mixers with two compressors; scans; two of pooling
    assert all((found[n].optimizer, found[n].weight_decay) == ("adamw", 0.0) for n in free)
    assert all(found[f"{s}.residual.weight"].weight_decay == 0.1 for s in ("stage", "stage.inner"))
    matrices = ("pooling.up", "pooling.down", "unpooling.up", "unpooling.down", "qkv", "out_proj")
    muon = {name for name, group in found.items() if group.optimizer == "muon"}
    assert {n for n in found if n.endswith(tuple(f"{m}.weight" for m in matrices))} <= muon


def test_pooling_learns_at_the_rate_of_its_stage() -> None:
    model = build(chunk_pool="mlp")
    groups = ADAPTER.optimizer_groups(model, from_defaults(OptimConfig, name="adamw"))
    factors = {name: group.lr_mult for group in groups for name in group.names}
    outer, inner = model.config.stage_lr_multipliers()
    assert factors["stage.pooling.up.weight"] == outer
    assert factors["stage.inner.network.blocks.0.mixer.gate_weight"] == inner


# -- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "lengths"), [(None, [2048]), (512, [512, 2048])])
def test_a_curriculum_reads_long_windows_at_the_end(warmup: int | None, lengths: list[int]) -> None:
    training = from_defaults(
        TrainingConfig,
        model="hnet_x_nsa",
        model_cfg={},
        data={"seq_len": 2048},
        train={"batch_tokens": 8192},
    )
    plan = ADAPTER.data_plan(model_config("hnet_x_nsa", {"ctx_warmup": warmup}), training)
    assert [stage.seq_len for stage in plan.stages] == lengths
    assert [stage.progress for stage in plan.stages] == [0.0, 0.8][: len(lengths)]
    assert {stage.batch_tokens for stage in plan.stages} == {8192}


# -- accounting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [{}, {"chunk_pool": "mlp", "unpool": "mlp"}])
def test_pooling_counts_once_per_chunk(ways: dict[str, str]) -> None:
    """In attention layers: torch does not see all of a scan, nor of sparse attention."""
    layers = {"arch_layout": ["t1", ["T1"], "T1"], "mlp_dim": 64}
    model = build(**layers, chunking="fixed", target_ratio=4, **ways)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(2, 128))
    expected = ADAPTER.flops_per_token(model.config, 128) / 3
    assert counter.get_total_flops() / (2 * 128) == pytest.approx(expected, rel=1e-6)


def test_keys_read_are_those_of_the_mixer() -> None:
    changes = {
        "model_dim": 32,
        "num_heads": 2,
        "compress_block_size": 6,
        "compress_stride": 3,
        "selection_block_size": 9,
        "num_selected_blocks": 3,
        "sliding_window_size": 5,
        "local_blocks": 1,
    }
    config = model_config("nsa", changes)
    mixer, places = NSAMixer(config), torch.arange(70)
    _, reads = mixer.mix(torch.randn(1, 70, 32))
    blocks = mixer.blocks(reads.chosen)[0, 0]  # (L, n)
    for t, found in enumerate(keys_of(places, config.grid, 5).tolist()):
        taken = [b for b in blocks[t].tolist() if b >= 0]
        selected = sum(min(9 * b + 9, t + 1) - 9 * b for b in taken)
        complete = sum(3 * i + 6 <= t + 1 for i in range(70))
        assert found == selected + complete + min(t + 1, 5)


def test_a_long_text_costs_less_memory_than_with_full_attention() -> None:
    heads = {"num_heads": [2, 4], "model_dim": [32, 64], "num_kv_heads": 1}
    sparse = ADAPTER.report(build(**heads))
    dense = ADAPTER.report(build(**heads, arch_layout=["m1", ["T2"], "m1"]))
    # Selected and, every second chunk, compressed keys of one head beside those of all four.
    ratio = sparse["cache_bytes_per_token"] / dense["cache_bytes_per_token"]
    assert ratio == pytest.approx(1.5 / 4, rel=1e-2)


# -- inspection -----------------------------------------------------------------------------------


def test_inspection_has_the_score_by_stretch_gates_and_keys() -> None:
    model = build(chunking="fixed", target_ratio=4).eval()
    batch = batch_of(tokens(2, 1301))
    found = ADAPTER.inspect(model, [batch], ToyVocabulary(258)).metrics
    with torch.no_grad():
        scores = model(batch.inputs).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    bits = -scores.double() / math.log(2)
    assert found["bits_0_1024"] == pytest.approx(float(bits[:, :1024].mean()), rel=1e-5)
    assert found["bits_1024_4096"] == pytest.approx(float(bits[:, 1024:].mean()), rel=1e-5)
    assert found["stage1_main_1_gate_window"] == pytest.approx(0.5)
    chunks, grid = 325, model.config.nsa(1).grid
    keys = keys_of(torch.arange(chunks), grid, 4)
    assert found["keys_per_byte"] == pytest.approx(2 * float(keys.sum()) / 1300)
    assert found["full_keys_per_byte"] == pytest.approx(chunks * (chunks + 1) / 1300)
    counted = (batch.inputs < 256) & (torch.arange(1300) > 0)
    starts = (torch.arange(1300) % 4 == 0) & counted
    assert found["stage0_starts_per_byte"] == pytest.approx(float(starts.sum() / counted.sum()))
    assert all(mixer.watcher is None for mixer in model.mixers().values())


# -- long sequences and learning ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chunking", ["dynamic", "fixed"])
def test_a_step_of_the_tiny_model_at_16384_bytes(chunking: str) -> None:
    torch.manual_seed(0)
    config = {"vocab_size": 258, "seq_len": 16384, "chunking": chunking}
    model = HNetXNSA(model_config("hnet_x_nsa", config))
    loss = ADAPTER.training_loss(model, batch_of(tokens(1, 16385)), Step(0, 0.0, 0)).value
    loss.backward()
    assert math.log(258) - 0.1 < float(loss.detach()) < math.log(258) + 0.2
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in gradients)


# -- what is read, shown --------------------------------------------------------------------------


def test_the_bytes_read_are_those_of_the_chosen_blocks() -> None:
    """Groups of four bytes, blocks of four groups: the first, the own, and one that is chosen."""
    sizes = {"num_selected_blocks": 3, "selection_block_size": [16, 4], "init_blocks": 1}
    model = build(chunking="fixed", target_ratio=4, nsa_cfg=SMALL["nsa_cfg"] | sizes).eval()
    for heads in blocks_read(model, tokens(1, 130)[0], place=100).values():
        (places,) = heads
        assert set(range(16)) <= set(places)  # the first block
        assert set(range(96, 104)) <= set(places)  # the own: groups 24 and 25 of it
        assert max(places) == 103
        assert len(places) == 16 + 16 + 8


def test_the_page_of_a_text_has_its_chunks_and_reads() -> None:
    model = build(chunking="fixed", target_ratio=4).eval()
    shown = show(model, Bytes(), "a|bcd", list(b"abcdefgh"), 7)
    assert shown.splitlines() == [
        "a|bcd",
        "",
        "byte 7, 'h', reads:",
        "stage1_main_0, key head 0: abcdefgh",
        "stage1_main_1, key head 0: abcdefgh",
    ]
