import math

import pytest
import torch
from torch import nn

from nanozoo_core.optim.update import equalize_neurons, merge_halves, muon_update, split_halves
from nanozoo_core.testing.training import make_muon

PLAIN = {"orth": "ns5", "beta2": None, "cautious": False}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_grad(value, grad):
    parameter = nn.Parameter(value.clone())
    parameter.grad = grad.clone()
    return parameter


def one_step(weight, grad, **options):
    """The weight after one step of a fresh Muon."""
    parameter = with_grad(weight, grad)
    make_muon([parameter], **options).step()
    return parameter.detach()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_gradient_does_not_matter(scale):
    weight, grad = torch.zeros(24, 40), normal(24, 40)
    expected = one_step(weight, grad)
    found = one_step(weight, scale * grad)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max(), rtol=0)


@pytest.mark.parametrize("beta2", [None, 0.95])
def test_zero_gradient_only_decays(beta2):
    weight, grad = normal(24, 40), torch.zeros(24, 40)
    assert torch.equal(one_step(weight, grad, beta2=beta2), weight)
    decayed = one_step(weight, grad, beta2=beta2, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(decayed, weight * 0.95)


@pytest.mark.parametrize("wd_power", [1, 2])
def test_cautious_decay_spares_what_the_update_grows(wd_power):
    # A step of O = g for an orthogonal g, up to a positive factor: the signs are those of g.
    grad = torch.linalg.qr(normal(32, 32))[0]
    options = {"lr": 0.1, "weight_decay": 0.5, "wd_power": wd_power}
    none = {"lr": 0.1, "weight_decay": 0.0}
    outward, inward = -grad, grad
    assert torch.equal(one_step(outward, grad, **options), one_step(outward, grad, **none))
    plain = one_step(inward, grad, cautious=False, **options)
    torch.testing.assert_close(one_step(inward, grad, **options), plain, atol=1e-7, rtol=1e-6)
    assert not torch.equal(one_step(inward, grad, **options), one_step(inward, grad, **none))


def test_decay_amounts():
    weight, grad = normal(64, 16), torch.zeros(64, 16)
    options = {"lr": 0.1, "lr_mult": 0.5, "weight_decay": 0.2}
    first = one_step(weight, grad, **options)
    torch.testing.assert_close(first, weight * (1 - 0.1 * 0.5 * 0.2))
    second = one_step(weight, grad, wd_power=2, **options)
    torch.testing.assert_close(second, weight * (1 - 0.1 * 0.2 * (0.1 * 0.5 * 2.0)))


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (96, 96)])
@pytest.mark.parametrize("ours", ["spectral", "match_rms_adamw", "spectral_unclamped", "none"])
def test_rate_rules_equal_torchs(shape, ours):
    from torch.optim import _muon

    rule = "original" if ours == "spectral" else ours
    weight, grad = torch.zeros(shape), normal(*shape)
    plain = one_step(weight, grad, lr=1.0, lr_scale="none", **PLAIN)
    scaled = one_step(weight, grad, lr=1.0, lr_scale=ours, **PLAIN)
    factor = _muon._adjust_lr(1.0, rule, torch.Size(shape))
    torch.testing.assert_close(scaled, plain * factor, atol=0, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_agrees_with_torch_muon_on_what_both_know(nesterov):
    shapes = [(64, 256), (256, 64), (128, 128)]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": nesterov}
    ours = [nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = make_muon(ours, orth_dtype="bfloat16", eps=1e-7, **PLAIN, **options)
    oracle = torch.optim.Muon(theirs, eps=1e-7, **options)
    for step in range(20):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = normal(*a.shape, seed=100 * step + i)
            b.grad = a.grad.clone()
        muon.step()
        oracle.step()
    for a, b in zip(ours, theirs, strict=True):
        # bfloat16 keeps 8 bits of a direction whose entries are about 1 / sqrt(64).
        torch.testing.assert_close(a, b, atol=3e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 48, 16), (2, 16, 48), (1, 32, 32)])
@pytest.mark.parametrize("per_row", [True, False])
def test_neuron_scaling_keeps_the_frobenius_norm(shape, per_row):
    b, m, n = shape
    update = normal(*shape) * torch.exp(normal(b, m, 1, seed=1))
    second_moment = normal(b, m, 1, seed=2).square() if per_row else normal(b, 1, n).square()
    scaled = equalize_neurons(update, second_moment, 0.9)
    ratio = scaled.double().norm(dim=(1, 2)) / update.double().norm(dim=(1, 2))
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-6, rtol=0)


def test_neuron_scaling_with_unit_moments_is_the_identity():
    update = normal(3, 8, 12)
    found = equalize_neurons(update, torch.ones(3, 8, 1), 1.0)
    torch.testing.assert_close(found, update, atol=1e-6, rtol=1e-6)


def test_neurons_come_to_move_equally():
    def variation(change):
        rms = change.square().mean(dim=1).sqrt()
        return float(rms.std() / rms.mean())

    scales = torch.exp(normal(512, 1, seed=7))
    parameter = nn.Parameter(torch.zeros(512, 128))
    muon = make_muon([parameter], lr=1.0)
    changes = []
    for step in range(50):
        before = parameter.detach().clone()
        parameter.grad = scales * normal(512, 128, seed=step)
        muon.step()
        changes.append(parameter.detach() - before)
    plain = one_step(torch.zeros(512, 128), scales * normal(512, 128), lr=1.0, beta2=None)
    assert variation(plain) > 0.5
    assert variation(changes[-1]) < 0.1


def test_halves_are_the_number_bit_for_bit():
    x = torch.cat([normal(1000), torch.tensor([0.0, -0.0, 1e-42, -3e38, math.inf])])
    high, low = split_halves(x)
    assert (high.dtype, low.dtype) == (torch.bfloat16, torch.uint16)
    assert torch.equal(merge_halves(high, low).view(torch.int32), x.view(torch.int32))


def test_bfloat16_weights_follow_the_float32_run_bit_for_bit():
    start = normal(2, 32, 48).bfloat16()
    full = nn.Parameter(start.float())
    half = nn.Parameter(start.clone())
    options = {"lr": 1e-4, "weight_decay": 0.1}  # steps far below half a place of bfloat16
    muons = make_muon([("w", full)], **options), make_muon([("w", half)], **options)
    for step in range(100):
        half.grad = normal(2, 32, 48, seed=step).bfloat16()
        full.grad = half.grad.float()
        for muon in muons:
            muon.step()
    low = muons[1].full_state()["w.low_half"]
    assert torch.equal(merge_halves(half.detach(), low), full.detach())
    assert not torch.equal(half.detach(), start)


def test_new_rates_do_not_recompile():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(muon_update, backend=counter, fullgraph=True, dynamic=False)
    weights, grads, momentum = normal(2, 8, 16), normal(2, 8, 16), torch.zeros(2, 8, 16)
    moments = torch.zeros(2, 8, 1)
    for rate, decay, mu in [(0.1, 0.01, 0.9), (0.05, 0.02, 0.95), (0.0, 0.0, 0.8)]:
        compiled(
            weights,
            grads.clone(),
            momentum,
            moments,
            rate=torch.tensor(rate),
            decay=torch.tensor(decay),
            mu=torch.tensor(mu),
            beta2=0.9,
            nesterov=True,
            orth="polar_express",
            orth_dtype=torch.float32,
            cautious=True,
            eps=1e-12,
        )
    assert counter.frame_count == 1
