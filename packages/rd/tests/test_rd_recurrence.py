"""The recurrence against its unrolled forms, and the laws of truncation, noise and scale."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from rd_models import DIM, SMALL, VOCAB, build, random_tokens, think

from nanozoo_core.contract import Step
from nanozoo_core.testing.sources import batch_of
from nanozoo_rd.adapter import RDAdapter
from nanozoo_rd.config import RDConfig
from nanozoo_rd.model import RecurrentDepth

ADAPTER = RDAdapter(RDConfig, RecurrentDepth)


def loss_of(logits, tokens):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients_after(model, tokens, depth, num_backprop, state=None):
    model.zero_grad()
    loss_of(think(model, tokens, depth, num_backprop, state)[0], tokens).backward()
    return gradients(model)


# -- identities ---------------------------------------------------------------------------------


def plain_norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def plain_sandwich(x, block, num_heads, base):
    """The block by its equations: full score matrices, rotary positions as complex numbers."""
    batch, length, dim = x.shape
    width = dim // num_heads
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2) / width)
    turn = torch.polar(torch.ones_like(angle), angle)  # (T, K/2)

    def heads(y):
        return y.reshape(batch, length, num_heads, width).transpose(1, 2)

    def rotate(y):
        first, second = y.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    attention, mlp = block.attention, block.mlp
    w_q, w_k, w_v = attention.qkv.weight.chunk(3)
    z = plain_norm(x, block.norm_1.weight)
    q = rotate(heads(z @ w_q.T + attention.qk_bias[0]))
    k = rotate(heads(z @ w_k.T + attention.qk_bias[1]))
    scores = q @ k.mT / math.sqrt(width)
    scores = scores + torch.full((length, length), -torch.inf).triu(1)
    y = (scores.softmax(-1) @ heads(z @ w_v.T)).transpose(1, 2).reshape(batch, length, dim)
    x = plain_norm(x + y @ attention.out.weight.T, block.norm_2.weight)
    w_gate, w_up = mlp.gate_up.weight.chunk(2)
    z = plain_norm(x, block.norm_3.weight)
    hidden = F.silu(z @ w_gate.T) * (z @ w_up.T)
    return plain_norm(x + hidden @ mlp.down.weight.T, block.norm_4.weight)


@torch.no_grad()
def test_one_iteration_without_state_is_a_plain_stack():
    model, tokens = build(), random_tokens(2, 20)
    model.adapter.weight.copy_(torch.cat([torch.zeros(DIM, DIM), torch.eye(DIM)], dim=1))
    logits, _ = think(model, tokens, 1, state=torch.zeros(2, 20, DIM))
    x = math.sqrt(DIM) * model.embedding.weight[tokens]
    for block in [*model.prelude, *model.core]:
        x = plain_sandwich(x, block, 2, 10000.0)
    x = plain_norm(x, model.norm.weight)
    for block in model.coda:
        x = plain_sandwich(x, block, 2, 10000.0)
    expected = plain_norm(x, model.norm.weight) @ model.embedding.weight.T
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["concat", "add"])
def test_iterating_is_an_unrolled_stack_whose_copies_share_their_weights(mode):
    depth, tokens = 4, random_tokens(2, 12)
    model = build(dtype=torch.float64, adapter_mode=mode)
    logits, _ = think(model, tokens, depth)
    loss_of(logits, tokens).backward()

    untied = copy.deepcopy(model)
    untied.zero_grad()
    copies = [copy.deepcopy(untied.core) for _ in range(depth)]
    adapters = [copy.deepcopy(untied.adapter) for _ in range(depth)]
    positions = torch.arange(12)
    angles = untied.angles(positions)
    e = math.sqrt(DIM) * untied.embedding(tokens)
    for block in untied.prelude:
        e = block(e, angles)
    s = untied.initial_state(0, positions).expand_as(e)
    for core, adapter in zip(copies, adapters, strict=True):
        s = s + e if mode == "add" else adapter(torch.cat([s, e], dim=-1))
        for block in core:
            s = block(s, angles)
    unrolled = untied.logits(untied.finish(s, angles))
    torch.testing.assert_close(logits, unrolled, rtol=1e-10, atol=1e-10)

    loss_of(unrolled, tokens).backward()
    close = {"rtol": 1e-8, "atol": 1e-12}
    shared = [(model.core, copies)] + ([(model.adapter, adapters)] if mode == "concat" else [])
    for one, many in shared:
        tied = zip(*(m.parameters() for m in many), strict=True)
        sums = [sum(p.grad for p in copies_of_one) for copies_of_one in tied]
        for parameter, total in zip(one.parameters(), sums, strict=True):
            torch.testing.assert_close(parameter.grad, total, **close)
    for name in ("embedding", "prelude", "coda", "norm"):
        ours, theirs = getattr(model, name), getattr(untied, name)
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, **close)


# -- truncated backpropagation ------------------------------------------------------------------


@pytest.mark.parametrize("num_backprop", [3, 7, None])
def test_truncation_beyond_the_depth_is_full_backpropagation(num_backprop):
    model, tokens = build(), random_tokens(2, 16)
    full = gradients_after(model, tokens, 3, 3)
    found = gradients_after(model, tokens, 3, num_backprop)
    assert all(torch.equal(full[name], found[name]) for name in full)


@pytest.mark.parametrize("num_backprop", [1, 2])
def test_truncation_is_a_detached_state(num_backprop):
    depth, tokens = 5, random_tokens(2, 16)
    model = build(dtype=torch.float64)
    found = gradients_after(model, tokens, depth, num_backprop)
    early = think(model, tokens, depth - num_backprop)[1].state.detach()
    expected = gradients_after(model, tokens, num_backprop, None, state=early)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-13)
    full = gradients_after(model, tokens, depth, None)
    assert any(not torch.allclose(found[name], full[name], rtol=1e-3) for name in full)


def test_the_prelude_learns_through_its_output_alone():
    model, tokens = build(), random_tokens(2, 16)
    found = gradients_after(model, tokens, 6, 1)
    assert all(grad.abs().max() > 0 for name, grad in found.items() if "prelude" in name)
    model.zero_grad()
    positions = torch.arange(16)
    angles = model.angles(positions)
    injected = model.read(tokens, angles).detach()
    state = model.initial_state(0, positions).expand_as(injected)
    thought = model.iterate(state, injected, angles, 6, 1)
    loss_of(model.logits(model.finish(thought.state, angles)), tokens).backward()
    assert not any("prelude" in name for name in gradients(model))


def test_recomputed_iterations_give_the_same_gradients():
    tokens = random_tokens(2, 16)
    plain, saving = build(), build(checkpoint_core=True)
    expected = gradients_after(plain, tokens, 5, 3)
    found = gradients_after(saving, tokens, 5, 3)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-8)


# -- causality and noise ------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 4])
@torch.no_grad()
def test_a_change_leaves_earlier_logits_exactly_alone(depth):
    model, tokens = build(eval_recurrence=depth), random_tokens(2, 24)
    changed = tokens.clone()
    changed[:, 15] = (changed[:, 15] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert (before[:, 15:] - after[:, 15:]).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_scores_do_not_depend_on_batch_window_or_call():
    model, tokens = build(), random_tokens(4, 24)
    whole = model(tokens)
    assert torch.equal(whole, model(tokens))
    torch.testing.assert_close(model(tokens[2:3]), whole[2:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens[:, :9]), whole[:, :9], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_zero_mode_scores_from_zeros():
    model, tokens = build(s0_mode_eval="zero"), random_tokens(2, 12)
    expected, _ = think(model, tokens, 4, state=torch.zeros(2, 12, DIM))
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=0)


def test_training_noise_belongs_to_the_row_not_the_batch():
    model, tokens = build(), random_tokens(6, 17)
    step = Step(number=11, progress=0.5, seed=2)
    whole = ADAPTER.training_loss(model, batch_of(tokens), step)
    parts = [
        ADAPTER.training_loss(
            model, batch_of(tokens[i : i + 2], first_row=i, num_rows=6), step
        ).value
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts) / 3, whole.value, rtol=1e-6, atol=1e-6)
    alike = ADAPTER.training_loss(model, batch_of(tokens[:1].expand(2, -1)), step)
    single = ADAPTER.training_loss(model, batch_of(tokens[:1]), step)
    assert abs(float((alike.value - single.value).detach())) > 1e-6  # two rows, two noises


def test_training_draws_its_depth_and_scores_do_not():
    model, tokens = build(mean_recurrence=8), random_tokens(2, 17)
    metrics = [
        ADAPTER.training_loss(model, batch_of(tokens), Step(n, 0.5, 0)).metrics for n in range(20)
    ]
    assert len({float(m["depth"]) for m in metrics}) > 5
    fixed = build(sampling="fixed", mean_recurrence=3)
    loss = ADAPTER.training_loss(fixed, batch_of(tokens), Step(0, 0.5, 0))
    assert float(loss.metrics["depth"]) == 3


# -- scale --------------------------------------------------------------------------------------


@torch.no_grad()
def test_initial_states_are_forgotten_as_the_core_iterates():
    model = build(moved=False, model_dim=128, num_heads=4, mlp_dim=320, num_core_layers=4)
    tokens, positions = random_tokens(2, 32), torch.arange(32)
    starts = [model.initial_state(key, positions) for key in (1, 2)]
    distances = []
    for depth in (1, 4, 16):
        one, two = (think(model, tokens, depth, state=start)[1].state for start in starts)
        distances.append(float((one - two).norm() / one.norm()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.05


@pytest.mark.parametrize("depth", [1, 2, 16, 256])
@torch.no_grad()
def test_states_keep_their_scale_at_any_depth(depth):
    model, tokens = build(), random_tokens(2, 16)
    logits, thought = think(model, tokens, depth)
    gain = model.core[-1].norm_4.weight
    rms = (thought.state / gain).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-4, atol=0)
    assert logits.isfinite().all()


def test_initial_weights_have_the_published_deviations():
    model = build(moved=False, model_dim=256, num_heads=4, mlp_dim=512, mean_recurrence=6)
    std = math.sqrt(2 / (5 * 256)) * 0.9866  # what the cut at 3 leaves
    small = std / math.sqrt(2 * (1 + 2 * 6 + 1))
    block = model.core[0]
    gate, value = block.mlp.gate_up.weight.detach().chunk(2)
    wide = [
        model.adapter.weight,
        block.attention.qkv.weight,
        gate,
        model.prelude[0].mlp.gate_up.weight[:512],
    ]
    narrow = [block.attention.out.weight, block.mlp.down.weight, value]
    for weights, expected in ((wide, std), (narrow, small)):
        for weight in weights:
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.02)
            assert weight.detach().abs().max() <= 3.05 * expected / 0.9866
    assert float(model.embedding.weight.detach().std()) == pytest.approx(std, rel=0.02)


def test_the_first_loss_is_a_fifth_of_a_nat_above_uniform():
    model = build(moved=False, vocab_size=512, model_dim=128, num_heads=4, mlp_dim=320)
    tokens = torch.randint(512, (8, 65), generator=torch.Generator().manual_seed(0))
    loss = float(loss_of(model(tokens), tokens).detach())
    assert loss == pytest.approx(math.log(512) + 0.2, abs=0.1)


def test_the_adapter_reads_the_state_first():
    """The order of the published weights: A = [A_s | A_e]."""
    model = build()
    state, e = torch.randn(2, 1, 4, DIM)
    with torch.no_grad():
        together = model.adapter(torch.cat([state, e], dim=-1))
        apart = F.linear(state, model.adapter.weight[:, :DIM])
        apart = apart + F.linear(e, model.adapter.weight[:, DIM:])
        model.core = torch.nn.ModuleList()
        found = model.step(state, F.linear(e, model.adapter.weight[:, DIM:]), ())
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, together, rtol=1e-5, atol=1e-6)


def test_no_embeddings_are_tied_when_asked():
    model = build(tie_embeddings=False)
    assert model.output_weight is model.head.weight
    assert SMALL["vocab_size"] == model.head.weight.shape[0]
    assert ADAPTER.parameter_roles(model)["head.weight"] == "head"
