import pytest
import torch
from torch import nn

from nanozoo_core.errors import CheckpointError
from nanozoo_core.testing.training import make_muon


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_all(parameters, *, seed, **options):
    """One step of a fresh Muon over copies of `parameters`, with gradients made from `seed`."""
    copies = [nn.Parameter(p.clone()) for p in parameters]
    for i, copy in enumerate(copies):
        copy.grad = normal(*copy.shape, seed=seed + i)
    make_muon(copies, **options).step()
    return [copy.detach() for copy in copies]


def run(muon, parameters, steps):
    for step in steps:
        for i, parameter in enumerate(parameters):
            gradient = normal(*parameter.shape, seed=1000 * step + i)
            parameter.grad = gradient.to(parameter.dtype)
        muon.step()


def test_fused_rows_update_as_separate_matrices():
    fused = nn.Parameter(normal(56, 32))
    fused.muon_split = (32, 16, 8)
    parts = [nn.Parameter(p.clone()) for p in fused.detach().split(fused.muon_split)]
    fused.grad = normal(56, 32, seed=1)
    for part, grad in zip(parts, fused.grad.split(fused.muon_split), strict=True):
        part.grad = grad.clone()
    make_muon([fused], neuron_axis="shape").step()
    make_muon(parts, neuron_axis="shape").step()
    torch.testing.assert_close(fused, torch.cat([*parts]), atol=1e-6, rtol=0)


def test_bank_updates_each_expert_and_its_blocks():
    bank = nn.Parameter(normal(3, 24, 16))
    bank.muon_split = (16, 8)
    blocks = [nn.Parameter(b.clone()) for e in bank.detach() for b in e.split((16, 8))]
    bank.grad = normal(3, 24, 16, seed=1)
    grads = [g.clone() for e in bank.grad for g in e.split((16, 8))]
    for block, grad in zip(blocks, grads, strict=True):
        block.grad = grad
    make_muon([bank]).step()
    make_muon(blocks).step()
    expected = torch.stack([torch.cat(blocks[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(bank, expected, atol=1e-6, rtol=0)


def test_filters_with_channels_are_one_matrix():
    filters = nn.Conv1d(12, 20, 3).weight
    filters.muon_flatten = True
    flat = nn.Parameter(filters.detach().flatten(1).clone())
    filters.grad = normal(20, 12, 3)
    flat.grad = filters.grad.flatten(1)
    make_muon([filters]).step()
    make_muon([flat]).step()
    assert torch.equal(filters.flatten(1), flat)


def test_stacking_does_not_mix_matrices():
    parameters = [normal(24, 40, seed=i) for i in range(4)]
    together = step_all(parameters, seed=50)
    for i, parameter in enumerate(parameters):
        (alone,) = step_all([parameter], seed=50 + i)
        torch.testing.assert_close(together[i], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameter_without_gradient_stays_as_it_is(dtype):
    parameters = [nn.Parameter(normal(16, 24, seed=i).to(dtype)) for i in range(3)]
    muon = make_muon([(f"w{i}", p) for i, p in enumerate(parameters)], weight_decay=0.1)

    def step(with_gradient):
        for i, parameter in enumerate(parameters):
            parameter.grad = normal(16, 24, seed=9).to(dtype) if i in with_gradient else None
        muon.step()

    step({0, 1, 2})
    weights = [p.detach().clone() for p in parameters]
    state = muon.full_state()
    step({0, 2})
    assert torch.equal(parameters[1], weights[1])
    assert torch.equal(muon.full_state()["w1.momentum"], state["w1.momentum"])
    assert not torch.equal(parameters[0], weights[0])
    assert not torch.equal(parameters[2], weights[2])
    step(set())
    assert torch.equal(parameters[1], weights[1])


def test_rates_are_read_at_every_step():
    start = normal(16, 24)
    parameter = nn.Parameter(start.clone())
    muon = make_muon([parameter], lr=0.1)
    for _ in range(2):  # a scheduler that rewrites lr leaves lr_mult alone
        muon.param_groups[0]["lr"] = 0.0
        parameter.grad = normal(16, 24, seed=1)
        muon.step()
    assert torch.equal(parameter, start)
    muon.param_groups[0]["lr"] = 0.1
    muon.param_groups[0]["lr_mult"] = 2.0
    muon.step()
    assert not torch.equal(parameter, start)


def test_lr_mult_scales_the_update():
    start, gradient = torch.zeros(16, 24), normal(16, 24)
    ends = []
    for lr_mult in (1.0, 4.0):
        parameter = nn.Parameter(start.clone())
        parameter.grad = gradient
        make_muon([parameter], lr_mult=lr_mult).step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[1], 4 * ends[0])


def test_float64_runs_in_float64():
    parameter = nn.Parameter(torch.zeros(16, 24, dtype=torch.float64))
    gradient = normal(16, 24).double()
    parameter.grad = gradient
    make_muon([parameter], orth="exact", beta2=None, lr=1.0).step()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close(-parameter.detach(), u @ vh, atol=1e-10, rtol=0)


def test_options_outside_their_lists_are_refused():
    for key in ("orth", "orth_dtype", "neuron_axis", "lr_scale", "wd_power"):
        with pytest.raises(ValueError, match=f"Muon's {key}='bad'"):
            make_muon([nn.Parameter(normal(4, 4))], **{key: "bad"})


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 8), (3, 1, 8)])
def test_parameters_that_are_no_matrix_are_refused_by_name(shape):
    with pytest.raises(ValueError, match="cannot update 'odd'"):
        make_muon([("odd", nn.Parameter(torch.zeros(shape)))])


@pytest.mark.parametrize("split", [(4, 3), (7, 1), (8, 0)])
def test_splits_that_do_not_cut_the_rows_are_refused(split):
    parameter = nn.Parameter(normal(8, 4))
    parameter.muon_split = split
    with pytest.raises(ValueError, match="muon_split"):
        make_muon([("w", parameter)])


@pytest.mark.parametrize("neuron_axis", ["out", "shape"])
def test_state_restores_to_the_same_bits(neuron_axis):
    def fresh():
        parameters = [nn.Parameter(normal(*s)) for s in [(24, 16), (16, 24), (3, 12, 20)]]
        parameters[0].muon_split = (8, 16)
        named = [(f"w{i}", p) for i, p in enumerate(parameters)]
        return parameters, make_muon(named, neuron_axis=neuron_axis, weight_decay=0.1, lr=0.03)

    whole, muon = fresh()
    run(muon, whole, range(6))
    first, muon = fresh()
    run(muon, first, range(3))
    stored = muon.state_dict()
    second, muon = fresh()
    for a, b in zip(second, first, strict=True):
        a.data.copy_(b)
    muon.load_state_dict(stored)
    assert muon.param_groups[0]["lr"] == 0.03
    run(muon, second, range(3, 6))
    for a, b in zip(second, whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda s: s.pop("w.momentum"), "w.momentum"),
        (lambda s: s.update({"v.momentum": torch.zeros(4, 8)}), "v.momentum"),
        (lambda s: s.update({"w.momentum": torch.zeros(8, 4)}), "w.momentum"),
    ],
)
def test_foreign_state_is_refused_by_key(change, key):
    muon = make_muon([("w", nn.Parameter(normal(4, 8)))])
    state = muon.full_state()
    change(state)
    with pytest.raises(CheckpointError, match=key):
        muon.load_full_state(state)


