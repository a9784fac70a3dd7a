"""The mixer against its equations, its limits, and what its positions may see."""

from __future__ import annotations

from typing import Any

import nsa_equations
import pytest
import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.nn.control import ControlAttention
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_nsa.mixer import NSAMixer

SMALL: dict[str, Any] = {
    "model_dim": 16,
    "num_heads": 4,
    "sliding_window_size": 5,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 4,
}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "two-kv-heads": {"num_kv_heads": 2},
    "head-each": {"num_kv_heads": 4, "num_heads": 4},
    "shared-kv": {"shared_kv": True},
    "no-positions": {"cmp_rope": "none"},
    "turned-before": {"cmp_rope": "post"},
    "linear": {"compress_mode": "linear"},
    "mean": {"compress_mode": "mean", "qk_norm": False},
    "bare-mlp": {"compress_residual_mean": False},
    "equal-blocks": {"compress_stride": 4, "init_blocks": 0, "local_blocks": 1},
    "long-blocks": {"selection_block_size": 12, "local_blocks": 1, "num_selected_blocks": 3},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def build(dtype: torch.dtype = torch.float64, **settings: Any) -> NSAMixer:
    torch.manual_seed(0)
    mixer = NSAMixer(model_config("nsa", SMALL | settings)).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer


def stream(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, 16, generator=generator, dtype=dtype)


@ways
@torch.no_grad()
def test_the_mixer_is_its_equations(way: dict[str, Any]) -> None:
    mixer, x = build(**way), stream(47)
    y, routing = mixer.mix(x)
    weights = dict(mixer.named_parameters())
    expected, reads = zip(
        *(nsa_equations.mix(weights, mixer.config, row) for row in x), strict=True
    )
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-9, atol=1e-9)
    for b, rows in enumerate(mixer.blocks(routing.chosen).tolist()):
        for kv, positions in enumerate(rows):
            for t, blocks in enumerate(positions):
                found = [block for block in blocks if block >= 0]
                assert len(found) == len(set(found))
                assert set(found) == reads[b][kv][t]


@ways
def test_both_forms_of_selection_have_the_same_gradients(way: dict[str, Any]) -> None:
    found = {}
    for impl in ("gather", "dense_mask"):
        mixer, x = build(nsa_impl=impl, **way), stream(47).requires_grad_()
        y = mixer(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double())
        found[impl] = [y, x.grad, *(parameter.grad for parameter in mixer.parameters())]
    torch.testing.assert_close(found["gather"], found["dense_mask"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 77])
