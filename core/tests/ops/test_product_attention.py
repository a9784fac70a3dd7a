import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.ops import product_attention as module
from nanozoo_core.ops.product_attention import product_attention

LENGTHS = {"one block": 23, "two blocks": 151, "two even blocks": 2 * module.MIN_BLOCK}


def inputs(num_queries: int, num_keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v as views of heads that lie side by side, and a gradient for the output."""
    generator = torch.Generator().manual_seed(3)

    def draw(length: int, width: int) -> Tensor:
        x = torch.randn(2, length, 3, width, generator=generator, dtype=torch.float64)
        return x.transpose(1, 2).to(dtype)

    return [
        draw(num_queries, 5).requires_grad_(),
        draw(num_keys, 5).requires_grad_(),
        draw(num_keys, 7).requires_grad_(),
        draw(num_queries, 7),
    ]


def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, is_causal: bool) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores.masked_fill(~bias, -1e30) if bias.dtype == torch.bool else scores + bias
    if is_causal:
        scores = scores + torch.full_like(scores, -torch.inf).triu(1)
    return scores.softmax(-1) @ v


def check(given: list[Tensor], bias: Tensor | None = None, *, is_causal: bool = False) -> None:
    q, k, v, grad = given
    found = product_attention(q, k, v, bias=bias, is_causal=is_causal)
    expected = explicit(q, k, v, bias, is_causal=is_causal)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = [torch.autograd.grad(y, (q, k, v), grad) for y in (found, expected)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_causal_attention_and_its_gradients_are_the_explicit_ones(length: int) -> None:
    check(inputs(length, length), is_causal=True)


def test_queries_may_meet_all_of_other_keys() -> None:
    check(inputs(37, 90))


@pytest.mark.parametrize("shape", [(37, 90), (3, 37, 90), (2, 1, 37, 90)])
def test_a_bias_is_added_to_the_scores(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    check(inputs(37, 90), torch.randn(shape, generator=generator, dtype=torch.float64))


def test_a_mask_hides_keys_and_a_query_that_sees_none_gets_their_mean() -> None:
    mask = torch.rand(2, 1, 37, 90, generator=torch.Generator().manual_seed(5)) < 0.3
    mask[1, 0, 4] = False
    q, k, v, grad = given = inputs(37, 90)
    grad[1, :, 4] = 0
    check(given, mask)
    found = product_attention(q, k, v, bias=mask)[1, :, 4]
    torch.testing.assert_close(found, v[1].mean(1))


def test_bfloat16_rounds_scores_and_probabilities_once() -> None:
    """Scores of at most s are off by s 2^-9, so are probabilities by that share and their own
    2^-9, then the output by its own."""
    length = 151
    exact = inputs(length, length)
    q, k, v, _ = (x.detach().bfloat16() for x in exact)
    q.requires_grad_()
    expected = explicit(q.double(), k.double(), v.double(), None, is_causal=True)
    found = product_attention(q, k, v, is_causal=True)
    assert found.dtype == torch.bfloat16
    scores = float((q.detach().double() @ k.double().mT).abs().max()) / 5**0.5
    share = 2 * scores * 2**-8 + 2**-9  # scores and the scaled q, in numerator and sum
    bound = (share + 2**-9) * float(v.abs().max())
    assert float((found.double() - expected).abs().max()) < bound


def test_autocast_does_not_reach_its_products() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v, grad = inputs(23, 23, torch.float32)
        y = product_attention(q, k, v, is_causal=True)
        found = torch.autograd.grad(y, (q, k, v), grad)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    for one, other in zip(found, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_causality_needs_as_many_keys_and_no_bias() -> None:
    q, k, v, _ = inputs(4, 5)
    with pytest.raises(ValueError, match=r"queries \(4\) as keys \(5\)"):
        product_attention(q, k, v, is_causal=True)
    with pytest.raises(ValueError, match="no bias"):
        product_attention(q, q, q, bias=torch.zeros(4, 4), is_causal=True)
