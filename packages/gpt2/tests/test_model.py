"""Laws of the model. B batch, T sequence, D model_dim, H heads, V vocabulary."""

import math

import pytest
import torch
import torch.nn.functional as F
from gpt2_models import make_config

from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.optim.groups import default_roles
from nanozoo_core.testing.decoding import check_ragged_rows
from nanozoo_core.testing.gpt2_reference import gpt2_logits
from nanozoo_core.testing.laws import (
    assert_causal,
    assert_dropped,
    assert_padding_changes_nothing,
    bits_of_period_two,
    perturb,
)
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_gpt2.config import GPT2Config
from nanozoo_gpt2.model import GPT2

VOCAB, LENGTH = 61, 24
SMALL = {"vocab_size": VOCAB, "seq_len": LENGTH, "num_layers": 2, "model_dim": 32, "num_heads": 4}


def build(**changes):
    torch.manual_seed(0)
    return GPT2(make_config(**(SMALL | changes)))


def build_perturbed(**changes):
    """Weights far enough from the start that every part of the forward pass matters."""
    return perturb(build(**changes))


def random_tokens(batch=3, length=LENGTH, vocab=VOCAB):
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(1))


def count(**settings):
    with torch.device("meta"):
        model = GPT2(make_config(**settings))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_size(preset, parameters):
    assert count(preset=preset, vocab_size=50257, seq_len=1024) == parameters


@pytest.mark.parametrize("preset", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_presets_have_heads_of_64_channels(preset):
    """Of which the parameters say nothing."""
    config = make_config(preset=preset, vocab_size=50257, seq_len=1024)
    assert config.shape.model_dim == 64 * config.shape.num_heads


def test_without_biases_the_count_follows_its_formula():
    formula = 50257 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 2 * 768) + 768
    assert count(preset="gpt2", vocab_size=50257, seq_len=1024, bias=False) == formula


def test_an_untied_head_adds_one_matrix():
    tied = count(**SMALL)
    assert count(**SMALL, tie_embeddings=False) == tied + VOCAB * 32


def test_logits_are_the_papers():
    model = build_perturbed().double()
    expected = gpt2_logits(model.state_dict(), random_tokens(), num_layers=2, num_heads=4)
    torch.testing.assert_close(model(random_tokens()), expected, rtol=1e-10, atol=1e-10)


def test_a_later_token_changes_nothing_earlier():
    assert_causal(build_perturbed(), random_tokens(), 10, VOCAB)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bf16 has 8 bits: 2^-9 relative per rounding, a few of them on logits of about 3.
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=["fp64", "fp32", "bf16"],
)
@torch.no_grad()
def test_cached_decoding_equals_full_forward(dtype, tolerance):
    model = build().to(dtype)
    tokens = random_tokens()
    full = model(tokens)
    cache = model.init_cache(3, LENGTH)
    pieces = [model(part, cache=cache) for part in tokens.split([7, 1, 4, 1, 1, 10], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_prompts_of_unequal_length_decode_as_if_alone():
    model = build_perturbed().double()
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    lengths = torch.tensor([4, 9, 1])
    check_ragged_rows(adapter, model, random_tokens(), lengths, steps=4)


def test_the_start_is_a_little_worse_than_uniform_on_random_tokens():
    model = build(vocab_size=256, num_layers=3, model_dim=768, num_heads=12)
    tokens = random_tokens(8, LENGTH + 1, vocab=256)
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert math.log(256) < loss.item() < math.log(256) + 0.35


def test_an_untied_head_starts_half_the_logit_variance_above_uniform():
    model = build(vocab_size=4096, num_layers=1, model_dim=768, num_heads=12, tie_embeddings=False)
    tokens = random_tokens(64, LENGTH + 1, vocab=4096)
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(4096) + 0.154, abs=0.03)


def test_residual_outputs_start_smaller_with_depth():
    model = build(num_layers=8, model_dim=128)
    for block in model.h:
        for output in (block.attn.c_proj, block.mlp.c_proj):
            ratio = output.weight.std() / block.mlp.c_fc.weight.std()
            assert ratio.item() == pytest.approx(1 / math.sqrt(16), rel=0.05)


def test_start_values_follow_the_table():
    model = build(vocab_size=2000, seq_len=200, model_dim=64)
    for table in (model.embedding.weight, model.pos_embed.weight, model.h[0].attn.c_attn.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.05)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))


def test_every_parameter_learns():
    model = build()
    tokens = random_tokens(3, LENGTH + 1)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    # Adding a constant to all keys changes no softmax: that third of the bias has no gradient.
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_a_bias_of_the_keys_changes_nothing():
    model = build_perturbed().double()
    before = model(random_tokens())
    with torch.no_grad():
        model.h[0].attn.c_attn.bias[32:64] += torch.randn(32, dtype=torch.float64)
    torch.testing.assert_close(model(random_tokens()), before, rtol=1e-10, atol=1e-10)


def test_heads_may_be_reordered():
    model = build_perturbed().double()
    before = model(random_tokens())
    order = torch.tensor([2, 0, 3, 1])
    channels = torch.arange(32).unflatten(0, (4, 8))[order].flatten()
    attn = model.h[0].attn
    with torch.no_grad():
        for parameter in attn.c_attn.parameters():
            parts = parameter.unflatten(0, (3, 32))[:, channels]
            parameter.copy_(parts.flatten(0, 1))
        attn.c_proj.weight.copy_(attn.c_proj.weight[:, channels])
    torch.testing.assert_close(model(random_tokens()), before, rtol=1e-10, atol=1e-10)