@ways
@torch.no_grad()
def test_a_prefix_is_read_as_the_start_of_a_longer_text(length: int, way: dict[str, Any]) -> None:
    mixer, x = build(**way), stream(90)
    torch.testing.assert_close(mixer(x[:, :length]), mixer(x)[:, :length], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", ["gather", "dense_mask"])
@torch.no_grad()
def test_a_change_leaves_everything_before_it(impl: str) -> None:
    mixer, x = build(torch.float32, nsa_impl=impl), stream(64, dtype=torch.float32)
    before = mixer(x)
    for place in (1, 30, 63):
        changed = x.clone()
        changed[:, place] += 1
        after = mixer(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3


@pytest.mark.parametrize("impl", ["gather", "dense_mask"])
@pytest.mark.parametrize("branch", ["selected", "window"])
@torch.no_grad()
def test_without_sparsity_it_is_the_controls_attention(impl: str, branch: str) -> None:
    settings = {"num_selected_blocks": 16, "sliding_window_size": 60, "shared_kv": True}
    mixer, x = build(nsa_impl=impl, num_kv_heads=2, **settings), stream(50)
    control = ControlAttention(16, 4, num_kv_heads=2).double()
    control.qkv.weight.copy_(mixer.qkv.weight)
    control.out.weight.copy_(mixer.out_proj.weight)
    mixer.gate_weight.zero_()
    gates = [-1e3, 1e3, -1e3] if branch == "selected" else [-1e3, -1e3, 1e3]
    mixer.gate_bias.copy_(torch.tensor(gates).repeat(4))
    expected = control(x, rotary_angles(torch.arange(50), 4))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_compressed_attention_begins_with_the_first_whole_block() -> None:
    mixer, x = build(compress_block_size=8, selection_block_size=8), stream(20)
    mixer.gate_weight.zero_()
    mixer.gate_bias.copy_(torch.tensor([1e3, -1e3, -1e3]).repeat(4))
    y = mixer(x)
    assert y[:, :7].abs().max() == 0
    assert y[:, 7].abs().min() > 0


@torch.no_grad()
def test_a_block_that_looks_like_the_query_is_read_from_afar() -> None:
    settings = {"cmp_rope": "none", "compress_mode": "mean", "shared_kv": True, "local_blocks": 1}
    mixer = NSAMixer(model_config("nsa", SMALL | settings | {"num_selected_blocks": 3})).double()
    mixer.qkv.weight.zero_()
    mixer.qkv.weight[:16] = torch.eye(16).repeat_interleave(1, 0)
    for head in range(4):  # every query head and the key head read the first 4 channels
        mixer.qkv.weight[4 * head : 4 * head + 4] = torch.eye(16)[:4]
    mixer.qkv.weight[16:20] = torch.eye(16)[:4]
    x = torch.zeros(1, 200, 16, dtype=torch.float64)
    x[..., 0] = -1.0
    needle = slice(84, 88)  # block 21
    x[:, needle, 0] = 1.0
    x[:, 199, 0] = 1.0
    _, routing = mixer.mix(x)
    assert routing.chosen[0, 0, 199].tolist() == [21]
    assert 21 not in routing.chosen[0, 0, 198].tolist()


@torch.no_grad()
def test_heads_of_a_group_share_blocks_that_groups_do_not() -> None:
    mixer = build(num_kv_heads=2)
    _, routing = mixer.mix(stream(90))
    assert routing.chosen.shape == (2, 2, 90, 1)
    assert not torch.equal(routing.chosen[:, 0], routing.chosen[:, 1])


def test_scores_get_no_gradient_from_the_choice() -> None:
    mixer, x = build(), stream(40)
    with torch.no_grad():  # the compressed branch itself is shut
        mixer.gate_weight.zero_()
        mixer.gate_bias.copy_(torch.tensor([-1e3, 0.0, 0.0]).repeat(4))
    mixer(x).sum().backward()
    split = mixer.qkv.weight.grad.split(mixer.split)
    assert split[5].abs().max() == 0  # raw keys
    assert split[1].abs().max() > 0  # selected keys


def test_gates_start_half_open() -> None:
    mixer = NSAMixer(model_config("nsa", SMALL))
    assert (mixer.gates(stream(3, dtype=torch.float32)) == 0.5).all()
    biased = NSAMixer(model_config("nsa", SMALL | {"gate_bias_init": [-2.0, -2.0, 2.0]}))
    expected = torch.tensor([-2.0, -2.0, 2.0]).sigmoid().expand(2, 3, 4, 3)
    torch.testing.assert_close(biased.gates(stream(3, dtype=torch.float32)), expected)


def test_compression_starts_as_the_mean() -> None:
    torch.manual_seed(0)
    mlp = NSAMixer(model_config("nsa", SMALL)).compress_keys
    u = torch.randn(2, 1, 11, 4)
    expected = torch.stack([u[:, :, i : i + 4].mean(2) for i in (0, 2, 4, 6)], dim=2)
    torch.testing.assert_close(mlp(u), expected)


@pytest.mark.parametrize("way", ["default", "two-kv-heads", "turned-before"])
@torch.no_grad()
def test_documents_are_read_alone(way: str) -> None:
    mixer, x = build(**WAYS[way]), stream(60, batch=3)
    documents = torch.zeros(3, 60, dtype=torch.int32)
    documents[0, 17:], documents[0, 18:], documents[1, 1:], documents[2, 50:] = 1, 2, 1, 7
    y, routing = mixer.mix(x, documents=documents)
    for row in range(3):
        for number in documents[row].unique():
            inside = documents[row] == number
            alone, chosen = mixer.mix(x[row : row + 1, inside])
            torch.testing.assert_close(y[row, inside], alone[0], rtol=1e-10, atol=1e-10)
            assert torch.equal(routing.chosen[row][:, inside], chosen.chosen[0])


def test_documents_lead_gradients_back() -> None:
    mixer, x = build(), stream(30).requires_grad_()
    documents = (torch.arange(30) >= 11).int().expand(2, -1)
    y = mixer(x, documents=documents)
    (found,) = torch.autograd.grad(y[:, 11:].square().sum(), x)
    part = x[:, 11:].detach().requires_grad_()
    (expected,) = torch.autograd.grad(mixer(part).square().sum(), part)
    assert found[:, :11].abs().max() == 0
    torch.testing.assert_close(found[:, 11:], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_bfloat16_choices_agree_with_float32() -> None:
    mixer, x = build(torch.float32), stream(200, dtype=torch.float32)
    exact = mixer.mix(x)[1].chosen
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixer.mix(x)[1].chosen
    assert (exact == rounded).float().mean() > 0.9


@pytest.mark.parametrize("length", [1, 10, 300])
def test_flops_count_no_more_keys_than_there_are(length: int) -> None:
    mixer = NSAMixer(model_config("nsa", SMALL))
    # 4 channels of 4 heads, 2 per multiplication, scores and outputs; the rest is weights.
    attention = float(mixer.flops(torch.tensor(float(length))) - mixer.flops(torch.tensor(0.0)))
    keys = min(length, 16) + min(length, 5) + max(0, (length - 4) / 2 + 1)
    assert attention == 4 * 16 * keys
