import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.nn.mamba2 import Mamba2Mixer
from nanozoo_core.ops.ssd import ssd_reference

CPU = torch.device("cpu")


def make_mixer(model_dim=16, *, chunk_size=8, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = Mamba2Mixer(
            model_dim, state_dim=6, conv_kernel=4, expand=2, head_dim=8, chunk_size=chunk_size
        )
    return mixer.to(dtype)


def make_input(batch, length, model_dim=16, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, model_dim, generator=generator).to(dtype)


def mixer_by_definition(mixer, u):
    """The layer written out: one fused projection, a padded convolution, the plain recurrence."""
    inner, state, heads = mixer.inner_dim, mixer.state_dim, mixer.A_log.shape[0]
    fused = torch.cat([mixer.in_proj.weight, mixer.dt_proj.weight])
    z, xbc, dt = (u @ fused.T).split([inner, inner + 2 * state, heads], dim=-1)
    xbc = F.silu(mixer.conv(F.pad(xbc.mT, (3, 0))).mT)
    x, b, c = xbc.split([inner, state, state], dim=-1)
    delta = F.softplus(dt + mixer.dt_bias)
    x = x.unflatten(-1, (heads, -1))
    y, _ = ssd_reference(x, delta, -mixer.A_log.exp() * delta, b, c, skip=mixer.skip)
    gated = y.flatten(-2) * F.silu(z)
    gated = gated * (gated.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * mixer.norm.weight
    return gated @ mixer.out_proj.weight.T


@pytest.mark.parametrize("length", [1, 2, 8, 21])
def test_equals_its_definition(length):
    mixer = make_mixer(dtype=torch.float64)
    u = make_input(2, length, dtype=torch.float64)
    torch.testing.assert_close(mixer(u), mixer_by_definition(mixer, u), atol=1e-10, rtol=1e-10)


def test_groups_and_biases_keep_steps_equal_to_the_whole_sequence():
    torch.manual_seed(0)
    mixer = Mamba2Mixer(16, state_dim=6, head_dim=8, num_groups=2, bias=True, conv_bias=False)
    assert mixer.conv.bias is None
    u, state = make_input(2, 12), mixer.init_state(2, CPU)
    steps = [mixer.step(u_t, state) for u_t in u.unbind(1)]
    torch.testing.assert_close(torch.stack(steps, 1), mixer(u), atol=1e-5, rtol=1e-5)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_groups=3 does not divide the 4 heads"):
        Mamba2Mixer(16, head_dim=8, num_groups=3)


@pytest.mark.slow  # importing transformers takes seconds
def test_equals_the_transformers_layer():
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

    mixer = make_mixer()
    config = transformers.Mamba2Config(
        hidden_size=16, state_size=6, conv_kernel=4, expand=2, head_dim=8, num_heads=4, n_groups=1,
        chunk_size=8, layer_norm_epsilon=1e-5,
    )  # fmt: skip
    theirs = Theirs(config, layer_idx=0).eval()
    with torch.no_grad():
        mixer.norm.weight.uniform_(0.5, 1.5)
        mixer.skip.uniform_(0.5, 1.5)
    weights = {
        "in_proj.weight": torch.cat([mixer.in_proj.weight, mixer.dt_proj.weight]),
        "conv1d.weight": mixer.conv.weight,
        "conv1d.bias": mixer.conv.bias,
        "dt_bias": mixer.dt_bias,
        "A_log": mixer.A_log,
        "D": mixer.skip,
        "norm.weight": mixer.norm.weight,
        "out_proj.weight": mixer.out_proj.weight,
    }
    theirs.load_state_dict(weights)
    u = make_input(2, 21)
    torch.testing.assert_close(mixer(u), theirs(u), atol=1e-5, rtol=1e-5)


def test_a_change_leaves_earlier_outputs_alone():
    mixer, u = make_mixer(), make_input(1, 40)
    changed = u.clone()
    changed[:, 23] += 1
    before, after = mixer(u), mixer(changed)
    torch.testing.assert_close(after[:, :23], before[:, :23], atol=1e-6, rtol=1e-6)
    assert ((after - before).abs().amax(-1)[:, 23:] > 1e-6).all()


def test_segments_equal_separate_sequences():
    mixer, u = make_mixer(), make_input(1, 30)
    segments = (torch.arange(30) >= 13).long()[None]
    y = mixer(u, segments=segments)
    alone = torch.cat([mixer(u[:, :13]), mixer(u[:, 13:])], dim=1)
    torch.testing.assert_close(y, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 3, 8, 29])
def test_handing_over_the_state_equals_one_pass(cut):
    mixer, u = make_mixer(), make_input(2, 30)
    state = mixer.init_state(2, CPU)
    parts = [mixer(u[:, :cut], state), mixer(u[:, cut:], state)]
    torch.testing.assert_close(torch.cat(parts, 1), mixer(u), atol=1e-5, rtol=1e-5)


def test_ragged_prefill_and_steps_equal_each_row_alone():
    mixer, u = make_mixer(), make_input(4, 30)
    lengths = torch.tensor([1, 2, 9, 22])
    state = mixer.init_state(4, CPU)
    prefix = mixer(u[:, :22], state, lengths=lengths)
    steps = []
    for i in range(8):
        at_end = u[torch.arange(4), lengths + i]
        steps.append(mixer.step(at_end, state))
    for row, length in enumerate(lengths.tolist()):
        whole = mixer(u[row : row + 1, : length + 8])[0]
        got = torch.cat([prefix[row, :length], torch.stack(steps, 1)[row]])
        torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_steps_of_some_rows_leave_the_others_alone():
    mixer, u = make_mixer(), make_input(4, 6)
    state, apart = mixer.init_state(4, CPU), mixer.init_state(2, CPU)
    mixer(u, state)
    mixer(u[[0, 2]], apart)
    others = state.conv[[1, 3]].clone(), state.ssm[[1, 3]].clone()
    rows, new = torch.tensor([0, 2]), make_input(2, 1, seed=5)[:, 0]
    torch.testing.assert_close(mixer.step(new, state, rows=rows), mixer.step(new, apart))
    torch.testing.assert_close(state.ssm[rows], apart.ssm)
    torch.testing.assert_close(state.conv[rows], apart.conv)
    assert torch.equal(state.conv[[1, 3]], others[0])
    assert torch.equal(state.ssm[[1, 3]], others[1])


def test_the_state_carries_gradients():
    mixer, u = make_mixer(), make_input(1, 20).requires_grad_()
    (whole,) = torch.autograd.grad(mixer(u)[:, 12:].sum(), u)
    state = mixer.init_state(1, CPU)
    mixer(u[:, :12], state)
    (parts,) = torch.autograd.grad(mixer(u[:, 12:], state).sum(), u)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_initial_values_are_the_published_ones():
    mixer = Mamba2Mixer(256, state_dim=16, head_dim=2)  # 256 heads
    delta = F.softplus(mixer.dt_bias)
    assert 1e-3 * 0.999 <= delta.min() < 2e-3
    assert 5e-2 < delta.max() <= 1e-1 * 1.001
    assert 1 <= mixer.A_log.exp().min() < 2
    assert 15 < mixer.A_log.exp().max() <= 16.001
    assert (mixer.skip == 1).all()
    assert mixer.conv.weight.abs().max() <= 0.5  # 1 / sqrt(conv_kernel)


def test_every_parameter_gets_a_gradient():
    mixer = make_mixer()
    mixer(make_input(2, 10)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_blocks_for_muon_cover_the_projection():
    mixer = make_mixer()
    assert sum(mixer.in_proj.weight.muon_split) == mixer.in_proj.weight.shape[0]


def test_bfloat16_autocast_stays_near_float32():
    mixer, u = make_mixer(), make_input(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        low = mixer(u)
    high = mixer(u)
    # Three roundings to 8 bits on the way (projection, convolution, output), each 2^-9 relative.
    assert (low.float() - high).abs().max() < 4 * 2**-8 * high.abs().max()


def test_head_dim_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="head_dim=24 does not divide"):
        Mamba2Mixer(16, head_dim=24)
