import pytest
import torch
import torch.nn.functional as F

from nanozoo_core.nn.norms import RMSNorm, gated_rms_norm, rms_norm


def test_gradient_matches_finite_differences():
    x = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(rms_norm, (x.requires_grad_(), 1e-6))


def test_values_match_torch():
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rms_norm(x, 1e-3), F.rms_norm(x, (16,), eps=1e-3), rtol=1e-5, atol=0)


def test_rows_of_zeros_stay_zero_with_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 8))
    assert x.grad.isfinite().all()


def test_statistics_of_bfloat16_are_taken_in_float32():
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rms_norm(x), rms_norm(x.float()).bfloat16())


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_layer_with_a_gain_equals_torchs(eps):
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (kind(16, eps=eps, dtype=torch.float64) for kind in (RMSNorm, torch.nn.RMSNorm))
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(0.5, 2, 16))
    results = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (leaf, norm.weight))))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_the_gated_norm_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    x, gate = torch.randn(2, 3, 5, 16, generator=generator, dtype=torch.float64)
    weight = torch.linspace(0.5, 2, 16, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, gate, weight)]
    results = []
    for y in (gated_rms_norm(x, gate, weight, 1e-3), rms_norm(x * F.silu(gate), 1e-3) * weight):
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_the_gated_norm_passes_gradcheck():
    generator = torch.Generator().manual_seed(0)
    x, gate = torch.randn(2, 2, 6, generator=generator, dtype=torch.float64)
    weight = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    leaves = tuple(tensor.requires_grad_() for tensor in (x, gate, weight))
    assert torch.autograd.gradcheck(lambda *inputs: gated_rms_norm(*inputs, 1e-3), leaves)
