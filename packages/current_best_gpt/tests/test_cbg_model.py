"""Laws of the whole model: causality, what is left when all is off, and what parts do at first."""

import math

import pytest
import torch
import torch.nn.functional as F
from cbg_models import FULL, PLAIN, make_model, perturb, tokens_of

from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.norms import rms_norm


@pytest.mark.parametrize("place", [1, 17, 40, 63])
def test_a_token_changes_nothing_before_it(place):
    model = make_model(FULL)
    perturb(model, 0.3)
    tokens = tokens_of(2, 64)
    changed = tokens.clone()
    changed[0, place] = 0  # a document begins here, or ends there
    changed[1, place] = (changed[1, place] + 1) % 20
    changed[0, place] += int(tokens[0, place] == 0)
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place] - after[:, place]).abs().amax(-1).min() > 1e-3


def test_a_document_sees_nothing_of_the_one_before():
    model = make_model(FULL)
    perturb(model, 0.3)
    first, second = tokens_of(1, 20, seed=1), tokens_of(1, 20, seed=2)
    second[:, 0] = 0
    other = tokens_of(1, 20, seed=3)
    with torch.no_grad():
        after_first = model(torch.cat([first, second], 1))[:, 20:]
        after_other = model(torch.cat([other, second], 1))[:, 20:]
    torch.testing.assert_close(after_first, after_other, atol=1e-5, rtol=1e-5)


def test_without_resets_the_token_before_a_document_is_seen():
    model = make_model(FULL, document_mask=False, reset_at_document=False)
    perturb(model, 0.3)
    tokens = tokens_of(1, 20, separators=False)
    tokens[:, 10] = 0
    changed = tokens.clone()
    changed[:, 9] = changed[:, 9] % 19 + 1
    with torch.no_grad():
        difference = (model(tokens) - model(changed))[:, 10].abs().max()
    assert difference > 1e-3


def plain_decoder(model, tokens):
    """RMS norms, rotary positions on half of each head, QK-norm, squared ReLU: written out."""
    x = rms_norm(model.embedding(tokens), 2**-23)
    count = model.config.rotary_dim // 2
    frequencies = 1024 ** -torch.linspace(0, 1, count)
    angles = torch.arange(tokens.shape[1])[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles)  # (T, R / 2)

    def rotate(z):
        first, second, rest = z.split([count, count, z.shape[-1] - 2 * count], dim=-1)
        turned = torch.complex(first, second) * turn
        return torch.cat([turned.real, turned.imag, rest], dim=-1)

    for block in model.blocks:
        a = rms_norm(x, 2**-23)
        q, k, v = F.linear(a, 0.5 * block.attention.qkv.weight).chunk(3, dim=-1)
        q, k, v = (z.unflatten(-1, (4, -1)).transpose(1, 2) for z in (q, k, v))
        y = attend(rotate(rms_norm(q, 2**-23)), rotate(rms_norm(k, 2**-23)), v)
        x = x + block.attention.out(y.transpose(1, 2).flatten(2))
        x = x + block.mlp.down(F.relu(block.mlp.up(rms_norm(x, 2**-23))).square())
    return F.linear(rms_norm(x, 2**-23), model.embedding.weight)


def test_with_all_ingredients_off_a_plain_decoder_is_left():
    model = make_model(PLAIN)
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.2)
    tokens = tokens_of(2, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens), plain_decoder(model, tokens), atol=1e-5, rtol=1e-5
        )


NO_OPS = {
    "smear": {"smear": True},
    "bigram": {"bigram_rows": 64},
    "x0": {"x0_injection": True},
    "xsa": {"xsa_layers": (1,)},
    "dc": {"dc_layers": (3,), "dc_window": 5},
    "mudd": {"mudd": True, "snapshot_layer": 1},
}
CHANGES = {
    "gate": {"attn_gate_layers": (1,)},
    "offset": {"key_offset": True},
    "pairs": {"paired_layers": (0,)},
    "values": {"value_embed_layers": (1,)},
    "backout": {"backout": 0.5, "snapshot_layer": 1},
    "shared": {"shared_attention_input": True, "snapshot_layer": 0},
    "windows": {"windows": ((5, 9),)},
    "residual": {"residual_scale": 1.3},
    "softcap": {"softcap": (23.0, 5.0, 7.5)},
    "rotary": {"rope_fraction": 1.0},
    "no QK-norm": {"qk_norm": False},
    "scale": {"attn_scale": 0.9},
    "gelu": {"activation": "gelu"},
}


def logits_with(changes):
    """Of the plain decoder with one ingredient; what both have starts alike, and large."""
    plain, model = make_model(PLAIN), make_model(PLAIN, **changes)
    generator = torch.Generator().manual_seed(0)
    shared = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in shared.items():
            if name.endswith("weight"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if name in shared and name.endswith("weight"):
                parameter.copy_(shared[name])
        return plain(tokens_of(2, 48)), model(tokens_of(2, 48))


@pytest.mark.parametrize("changes", NO_OPS.values(), ids=NO_OPS)
def test_what_should_do_nothing_at_first_does_nothing(changes):
    torch.testing.assert_close(*logits_with(changes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_what_should_act_at_first_acts(changes):
    before, after = logits_with(changes)
    assert (before - after).abs().max() > 1e-2


def test_what_is_without_gradient_at_first_is_known():
    """All that stands before a zero, and nothing else."""
    model = make_model(FULL).train()
    tokens = tokens_of(4, 32)
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    gates = {f"{name}.w1" for name in ("early_gates", "late_gates", "mix", "blocks.3.mix")}
    ups = {f"blocks.{layer}.mlp.up.weight" for layer in range(4)}
    # Layer 2 has no attention, and its MLP gives zero.
    assert still == gates | ups | {"smear_gate", "blocks.2.add"}


def test_loss_at_first_is_that_of_a_uniform_guess():
    model = make_model(FULL, vocab_size=300, model_dim=64)
    tokens = torch.randint(300, (8, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert math.log(300) <= float(loss) <= math.log(300) + 0.05


def test_the_softcap_is_the_sigmoid_of_the_record():
    model = make_model(PLAIN, softcap=(23.0, 5.0, 7.5))
    perturb(model, 0.3)
    tokens = tokens_of(2, 30)
    with torch.no_grad():
        features = model.features(tokens)
        z = F.linear(features / model.feature_scale, model.output_weight)
        expected = 23 * torch.sigmoid((z + 5) / 7.5)
        torch.testing.assert_close(model.logits(features), expected, atol=1e-4, rtol=1e-5)
    assert expected.min() > 0
    assert expected.max() < 23


def test_the_whole_model_compiles():
    model = make_model(FULL)
    perturb(model)
    tokens = tokens_of(2, 24)
    compiled = torch.compile(lambda t: model.features(t, stage=0), backend="aot_eager")
    with torch.no_grad():
        found, expected = compiled(tokens), model.features(tokens, stage=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
