import pytest
import torch

from nanozoo_core.machine.attention_form import attention_form, current_form
from nanozoo_core.nn import attention as attention_module
from nanozoo_core.nn.attention import attend


def explicit(q, k, v, *, is_causal=True, window=None, documents=None):
    """softmax(q k^T / sqrt(K) + mask) v, written out."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    num_queries, num_keys = q.shape[2], k.shape[2]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    for i in range(num_queries):
        for j in range(num_keys):
            behind = num_keys - num_queries + i - j
            hidden = is_causal and (behind < 0 or (window is not None and behind > window))
            if hidden:
                scores[:, :, i, j] = -torch.inf
            if documents is not None:
                other = documents[:, i] != documents[:, j]
                scores[other, :, i, j] = -torch.inf
    return scores.softmax(-1) @ v


def inputs(num_heads=4, num_kv_heads=4, num_queries=9, num_keys=9, batch=2, head_dim=8):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q = draw(batch, num_heads, num_queries, head_dim)
    k, v = draw(2, batch, num_kv_heads, num_keys, head_dim)
    return q, k, v


CASES = {
    "causal": {},
    "full": {"is_causal": False},
    "window-1": {"window": 1},
    "window-3": {"window": 3},
    "window-0-is-self-only": {"window": 0},
    "window-wider-than-all": {"window": 100},
    "documents": {"documents": torch.tensor([[0] * 4 + [1] * 5, [0] * 9])},
    "documents-full": {"documents": torch.tensor([[0] * 4 + [1] * 5, [0] * 9]), "is_causal": False},
    "documents-window": {"documents": torch.tensor([[0] * 4 + [1] * 5, [0] * 9]), "window": 2},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_attend_is_the_explicit_softmax(options, num_kv_heads):
    q, k, v = inputs(num_kv_heads=num_kv_heads)
    expected = explicit(q, k, v, **options)
    torch.testing.assert_close(attend(q, k, v, **options), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 2, 5])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_fewer_queries_than_keys_continue_the_sequence(num_queries, window):
    q, k, v = inputs(num_queries=num_queries)
    expected = explicit(q, k, v, window=window)
    torch.testing.assert_close(attend(q, k, v, window=window), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [128, 512, 600, 513])
@pytest.mark.parametrize("window", [0, 5, 31, 32, 64, 100])
@pytest.mark.parametrize("num_kv_heads", [2, 1])
def test_banded_blocks_equal_the_masked_form(length, window, num_kv_heads):
    q, k, v = inputs(2, num_kv_heads, length, length, head_dim=4)
    documents = (torch.arange(length) // 100).expand(2, -1)
    behind = torch.arange(length)[:, None] - torch.arange(length)
    mask = (behind >= 0) & (behind <= window)
    for chosen, allowed in (
        (None, mask),
        (documents, mask & (documents[0] == documents[0][:, None])),
    ):
        wide_k, wide_v = (x.repeat_interleave(2 // num_kv_heads, 1) for x in (k, v))
        scores = (q @ wide_k.mT / 2).masked_fill(~allowed, -torch.inf)
        out = attend(q, k, v, window=window, documents=chosen)
        torch.testing.assert_close(out, scores.softmax(-1) @ wide_v, rtol=1e-10, atol=1e-10)


def test_banded_gradients_equal_the_masked_form():
    q, k, v = (x.requires_grad_() for x in inputs(2, 2, 520, 520, head_dim=4))
    behind = torch.arange(520)[:, None] - torch.arange(520)
    scores = (q @ k.mT / 2).masked_fill((behind < 0) | (behind > 20), -torch.inf)
    cotangent = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    expected = torch.autograd.grad(scores.softmax(-1) @ v, (q, k, v), cotangent)
    found = torch.autograd.grad(attend(q, k, v, window=20), (q, k, v), cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("length", [40, 520])
def test_later_keys_change_nothing_earlier(window, length):
    q, k, v = (x.float() for x in inputs(2, 2, length, length))
    before = attend(q, k, v, window=window)
    k[:, :, 30:], v[:, :, 30:] = 7.0, -3.0
    after = attend(q, k, v, window=window)
    assert torch.equal(before[:, :, :30], after[:, :, :30])
    assert not torch.equal(before[:, :, 30:], after[:, :, 30:])


def test_a_window_without_causality_is_refused():
    with pytest.raises(ValueError, match="window=3 needs is_causal=True"):
        attend(*inputs(), is_causal=False, window=3)


def test_documents_with_fewer_queries_than_keys_are_refused():
    with pytest.raises(ValueError, match="as many queries"):
        attend(*inputs(num_queries=2), documents=torch.zeros(2, 9))


# -- forms of bfloat16 on a CPU -------------------------------------------------------------------


def in_form(form, q, k, v, **options):
    with attention_form(form), torch.autocast("cpu", torch.bfloat16):
        return attend(q, k, v, **options)


@pytest.mark.parametrize("form", ["products", "float32"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("num_kv_heads", [4, 1])
def test_every_form_is_the_explicit_softmax(form, options, num_kv_heads):
    q, k, v = (x.bfloat16() for x in inputs(num_kv_heads=num_kv_heads))
    expected = explicit(*(x.double() for x in (q, k, v)), **options)
    found = in_form(form, q.float().requires_grad_(), k, v, **options)
    assert found.dtype == torch.bfloat16
    # Scores of at most about 4 and probabilities, each rounded to 2^-9 of it, then the result.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=4 * 2**-8)


def test_products_are_for_gradients_of_few_keys_alone(monkeypatch):
    calls = []
    plain = attention_module.product_attention
    monkeypatch.setattr(
        attention_module, "product_attention", lambda *a, **o: calls.append(1) or plain(*a, **o)
    )
    monkeypatch.setattr(attention_module, "MOST_KEPT_KEYS", 9)
    q, k, v = (x.float() for x in inputs())
    long = [x.float() for x in inputs(num_queries=10, num_keys=10)]
    in_form("products", q, k, v)
    in_form("kernel", q.requires_grad_(), k, v)
    with torch.no_grad():
        in_form("products", q, k, v)
    in_form("products", long[0].requires_grad_(), *long[1:])
    with attention_form("products"):
        attend(q, k, v)  # in float32
    assert not calls
    in_form("products", q, k, v)
    assert calls


def test_a_form_ends_with_its_context():
    def fail():
        with attention_form("products"):
            raise RuntimeError(current_form())

    assert current_form() == "kernel"
    with pytest.raises(RuntimeError, match="products"):
        fail()
    assert current_form() == "kernel"


def test_dropout_and_a_bias_that_learns_stay_with_the_kernel(monkeypatch):
    monkeypatch.setattr(attention_module, "product_attention", None)
    q, k, v = (x.bfloat16().requires_grad_() for x in inputs())
    bias = torch.zeros(9, 9, dtype=torch.bfloat16, requires_grad=True)
    with attention_form("products"):
        assert attention_module.sdpa(q, k, v, dropout=0.5).requires_grad
        attention_module.sdpa(q, k, v, mask=bias).sum().backward()
    assert bias.grad is not None
