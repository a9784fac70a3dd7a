import math

import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.nn.control import ControlBlock, ControlModel
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_core.testing.decoding import check_goes_on_from_ragged_rows

VOCAB, DIM, HEADS, LAYERS = 50, 32, 4, 2


def tokens(batch=2, length=20):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(0))


CONFIG = ControlConfig(VOCAB, 64, LAYERS, DIM, HEADS, mlp_ratio=4)


@pytest.fixture(params=[None, 2], ids=["all-heads", "grouped"])
def model(request):
    """A control with random weights everywhere, its zeros included."""
    torch.manual_seed(0)

    def block(_layer: int) -> ControlBlock:
        return ControlBlock(DIM, HEADS, num_kv_heads=request.param)

    model = ControlModel(CONFIG, block=block)
    model.num_kv_heads = request.param or HEADS
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def test_fresh_control_predicts_the_uniform_distribution():
    torch.manual_seed(0)
    model = ControlModel(CONFIG)
    loss = F.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten())
    # Logits have standard deviation 0.001 sqrt(D).
    assert abs(loss.item() - math.log(VOCAB)) < 0.01


def test_input_matrices_have_the_stated_scale():
    torch.manual_seed(0)
    block = ControlBlock(256, 4)
    for weight in (block.attention.qkv.weight, block.mlp.up.weight):
        assert abs(weight.std().item() * math.sqrt(256) - 0.5) < 0.01
    assert not block.attention.out.weight.any()
    assert not block.mlp.down.weight.any()


def test_a_block_adds_its_delta(model):
    x = torch.randn(2, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    angles = rotary_angles(torch.arange(5), DIM // HEADS)
    block = model.blocks[0]
    assert torch.equal(block(x, angles), x + block.delta(x, angles))
    assert block.delta(x, angles).abs().max() > 0.1


def test_a_later_token_changes_nothing_earlier(model):
    ids = tokens()
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % VOCAB
    before, after = model.float()(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_a_block_depends_on_relative_position_alone(model):
    x = torch.randn(1, 6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    block = model.blocks[0]
    here = block(x, rotary_angles(torch.arange(6), DIM // HEADS))
    there = block(x, rotary_angles(torch.arange(6) + 50, DIM // HEADS))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cached_decoding_equals_full_forward_for_ragged_rows(model):
    check_goes_on_from_ragged_rows(model.double(), tokens(batch=3, length=24))


def test_every_weight_learns_by_the_second_step():
    torch.manual_seed(0)
    model = ControlModel(CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten()).backward()
        optimizer.step()
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert silent == []


def test_parameter_count():
    with torch.device("meta"):
        model = ControlModel(ControlConfig(50257, 1024, 12, 768, 12, mlp_ratio=4))
    assert sum(p.numel() for p in model.parameters()) == 2 * 50257 * 768 + 12 * 12 * 768**2
