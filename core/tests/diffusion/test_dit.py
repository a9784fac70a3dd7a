"""The shared backbone: initial state, reach, sizes and roles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from nanozoo_core.diffusion.bounds import network_loss
from nanozoo_core.diffusion.dit import DiT, dit_roles, locality_bias, see_all

VOCAB, LENGTH, WIDTH, LAYERS, COND = 11, 8, 32, 2, 6
VARIANTS = [
    {"time_conditioning": False},
    {"time_conditioning": True},
    {"time_conditioning": False, "tie_embeddings": True},
    {"time_conditioning": False, "adaln_when_unconditioned": True},
    {"time_conditioning": False, "locality": 1.0},
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def build(cond_dim: int = COND, **variant: Any) -> DiT:
    torch.manual_seed(0)
    return DiT(
        VOCAB + 1,
        VOCAB,
        model_dim=WIDTH,
        num_layers=LAYERS,
        num_heads=2,
        seq_len=LENGTH + 1,
        cond_dim=cond_dim,
        **variant,
    )


def perturbed(**variant: Any) -> DiT:
    """Without the zeros of the start, behind which gradients do not flow."""
    net = build(**variant)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


@each_variant
def test_parameter_count_is_the_formula(variant):
    v, d, n, c = VOCAB, WIDTH, LAYERS, COND
    expected = (v + 1) * d + v * (d + 1) + n * (12 * d * d + 7 * d) + d
    if variant.get("tie_embeddings"):
        expected -= v * d
    if variant["time_conditioning"] or variant.get("adaln_when_unconditioned"):
        expected += n * 6 * d * (c + 1) + 2 * d * (c + 1) + 257 * c + c * c + c
    assert sum(p.numel() for p in build(**variant).parameters()) == expected


@each_variant
def test_blocks_are_the_identity_at_the_start(variant):
    net = build(**variant)
    tokens = torch.randint(VOCAB, (3, LENGTH + 1))
    expected = net.norm(net.embedding(tokens))
    assert_close(net.features(tokens, torch.rand(3)), expected)


def test_first_loss_is_ln_v_for_any_number_of_masks():
    net = build(time_conditioning=True)
    tokens = torch.randint(VOCAB, (LENGTH, LENGTH + 1))
    masked = torch.ones(LENGTH, LENGTH).tril().bool()
    losses = network_loss(net, tokens[:, :1], VOCAB)(tokens[:, 1:], masked, torch.rand(LENGTH))
    assert_close(losses, masked * math.log(VOCAB), rtol=1e-5, atol=0)


@each_variant
def test_every_parameter_gets_a_gradient(variant):
    net = perturbed(**variant)
    tokens = torch.randint(VOCAB, (4, LENGTH + 1))
    masked = torch.rand(4, LENGTH) < 0.5
    losses = network_loss(net, tokens[:, :1], VOCAB)(tokens[:, 1:], masked, torch.rand(4))
    losses.sum().backward()
    for name, parameter in net.named_parameters():
        if name == "time_embedding.input.weight" and not variant["time_conditioning"]:
            assert float(parameter.grad[:, 128:].abs().sum()) == 0  # sines of the constant 0
            continue
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert float(net.embedding.weight.grad[VOCAB].abs().sum()) > 0  # the mask's row


def test_both_sides_and_the_context_are_seen_but_not_what_a_mask_hides():
    net = perturbed(time_conditioning=False)
    tokens = torch.randint(VOCAB, (1, LENGTH + 1))
    tokens[0, [2, 7]] = VOCAB
    before = net(tokens)
    for position in (0, 4):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCAB
        after = net(changed)
        assert not torch.equal(before[0, 2], after[0, 2])
        assert not torch.equal(before[0, 7], after[0, 7])


def test_true_token_under_a_mask_changes_no_loss_but_its_own():
    net = perturbed(time_conditioning=False)
    tokens = torch.randint(VOCAB, (1, LENGTH + 1))
    masked = torch.tensor([[True, False, True, False, False, True, False, False]])
    loss = network_loss(net, tokens[:, :1], VOCAB)
    before = loss(tokens[:, 1:], masked, torch.zeros(1))
    tokens[0, 1] = (tokens[0, 1] + 1) % VOCAB
    after = loss(tokens[:, 1:], masked, torch.zeros(1))
    assert not torch.equal(before[0, 0], after[0, 0])
    assert torch.equal(before[0, 1:], after[0, 1:])
    assert float(before[~masked].abs().sum().detach()) == 0.0


def test_time_changes_the_prediction_only_where_it_conditions():
    tokens = torch.randint(VOCAB, (1, LENGTH + 1))
    early, late = torch.tensor([0.1]), torch.tensor([900.0])
    conditioned = perturbed(time_conditioning=True)
    assert not torch.allclose(conditioned(tokens, early), conditioned(tokens, late))
    for variant in (VARIANTS[0], VARIANTS[3]):
        net = perturbed(**variant)
        assert torch.equal(net(tokens, early), net(tokens, late))


@each_variant
def test_a_view_says_where_tokens_stand_and_what_they_see(variant):
    """Tokens in another order, which stand where they stood: the same features, in that order. The
    time may be given for each token."""
    net = perturbed(**variant).double()
    tokens = torch.randint(VOCAB + 1, (2, LENGTH + 1))
    time = torch.tensor([0.3, 7.0], dtype=torch.float64)
    order = torch.randperm(LENGTH + 1)
    asked = []

    class Shuffled:
        positions = order

        def attend(self, layer, q, k, v):
            asked.append(layer)
            bias = locality_bias(order, net.num_heads, net.locality)
            return see_all(bias, q, k, v)

    by_token = time[:, None].expand(2, LENGTH + 1)
    found = net.features(tokens[:, order], by_token, view=Shuffled())
    assert_close(found, net.features(tokens, time)[:, order], rtol=1e-10, atol=1e-10)
    assert asked == list(range(LAYERS))


def test_time_of_each_token_conditions_that_token_alone_but_for_what_it_sees():
    class Blind:
        positions = torch.arange(LENGTH + 1)

        def attend(self, layer, q, k, v):
            return v

    net = perturbed(time_conditioning=True).double()
    tokens = torch.randint(VOCAB + 1, (1, LENGTH + 1))
    time = torch.rand(1, LENGTH + 1, dtype=torch.float64)
    other = time.clone()
    other[0, 3] += 1
    before, after = (net.features(tokens, t, view=Blind()) for t in (time, other))
    assert (before != after).any(-1)[0].tolist() == [i == 3 for i in range(LENGTH + 1)]


def test_shorter_windows_are_read_and_longer_ones_refused():
    net = perturbed(time_conditioning=False)
    assert net(torch.randint(VOCAB, (2, 4))).shape == (2, 4, VOCAB)
    with pytest.raises(AssertionError, match="positions"):
        net(torch.zeros(1, LENGTH + 2, dtype=torch.int64))


def test_roles_cover_everything_and_keep_conditioning_away_from_muon():
    net = build(time_conditioning=True, cond_dim=64)  # wide enough for Muon, if it were asked
    roles = dit_roles(net)
    assert set(roles) == {name for name, _ in net.named_parameters()}
    matrices = {name for name, role in roles.items() if role == "matrix"}
    parts = ("qkv", "out", "up", "down")
    assert matrices == {f"blocks.{i}.{part}.weight" for i in range(LAYERS) for part in parts}
    assert roles["head.weight"] == "head"
    assert roles["embedding.weight"] == "embedding"
    assert net.blocks[0].qkv.weight.muon_split == (WIDTH,) * 3


def test_dropout_acts_in_training_alone():
    net = perturbed(time_conditioning=False)
    for block in net.blocks:
        block.dropout = 0.5
    tokens = torch.randint(VOCAB, (2, LENGTH + 1))
    assert not torch.equal(net(tokens), net(tokens))
    net.eval()
    assert torch.equal(net(tokens), net(tokens))


def expected_start(name: str, variant: dict[str, bool]) -> float:
    """The bound of the uniform draw that a weight starts with, 0 for zeros, by its name."""
    conditioned = variant["time_conditioning"] or variant.get("adaln_when_unconditioned", False)
    part = name.split(".")[-2]
    if part in ("condition", "head") or (part in ("out", "down") and not conditioned):
        return 0.0
    fan_in = {"down": 4 * WIDTH, "input": 256, "output": COND}.get(part, WIDTH)
    return 1 / math.sqrt(fan_in)


@each_variant
def test_every_tensor_starts_as_the_table_says(variant):
    net = build(**variant)
    for name, parameter in net.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all()), name
        elif parameter.dim() == 1:
            assert bool((parameter == 0).all()), name
        else:
            bound = expected_start(name, variant)
            assert float(parameter.detach().abs().max()) <= bound, name
            # Of a uniform draw; 36 values are the fewest of a matrix here, which is 6 x 6.
            spread = float(parameter.detach().std())
            assert spread == pytest.approx(bound / math.sqrt(3), rel=0.25), name


@each_variant
def test_network_is_its_equations_in_float64(variant):
    """Position by position and head by head, from the names of the weights and the paper."""
    net = perturbed(**variant).double()
    weights = {name: w.detach() for name, w in net.named_parameters()}
    tokens = torch.randint(VOCAB + 1, (2, LENGTH + 1))
    time = torch.tensor([0.3, 7.0], dtype=torch.float64)
    for row in range(2):
        expected = reference(weights, tokens[row].tolist(), float(time[row]), variant)
        found = net(tokens, time)[row].detach()
        # Angles are float32 in the network, whose positions and times they turn by up to 8.
        assert_close(found, expected, rtol=1e-5, atol=1e-6)


def reference(weights, tokens, time, variant):
    """Logits (S, V)."""

    def norm(x, name):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * weights[name]

    def linear(x, name):
        return weights[name + ".weight"] @ x + weights.get(name + ".bias", 0)

    def silu(x):
        return x / (1 + torch.exp(-x))

    def rotated(x, position):
        half = x.numel() // 2
        turned = torch.empty_like(x)
        for i in range(half):
            angle = position * 10000.0 ** (-i / half)
            a, b = float(x[i]), float(x[i + half])
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + half] = a * math.sin(angle) + b * math.cos(angle)
        return turned

    def attended(rows, name):
        parts = [linear(row, name + ".qkv").view(3, 2, WIDTH // 2) for row in rows]
        results = []
        for i in range(len(rows)):
            heads = []
            for h in range(2):
                q = rotated(parts[i][0, h], i)
                keys = [rotated(part[1, h], j) for j, part in enumerate(parts)]
                scores = torch.stack([q @ k for k in keys]) / math.sqrt(WIDTH // 2)
                slope = variant.get("locality", 0.0) / 2**h
                scores = scores - slope * torch.tensor([abs(i - j) for j in range(len(rows))])
                heads.append(scores.softmax(0) @ torch.stack([part[2, h] for part in parts]))
            results.append(linear(torch.cat(heads), name + ".out"))
        return results

    def mlp(x, name):
        u = linear(x, name + ".up")
        inner = math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
        return linear(0.5 * u * (1 + inner.tanh()), name + ".down")

    def modulated(x, shift, scale):
        return x * (1 + scale) + shift

    condition = None
    if variant["time_conditioning"] or variant.get("adaln_when_unconditioned"):
        time = time if variant["time_conditioning"] else 0.0
        angles = [time * 10000.0 ** (-j / 128) for j in range(128)]
        features = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        hidden = silu(linear(features.double(), "time_embedding.input"))
        condition = silu(linear(hidden, "time_embedding.output"))
    rows = [weights["embedding.weight"][token] for token in tokens]
    none, one = torch.zeros(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64)
    for n in range(LAYERS):
        name = f"blocks.{n}"
        parts = [none, none, one, none, none, one]
        if condition is not None:
            parts = linear(condition, name + ".condition").chunk(6)
        seen = [modulated(norm(x, name + ".norm_attention.weight"), *parts[:2]) for x in rows]
        rows = [x + parts[2] * a for x, a in zip(rows, attended(seen, name), strict=True)]
        seen = [modulated(norm(x, name + ".norm_mlp.weight"), *parts[3:5]) for x in rows]
        rows = [x + parts[5] * mlp(y, name) for x, y in zip(rows, seen, strict=True)]
    rows = [norm(x, "norm.weight") for x in rows]
    if condition is not None:
        shift, scale = linear(condition, "condition").chunk(2)
        rows = [modulated(x, shift, scale) for x in rows]
    if variant.get("tie_embeddings"):
        table = weights["embedding.weight"][:VOCAB]
        return torch.stack([table @ x + weights["tied_bias"] for x in rows])
    return torch.stack([linear(x, "head") for x in rows])


# -- locality -------------------------------------------------------------------------------------


def test_locality_falls_with_the_distance_half_as_fast_from_head_to_head():
    bias = locality_bias(torch.tensor([0, 1, 2, 5]), 3, 2.0)
    assert bias.shape == (1, 3, 4, 4)
    assert bias[0, 0, 1].tolist() == [-2.0, 0.0, -2.0, -8.0]
    assert bias[0, 1, 1].tolist() == [-1.0, 0.0, -1.0, -4.0]
    assert bias[0, 2, 3].tolist() == [-2.5, -2.0, -1.5, 0.0]
    assert locality_bias(torch.arange(4), 3, 0.0) is None


def test_locality_never_makes_a_weight_denormal():
    """Products with denormal numbers take a CPU several times as long."""
    bias = locality_bias(torch.arange(1000), 2, 1.0)
    assert float(bias.min()) == -64
    assert bias.softmax(-1)[bias.softmax(-1) > 0].min() > torch.finfo(torch.float32).tiny


def test_locality_reaches_every_block():
    """So steep a bias leaves a token its own place alone, through any number of blocks."""
    tokens = torch.randint(VOCAB, (1, LENGTH + 1))
    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] + 1) % VOCAB
    for locality, reached in ((60.0, 1), (0.0, LENGTH + 1)):
        net = perturbed(time_conditioning=False, locality=locality)
        with torch.no_grad():
            for block in net.blocks:
                block.num_heads = 1  # the steepest alone
            net.num_heads, net.head_dim = 1, WIDTH
            difference = (net(tokens) - net(changed)).abs().amax(-1)[0]
        assert int((difference > 1e-6).sum()) == reached
