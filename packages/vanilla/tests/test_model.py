"""Laws of the model. B batch, T sequence, D model_dim, H heads, K head_dim, V vocabulary."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vanilla_models import (
    ADAPTER,
    DIM,
    HEADS,
    LENGTH,
    VOCAB,
    build,
    build_perturbed,
    every_preset,
    random_tokens,
)

from nanozoo_core.config import model_config
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.contract import Draw, Step
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.optim.groups import default_roles
from nanozoo_core.testing.decoding import check_goes_on_from_ragged_rows
from nanozoo_core.testing.gpt2_reference import gpt2_logits
from nanozoo_core.testing.laws import (
    assert_causal,
    assert_dropped,
    assert_padding_changes_nothing,
    assert_same_tensors,
    bits_of_period_two,
)
from nanozoo_core.testing.sources import batch_of
from nanozoo_vanilla.model import Control

LARGE = {
    "vocab_size": 50304,
    "seq_len": 1024,
    "num_layers": 12,
    "model_dim": 768,
    "num_heads": 12,
}
TINY = {"vocab_size": 4096, "seq_len": 256, "num_layers": 4, "model_dim": 128, "num_heads": 4}


def count(**settings):
    with torch.device("meta"):
        model = ADAPTER.make_model(model_config("vanilla", settings))
    return sum(p.numel() for p in model.parameters())


def core_control():
    torch.manual_seed(0)
    return ControlModel(ControlConfig(VOCAB, LENGTH, 2, DIM, HEADS, mlp_ratio=4))


def test_the_control_is_that_of_core_to_the_bit():
    ours, cores = build(), core_control()
    assert isinstance(ours, ControlModel)
    assert_same_tensors(ours.state_dict(), cores.state_dict())
    for name, parameter in ours.named_parameters():
        noise = 0.1 * torch.randn_like(parameter)
        parameter.data += noise
        cores.get_parameter(name).data += noise
    assert torch.equal(ours(random_tokens()), cores(random_tokens()))


def encoder_stack(model):
    """torch's post-norm encoder with the weights of a v0 model."""
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            DIM,
            HEADS,
            4 * DIM,
            dropout=0.0,
            activation="relu",
            batch_first=True,
            norm_first=False,
            layer_norm_eps=1e-5,
            dtype=model.embedding.weight.dtype,
        )
        pairs = [
            (layer.self_attn.in_proj_weight, block.attention.qkv.weight),
            (layer.self_attn.out_proj.weight, block.attention.out.weight),
            (layer.linear1.weight, block.mlp.up.weight),
            (layer.linear1.bias, block.mlp.up.bias),
            (layer.linear2.weight, block.mlp.down.weight),
            (layer.linear2.bias, block.mlp.down.bias),
            (layer.norm1.weight, block.norm_1.weight),
            (layer.norm1.bias, block.norm_1.bias),
            (layer.norm2.weight, block.norm_2.weight),
            (layer.norm2.bias, block.norm_2.bias),
        ]
        with torch.no_grad():
            layer.self_attn.in_proj_bias.zero_()
            layer.self_attn.out_proj.bias.zero_()
            for theirs, ours in pairs:
                theirs.copy_(ours)
        layers.append(layer)
    return layers


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-10)], ids=str
)
def test_v0_is_a_stack_of_torch_encoder_layers(dtype, tolerance):
    model = build_perturbed(preset="v0").to(dtype)
    tokens = random_tokens()
    x = model.embed(tokens, torch.arange(LENGTH))
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=dtype)
    for layer in encoder_stack(model):
        x = layer(x, src_mask=mask, is_causal=True)
    torch.testing.assert_close(model.features(tokens), x, rtol=0, atol=tolerance)


GPT2_NAMES = {
    "blocks.": "h.",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "final_norm": "ln_f",
    "position.": "pos_embed.",
}


def gpt2_name(name):
    for ours, theirs in GPT2_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def test_v6_is_gpt2():
    model = build_perturbed(preset="v6").double()
    weights = {gpt2_name(name): weight for name, weight in model.state_dict().items()}
    expected = gpt2_logits(weights, random_tokens(), num_layers=2, num_heads=HEADS)
    torch.testing.assert_close(model(random_tokens()), expected, rtol=1e-10, atol=1e-10)