@pytest.mark.parametrize("neuron_axis", ["out", "shape"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_blocks_of_the_whole_state_and_fill_a_fresh_one(neuron_axis, dtype):
    plain = nn.Parameter(normal(24, 16).to(dtype))
    fused = nn.Parameter(normal(56, 32).to(dtype))
    fused.muon_split = (32, 16, 8)
    bank = nn.Parameter(normal(3, 24, 16).to(dtype))
    bank.muon_split = (16, 8)
    filters = nn.Parameter(normal(20, 12, 3).to(dtype))
    filters.muon_flatten = True
    parameters = [plain, fused, bank, filters]
    muon = make_muon(parameters, neuron_axis=neuron_axis)
    run(muon, parameters, range(2))
    whole = muon.full_state()
    pieces = muon.pieces()
    assert pieces.keys() == whole.keys()
    for key, value in whole.items():
        found, times = torch.zeros_like(value), torch.zeros(value.shape)
        for piece in pieces[key]:
            assert piece.whole == tuple(value.shape)
            found[piece.place] = piece.tensor
            times[piece.place] += 1
        assert (times == 1).all()
        torch.testing.assert_close(found, value, rtol=0, atol=0)
    assert max(map(len, pieces.values())) == 6
    fresh = make_muon(parameters, neuron_axis=neuron_axis)
    fresh.load_full_state(whole)
    for key, value in fresh.full_state().items():
        torch.testing.assert_close(value, whole[key], rtol=0, atol=0)
