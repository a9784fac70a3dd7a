"""The presets between the paper and the control: each changes one thing."""

import math

import pytest
import torch
from vanilla_models import DIM, LENGTH, build, build_perturbed, random_tokens


def test_the_walk_ends_at_the_control():
    control, walked = build_perturbed().double(), build(preset="custom").double()
    walked.load_state_dict(control.state_dict())
    expected = control(random_tokens())
    torch.testing.assert_close(walked(random_tokens()), expected, rtol=1e-10, atol=1e-10)


def test_the_walk_starts_its_last_form_as_the_control_starts():
    control = build(vocab_size=2000, model_dim=64)
    walked = build(preset="custom", vocab_size=2000, model_dim=64)
    for name, value in control.state_dict().items():
        other = walked.state_dict()[name]
        assert other.std().item() == pytest.approx(value.std().item(), rel=0.05)
        assert other.abs().max().item() == pytest.approx(value.abs().max().item(), rel=0.3)


def start_of(preset):
    """Deviation of every kind of matrix, and whether it is bounded as a uniform one is."""
    model = build(preset=preset, vocab_size=4000, seq_len=2000, model_dim=64)
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = float(parameter.detach().std())
            is_uniform = float(parameter.detach().abs().max()) < 1.8 * std
            found[name.removesuffix(".weight")] = std, is_uniform
    return found


def starts_otherwise(one, other):
    """Whether two matrices of `start_of` start by different rules, and not only other draws."""
    if one is None or other is None:
        return one is not other
    return one[1] != other[1] or abs(one[0] - other[0]) > 0.1 * max(one[0], other[0])


def test_every_step_among_start_values_changes_one_row_of_the_table():
    """What is learned starts alike on both sides of a step, but for what the step names."""
    inputs = {f"blocks.{i}.{n}" for i in range(2) for n in ("attention.qkv", "mlp.up")}
    outputs = {f"blocks.{i}.{n}" for i in range(2) for n in ("attention.out", "mlp.down")}
    named = {
        "v1": set(), "v2": set(), "v3": {"position"}, "v4": set(), "v5": set(),
        "v6": {"embedding", "position"} | inputs | outputs,
        "v7": set(), "v8": set(), "v9": {"position"}, "v10": set(), "v11": set(),
        "v12": {"head"}, "v13": set(), "v14": {"embedding"}, "v15": outputs, "v16": {"head"},
        "control": inputs,
    }  # fmt: skip
    before = start_of("v0")
    for preset, expected in named.items():
        after = start_of(preset)
        keys = before.keys() | after.keys()
        changed = {key for key in keys if starts_otherwise(before.get(key), after.get(key))}
        assert changed == expected, preset
        before = after


@torch.no_grad()
def test_learned_positions_start_at_the_scale_of_the_sinusoids():
    tokens, positions = random_tokens(2, LENGTH), torch.arange(LENGTH)
    parts = []
    for preset in ("v2", "v3"):
        model = build(preset=preset, model_dim=64)
        words = math.sqrt(64) * model.embedding.weight[tokens]
        parts.append(float((model.embed(tokens, positions) - words).square().mean().sqrt()))
        assert float(words.std()) == pytest.approx(1, rel=0.1)
    assert parts[0] == pytest.approx(0.5**0.5)
    assert parts[1] == pytest.approx(0.5**0.5, rel=0.1)


@torch.no_grad()
def test_unscaled_embeddings_are_the_same_numbers_with_the_same_head():
    scaled, plain = build(preset="v4").double(), build(preset="v5").double()
    plain.load_state_dict(scaled.state_dict())
    tokens, positions = random_tokens(), torch.arange(LENGTH)
    place = scaled.position.weight[:LENGTH]
    difference = scaled.embed(tokens, positions) - place
    torch.testing.assert_close(
        difference, math.sqrt(DIM) * (plain.embed(tokens, positions) - place), rtol=1e-9, atol=1e-9
    )
    assert scaled.embedding.weight.std() == pytest.approx(DIM**-0.5, rel=0.05)