def test_v6_starts_as_gpt2():
    model = build(preset="v6", vocab_size=2000, seq_len=200, model_dim=64, num_layers=4)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(
                parameter, torch.full_like(parameter, "norm" in name and name.endswith("weight"))
            )
        else:
            std = 0.02 / math.sqrt(8) if name.endswith(("out.weight", "down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05)


def test_sinusoids_are_neither_trained_nor_saved():
    model = build(preset="v0")
    assert not any("position" in name for name in model.state_dict())


def last_logits(model, tokens):
    return model(tokens)[:, -1]


def test_without_positions_earlier_tokens_may_be_reordered(monkeypatch):
    model = build_perturbed(preset="v0")
    tokens = random_tokens()
    order = torch.randperm(LENGTH - 1, generator=torch.Generator().manual_seed(2))
    reordered = torch.cat([tokens[:, order], tokens[:, -1:]], dim=1)
    # One layer: in a second one the earlier tokens see different pasts of their own.
    model.blocks = model.blocks[:1]
    assert (last_logits(model, tokens) - last_logits(model, reordered)).abs().max() > 1e-2
    monkeypatch.setattr(
        "nanozoo_vanilla.historical.sinusoids", lambda t, dim: torch.zeros(len(t), dim)
    )
    torch.testing.assert_close(
        last_logits(model, tokens), last_logits(model, reordered), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("preset", ["v0", "v9", "control"])
def test_windows_of_twice_the_trained_length_have_a_score(preset):
    model = build_perturbed(preset=preset)
    batch = batch_of(random_tokens(2, 2 * LENGTH + 1))
    assert ADAPTER.nll(model, batch, Draw(0)).nats.isfinite().all()


def test_windows_longer_than_a_learned_table_are_refused():
    model = build(preset="v3")
    message = f"25 tokens do not fit the position table of model_cfg.seq_len={LENGTH}"
    with pytest.raises(ValueError, match=message):
        model(random_tokens(1, LENGTH + 1))
    with pytest.raises(ValueError, match=message):
        model.init_cache(1, LENGTH + 1)


@every_preset
def test_a_later_token_changes_nothing_earlier(preset):
    assert_causal(build_perturbed(preset=preset), random_tokens(), 10, VOCAB)


@every_preset
@torch.no_grad()
def test_cached_decoding_equals_full_forward_for_ragged_rows(preset):
    model = build_perturbed(preset=preset)
    check_goes_on_from_ragged_rows(model.double(), random_tokens())


@every_preset
def test_every_parameter_learns_by_the_second_step(preset):
    model = build(preset=preset)
    tokens = random_tokens(3, LENGTH + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    # A constant added to all keys changes no softmax: that third of a bias has no gradient.
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


@every_preset
def test_muon_gets_the_block_matrices_and_nothing_else(preset):
    model = build(preset=preset)
    roles = default_roles(model)
    layers = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    matrices = {name for name, role in roles.items() if role == "matrix"}
    assert matrices == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert roles["embedding.weight"] == "embedding"
    assert roles.get("position.weight", "embedding") == "embedding"
    assert roles.get("head.weight", "head") == "head"
    assert all(block.attention.qkv.weight.muon_split == (DIM,) * 3 for block in model.blocks)


@every_preset
def test_padding_rows_change_no_likelihood(preset):
    plain = build_perturbed(preset=preset)
    padded = build_perturbed(preset=preset, pad_vocab_to=64)
    batch = batch_of(random_tokens(3, LENGTH + 1))
    assert padded.output_weight.shape[0] > plain.output_weight.shape[0] == VOCAB
    assert_padding_changes_nothing(plain, padded, ADAPTER, batch)


@every_preset
def test_flops_are_those_of_the_formula(preset):
    config = model_config("vanilla", LARGE | {"preset": preset})
    expected = 6 * (12 * 12 * 768**2 + 50304 * 768) + 12 * 12 * 768 * 1024
    assert ADAPTER.flops_per_token(config, 1024) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("preset", ["v0", "v6", "v12", "control"])
def test_a_source_of_period_two_is_learned(preset):
    model = build(preset=preset, vocab_size=4, seq_len=16, num_layers=1, model_dim=16, num_heads=2)
    assert bits_of_period_two(model, lr=3e-2, num_steps=150) < 0.01


@pytest.mark.parametrize("preset", ["v0", "v1", "v2", "v3"])
def test_post_norm_blocks_normalise_the_stream(preset):
    model = build_perturbed(preset=preset, model_dim=128)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, _, out: seen.append((block.norm_2, out)))
    features = model.features(random_tokens())
    assert len(seen) == 2
    for norm, x in seen:
        plain = (x - norm.bias) / norm.weight
        assert plain.mean(-1).abs().max() < 1e-5
        assert (plain.var(-1, correction=0) - 1).abs().max() < 1e-3
    assert torch.equal(features, seen[-1][1])


def test_embeddings_are_scaled_on_the_way_in_alone():
    model = build(preset="v0").double()
    stream = model.embed(random_tokens(), torch.zeros(LENGTH, dtype=torch.int64))
    scaled = math.sqrt(DIM) * model.embedding.weight[random_tokens()]
    at_zero = torch.tensor([0.0, 1.0] * (DIM // 2))
    torch.testing.assert_close(stream, scaled + at_zero, rtol=1e-12, atol=1e-12)
    features = torch.randn(2, DIM, dtype=torch.float64)
    assert torch.equal(model.logits(features), F.linear(features, model.embedding.weight))


def test_v0_starts_as_tensor2tensor():
    model = build(preset="v0", vocab_size=4000, model_dim=64)
    assert model.embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.02)
    for block in model.blocks:
        for weight, limit in (
            (block.attention.qkv.weight, math.sqrt(6 / 128)),
            (block.attention.out.weight, math.sqrt(6 / 128)),
            (block.mlp.up.weight, math.sqrt(6 / 320)),
            (block.mlp.down.weight, math.sqrt(6 / 320)),
        ):
            assert weight.abs().max().item() == pytest.approx(limit, rel=0.01)
            assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)


@pytest.mark.slow
@torch.no_grad()
def test_v0_starts_with_logits_of_unit_variance():
    model = build(
        preset="v0", vocab_size=50304, seq_len=256, num_layers=12, model_dim=768, num_heads=12
    )
    tokens = random_tokens(2, 257, vocab=50304)
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert 0.45 < loss.item() - math.log(50304) < 0.75
    assert logits.std().item() == pytest.approx(1, abs=0.02)


def test_biases_of_keys_and_values_do_what_algebra_says():
    model = build_perturbed(preset="v1").double()
    attention = model.blocks[0].attention
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    before, logits = attention(x, None, None, 0), model(random_tokens())
    shift = torch.randn(DIM, dtype=torch.float64)
    with torch.no_grad():
        attention.qkv.bias[DIM : 2 * DIM] += shift
    torch.testing.assert_close(model(random_tokens()), logits, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        attention.qkv.bias[2 * DIM :] += shift
    moved = before + attention.out.weight @ shift
    torch.testing.assert_close(attention(x, None, None, 0), moved, rtol=1e-10, atol=1e-10)


def test_dropout_acts_on_embeddings_and_layer_outputs_in_training_alone():
    model = build_perturbed(preset="v0", dropout=0.5)
    tokens = random_tokens()
    assert (model.embed(tokens, torch.arange(LENGTH)) == 0).float().mean() > 0.4
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    plain = build_perturbed(preset="v0")
    assert torch.equal(model(tokens), plain(tokens))


@pytest.mark.parametrize("preset", ["v0", "v4"])
@torch.no_grad()
def test_dropout_acts_on_the_embedding_and_on_the_output_of_every_layer(preset):
    model = build_perturbed(preset=preset, dropout=0.25, model_dim=64).double()
    tokens, positions = random_tokens(), torch.arange(LENGTH)
    dropped = model.embed(tokens, positions)
    assert_dropped(dropped, model.eval().embed(tokens, positions), 0.25)
    model.train()
    seen = []
    for block in model.blocks:
        block.norm_1 = block.norm_2 = nn.Identity()
        for part in (block.attention, block.mlp):
            part.register_forward_hook(lambda _, read, made: seen.extend((read[0], made)))
        x = torch.randn(3, LENGTH, 64, dtype=torch.float64)
        after = block(x, None, None, 0)
        attended, between, made = seen[-3:]
        assert_dropped(between - x, attended, 0.25)
        assert_dropped(after - between, made, 0.25)


@pytest.mark.parametrize(
    ("preset", "large", "tiny"),
    [
        # V d + L (12 d^2 + 9 d), and what each step adds or takes.
        ("v0", 123_651_072, 1_315_328),
        ("v1", 123_651_072 + 12 * 4 * 768, 1_315_328 + 4 * 4 * 128),
        ("v3", 123_687_936 + 1024 * 768, 1_317_376 + 256 * 128),
        ("v4", 124_474_368 + 2 * 768, 1_350_144 + 2 * 128),
        ("v6", 124_475_904, 1_350_400),
        ("v7", 50304 * 768 + 1024 * 768 + 12 * 12 * 768**2 + 25 * 768, 1_344_640),
        ("v8", 50304 * 768 + 1024 * 768 + 12 * 12 * 768**2, 1_343_488),
        ("v9", 50304 * 768 + 12 * 12 * 768**2, 1_310_720),
        ("control", 162_201_600, 1_835_008),
    ],
)
def test_parameter_counts(preset, large, tiny):
    assert count(preset=preset, **LARGE) == large
    assert count(preset=preset, **TINY) == tiny


def test_v6_at_gpt2_shape_has_the_published_size():
    assert count(preset="v6", **(LARGE | {"vocab_size": 50257})) == 124_439_808


def test_the_model_of_a_preset():
    assert isinstance(build(), Control)
    assert not isinstance(build(preset="v12"), ControlModel)


def test_training_loss_is_that_of_the_logits():
    model = build_perturbed(preset="v0")
    tokens = random_tokens(3, LENGTH + 1)
    loss = ADAPTER.training_loss(model, batch_of(tokens), Step(0, 0.0, 0)).value
    expected = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
