import math

import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.config import model_config
from nanozoo_core.errors import NanozooError
from nanozoo_core.ops.selective_scan import selective_scan_reference
from nanozoo_mamba.mamba1 import Mamba1Mixer
from nanozoo_mamba.model import Mamba

VOCAB = 29
VARIANTS = {
    "mamba1": {"d_state": 8},
    "mamba2": {"variant": "mamba2", "d_state": 8, "head_dim": 16, "chunk_size": 16},
    "mamba2, groups": {
        "variant": "mamba2", "d_state": 8, "head_dim": 16, "chunk_size": 16, "num_groups": 2,
    },
    "mamba1, MLP": {"d_state": 8, "mlp_dim": 48, "use_bias": True, "tie_embeddings": False},
}  # fmt: skip
each_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def make(settings, **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "seq_len": 64, "num_layers": 2, "model_dim": 32}
    return Mamba(model_config("mamba", shape | settings | changes)).eval()


def tokens(batch=2, length=64):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def mixer_by_definition(mixer, u):
    """The layer written out: a padded convolution and the plain recurrence."""
    x, z = (u @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    x = F.silu(mixer.conv(F.pad(x.mT, (3, 0))).mT)
    rank, states, _ = mixer.split
    low_rank, b, c = (x @ mixer.x_proj.weight.T).split([rank, states, states], dim=-1)
    delta = F.softplus(mixer.dt_proj(low_rank))
    y, _ = selective_scan_reference(x, delta, -mixer.A_log.exp(), b, c, skip=mixer.skip)
    return (y * F.silu(z)) @ mixer.out_proj.weight.T


def make_mixer(dtype=torch.float64):
    torch.manual_seed(0)
    return Mamba1Mixer(16, state_dim=6).to(dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 21])
def test_the_mixer_equals_its_definition(length):
    mixer = make_mixer()
    u = torch.randn(2, length, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(u), mixer_by_definition(mixer, u), atol=1e-10, rtol=1e-10)


def test_without_b_the_mixer_reaches_as_far_as_its_convolution():
    mixer = make_mixer()
    with torch.no_grad():
        mixer.x_proj.weight[mixer.split[0] : mixer.split[0] + 6] = 0
    u = torch.randn(1, 20, 16, dtype=torch.float64)
    changed = u.clone()
    changed[:, 7] += 1
    differs = (mixer(u) - mixer(changed)).abs().amax(-1)[0] > 1e-12
    assert differs.nonzero().flatten().tolist() == [7, 8, 9, 10]


def test_a_ragged_prefill_and_steps_of_some_rows_equal_each_row_alone():
    mixer, u = make_mixer(), torch.randn(3, 12, 16, dtype=torch.float64)
    lengths = torch.tensor([1, 2, 9])
    state = mixer.init_state(3, torch.device("cpu"), torch.float64)
    state.ssm = state.ssm.double()
    prefix = mixer(u[:, :9], state, lengths=lengths)
    rows = torch.tensor([0, 2])
    steps = [mixer.step(u[rows, lengths[rows] + i], state, rows=rows) for i in range(3)]
    for place, row in enumerate(rows.tolist()):
        length = int(lengths[row])
        whole = mixer(u[row : row + 1, : length + 3])[0]
        got = torch.cat([prefix[row, :length], torch.stack(steps, 1)[place]])
        torch.testing.assert_close(got, whole, atol=1e-12, rtol=1e-12)


# -- the start ------------------------------------------------------------------------------------


def test_scan_parameters_start_as_published():
    mixer = Mamba1Mixer(256, state_dim=16)
    delta = F.softplus(mixer.dt_proj.bias)
    assert 1e-3 * 0.999 <= delta.min() < 2e-3
    assert 5e-2 < delta.max() <= 1e-1 * 1.001
    expected = torch.arange(1, 17.0).log().expand(512, 16)
    assert torch.equal(mixer.A_log, expected)
    assert (mixer.skip == 1).all()
    assert mixer.dt_proj.weight.abs().max() <= 16**-0.5
    assert mixer.dt_proj.weight.std().item() == pytest.approx(16**-0.5 / 3**0.5, rel=0.05)