def test_without_blocks_logits_are_normalised_embeddings_against_embeddings():
    model = build().double()
    with torch.no_grad():
        for block in model.h:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
    tokens = random_tokens()
    table = model.embedding.weight
    stream = table[tokens] + model.pos_embed.weight[:LENGTH]
    expected = F.layer_norm(stream, (32,), eps=1e-5) @ table.T
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_a_tied_head_is_one_parameter():
    model = build()
    assert model.output_weight is model.embedding.weight
    assert "lm_head.weight" not in model.state_dict()
    assert default_roles(model)["embedding.weight"] == "embedding"


def test_muon_gets_the_block_matrices_and_nothing_else():
    roles = default_roles(build(tie_embeddings=False))
    matrices = {name for name, role in roles.items() if role == "matrix"}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert matrices == {f"h.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert roles["pos_embed.weight"] == "embedding"
    assert roles["lm_head.weight"] == "head"


def test_queries_keys_and_values_are_split_for_muon():
    assert build().h[0].attn.c_attn.weight.muon_split == (32, 32, 32)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_padding_rows_change_no_likelihood(tie_embeddings):
    plain = build_perturbed(tie_embeddings=tie_embeddings)
    padded = build_perturbed(tie_embeddings=tie_embeddings, pad_vocab_to=64)
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    batch = batch_of(random_tokens(3, LENGTH + 1))
    assert padded.output_weight.shape[0] > plain.output_weight.shape[0] == VOCAB
    assert_padding_changes_nothing(plain, padded, adapter, batch)


def test_padding_rows_get_no_gradient_and_leave_the_others_theirs():
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    batch, step = batch_of(random_tokens(3, LENGTH + 1)), Step(0, 0.0, 0)
    model = build_perturbed(pad_vocab_to=64)
    adapter.training_loss(model, batch, step).value.backward()
    fused = model.embedding.weight.grad
    logits = model(batch.inputs).flatten(0, 1)
    loss = F.cross_entropy(logits, batch.targets.flatten())
    (expected,) = torch.autograd.grad(loss, model.embedding.weight)
    assert not fused[VOCAB:].any()
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-6)


def test_flops_are_those_of_the_formula():
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    config = make_config(preset="gpt2", vocab_size=50257, seq_len=1024)
    weights = 12 * 12 * 768**2 + 50257 * 768
    expected = 6 * weights + 12 * 12 * 768 * 1024
    assert adapter.flops_per_token(config, 1024) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(855e6, rel=1e-3)


def test_a_source_of_period_two_is_learned():
    model = build(vocab_size=4, seq_len=16, num_layers=1, model_dim=32, num_heads=2)
    # At higher rates some starts stay at one bit, where rounding decides which.
    assert bits_of_period_two(model, lr=3e-3, num_steps=300) < 0.01


def test_dropout_acts_in_training_alone():
    model = build_perturbed(dropout=0.5)
    tokens = random_tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@torch.no_grad()
def test_dropout_acts_on_the_embedding_and_on_the_output_of_every_layer():
    model = build_perturbed(dropout=0.25, model_dim=64).double()
    tokens, seen = random_tokens(), {}

    def keep(name, module, which):
        module.register_forward_hook(lambda _, read, made: seen.update({name: (read, made)[which]}))

    for layer, block in enumerate(model.h):
        for part in (block.attn, block.mlp):
            name = f"{layer}.{type(part).__name__}"
            keep(name, part, 1)
            keep(f"{name}, whole", part.c_proj, 1)
    keep("stream", model.h[0], 0)
    model(tokens)
    stream = model.embedding(tokens) + model.pos_embed.weight[:LENGTH]
    assert_dropped(seen["stream"][0], stream, 0.25)
    outputs = [name for name in seen if f"{name}, whole" in seen]
    assert len(outputs) == 2 * len(model.h)
    for name in outputs:
        assert_dropped(seen[name], seen[f"{name}, whole"], 0.25)


@torch.no_grad()
def test_dropout_acts_on_the_weights_of_attention():
    """With values of 1 the first position's result is its one weight."""
    model = build_perturbed(dropout=0.25).double()
    attn = model.h[0].attn
    attn.c_attn.weight[64:].zero_()
    attn.c_attn.bias[64:].fill_(1)
    results = []
    attn.c_proj.register_forward_hook(lambda _, read, made: results.append(read[0][:, 0]))
    model(random_tokens(500, 1))
    heads = results[0].unflatten(-1, (4, -1))[..., 0]  # (B, H)
    assert_dropped(heads, torch.ones_like(heads), 0.25)


def test_fewer_tokens_than_the_tokenizer_has_are_refused():
    adapter = DefaultModelAdapter(GPT2Config, GPT2)
    with pytest.raises(ConfigError, match="vocab_size=61 is less than the 62 tokens of the toy"):
        adapter.build(make_config(**SMALL), ToyVocabulary(VOCAB + 1))


def test_text_longer_than_the_position_table_is_refused():
    model = build()
    with pytest.raises(ValueError, match=f"25 tokens do not fit .* model_cfg.seq_len={LENGTH}"):
        model(random_tokens(1, LENGTH + 1))
    with pytest.raises(ValueError, match="cache of 25 tokens outgrows"):
        model.init_cache(1, LENGTH + 1)
