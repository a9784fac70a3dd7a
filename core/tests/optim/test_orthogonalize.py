import pytest
import torch

from nanozoo_core.optim.orthogonalize import COEFFICIENTS, SAFETY, orthogonalize

METHODS = list(COEFFICIENTS)


def polynomial(method, t):
    """All steps of the iteration on scalars t."""
    for a, b, c in COEFFICIENTS[method]:
        t = a * t + b * t**3 + c * t**5
    return t


def with_spectrum(m, n, values, seed=0, dtype=torch.float64):
    """U diag(values) V^T with random orthonormal U (m, r) and V (n, r)."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, len(values), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64))[0]
    values = torch.as_tensor(values, dtype=torch.float64)
    return ((u * values) @ v.T).to(dtype), u.to(dtype), v.to(dtype)


@pytest.mark.parametrize(
    ("method", "low", "bounds"),
    [
        ("polar_express", 1e-3, (0.859, 1.142)),
        ("ns5", 2e-3, (0.682, 1.203)),
        ("exact", 1e-2, (0.99, 1.01)),
    ],
)
def test_singular_values_land_in_the_published_interval(method, low, bounds):
    t = torch.logspace(torch.log10(torch.tensor(low)), 0, 20001, dtype=torch.float64)
    out = polynomial(method, t)
    assert out.min() >= bounds[0] - 1e-3
    assert out.max() <= bounds[1] + 1e-3


@pytest.mark.parametrize(("method", "slope"), [("polar_express", 989), ("ns5", 485)])
def test_slope_at_zero(method, slope):
    t = torch.tensor(1e-12, dtype=torch.float64)
    assert float(polynomial(method, t) / t) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(48, 48), (48, 96), (96, 48)])
def test_polynomial_acts_on_singular_values_alone(method, shape):
    s = torch.logspace(-2, 0, 48, dtype=torch.float64)
    g, u, v = with_spectrum(*shape, s)
    norm = torch.linalg.vector_norm(s)
    expected = torch.diag(polynomial(method, s / (norm * SAFETY[method])))
    found = u.T @ orthogonalize(g, method=method, dtype=torch.float64, eps=1e-30) @ v
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    found = u.float().T @ orthogonalize(g.float(), method=method) @ v.float()
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("method", "cosine"), [("polar_express", 0.995), ("ns5", 0.98), ("exact", 0.9995)]
)
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 0.0), (torch.bfloat16, 5e-4)])
def test_quality_at_condition_100(method, cosine, dtype, slack):
    g, u, v = with_spectrum(256, 256, torch.logspace(-2, 0, 256), dtype=torch.float32)
    out = orthogonalize(g, method=method, dtype=dtype).double()
    target = u.double() @ v.double().T
    found = (out * target).sum() / (out.norm() * target.norm())
    assert found >= cosine - slack


def test_tall_gaussian_has_unit_singular_values():
    g = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(orthogonalize(g))
    assert s.min() >= 0.86 - 5e-3
    assert s.max() <= 1.142


@pytest.mark.parametrize("method", METHODS)
def test_transpose_commutes_exactly(method):
    g = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(1))
    whole = orthogonalize(g, method=method)
    assert torch.equal(orthogonalize(g.mT, method=method).mT, whole)
    assert torch.equal(orthogonalize(g.mT.contiguous(), method=method).mT, whole)


@pytest.mark.parametrize("method", METHODS)
def test_orthogonal_factors_pass_through(method):
    generator = torch.Generator().manual_seed(2)
    g, _, _ = with_spectrum(40, 64, torch.logspace(-1.5, 0, 40), dtype=torch.float32)
    q = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0].float()
    r = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0].float()
    expected = q @ orthogonalize(g, method=method) @ r
    torch.testing.assert_close(orthogonalize(q @ g @ r, method=method), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_scale_of_the_gradient_does_not_matter(scale):
    g = torch.randn(32, 48, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(orthogonalize(scale * g), orthogonalize(g), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_matrix_stays_zero(dtype):
    g = torch.zeros(2, 16, 24)
    g[1] = 1.0
    out = orthogonalize(g, dtype=dtype)
    assert torch.equal(out[0], torch.zeros(16, 24, dtype=dtype))
    assert out.isfinite().all()


def test_low_rank_is_finite():
    g, _, _ = with_spectrum(256, 256, torch.ones(8), dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        assert orthogonalize(g, dtype=dtype).isfinite().all()


def test_batch_equals_single_matrices():
    g = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(4))
    singles = torch.stack([orthogonalize(x) for x in g.flatten(0, 1)]).unflatten(0, (2, 3))
    torch.testing.assert_close(orthogonalize(g), singles, atol=1e-5, rtol=0)