def test_the_constant_scheme_and_its_scale():
    mixer = make({}, time_step_init_scheme="constant", time_step_scale=2.0).blocks[0].mixer
    assert (mixer.dt_proj.weight == 2 / math.sqrt(2)).all()


def test_step_sizes_do_not_start_below_the_floor():
    mixer = make({}, time_step_min=1e-3, time_step_floor=5e-2).blocks[0].mixer
    assert F.softplus(mixer.dt_proj.bias).min() >= 5e-2 * 0.999


@each_variant
def test_building_a_model_leaves_the_scan_parameters_alone(settings):
    """A rule for all Linear biases would wipe the step sizes out."""
    model = make(settings, time_step_min=0.01, time_step_max=0.05)
    for block in model.each_block():
        bias = getattr(block.mixer, "dt_bias", None)
        delta = F.softplus(block.mixer.dt_proj.bias if bias is None else bias)
        assert delta.min() >= 0.01 * 0.999
        assert delta.max() <= 0.05 * 1.001


@pytest.mark.parametrize(("mlp_dim", "additions"), [(0, 4), (64, 8)])
def test_outputs_start_smaller_by_the_root_of_their_number(mlp_dim, additions):
    settings = {"num_layers": 4, "model_dim": 64, "mlp_dim": mlp_dim}
    scaled = make({}, **settings)
    plain = make({}, rescale_prenorm_residual=False, **settings)
    for one, two in zip(scaled.each_block(), plain.each_block(), strict=True):
        for small, large in zip(one.outputs(), two.outputs(), strict=True):
            torch.testing.assert_close(small.weight * math.sqrt(additions), large.weight)
        assert torch.equal(one.mixer.in_proj.weight, two.mixer.in_proj.weight)


# -- the model ------------------------------------------------------------------------------------


@each_variant
@torch.no_grad()
def test_decoding_in_any_pieces_equals_one_pass(settings):
    model = make(settings)
    whole = model(tokens())
    for pieces in ([1] * 64, [1, 2, 61], [6, 1, 1, 56], [30, 34], [63, 1]):
        cache = model.init_cache(2, 64)
        parts = [model(part, cache) for part in tokens().split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
        assert cache.lengths.tolist() == [64, 64]


@each_variant
@torch.no_grad()
def test_a_change_leaves_earlier_logits_alone_to_the_last_bit(settings):
    model = make(settings)
    changed = tokens()
    changed[:, 40] = (changed[:, 40] + 1) % VOCAB
    before, after = model(tokens()), model(changed)
    assert torch.equal(before[:, :32], after[:, :32])
    torch.testing.assert_close(before[:, :40], after[:, :40], rtol=0, atol=1e-6)
    assert (before[:, 40:] - after[:, 40:]).abs().amax(-1).min() > 0


@each_variant
@torch.no_grad()
def test_documents_equal_separate_texts(settings):
    model = make(settings)
    documents = (torch.arange(64) >= 23).long().expand(2, -1)
    apart = [model.features(part) for part in tokens().split([23, 41], dim=1)]
    together = model.features(tokens(), documents=documents)
    torch.testing.assert_close(together, torch.cat(apart, 1), rtol=1e-5, atol=1e-5)
    assert (together - model.features(tokens())).abs().max() > 1e-4


def test_a_cache_refuses_to_forget():
    model = make({})
    cache = model.init_cache(2, 8)
    with torch.no_grad():
        model(tokens(2, 5), cache)
    cache.crop(torch.tensor([5, 5]))
    with pytest.raises(NanozooError, match="cannot forget"):
        cache.crop(torch.tensor([5, 4]))


def test_the_cache_does_not_grow():
    model = make({})
    assert model.init_cache(1, 10).num_bytes == model.init_cache(1, 10_000).num_bytes


@each_variant
def test_every_parameter_gets_a_gradient(settings):
    model = make(settings)
    model(tokens()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("in_fp32", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_stream_keeps_its_precision_under_autocast(in_fp32, dtype):
    model = make({}, residual_in_fp32=in_fp32)
    seen = []
    for block in model.each_block():
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(tokens())
    assert seen == [dtype, dtype]
