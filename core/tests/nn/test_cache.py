import itertools

import pytest
import torch

from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.cache import KVCache

HEADS, KV_HEADS, HEAD_DIM, ROWS, LENGTH = 4, 2, 8, 3, 12


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)

    def draw(heads):
        return torch.randn(ROWS, heads, LENGTH, HEAD_DIM, generator=generator, dtype=torch.float64)

    return draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)


def new_cache(max_length=LENGTH, num_layers=1):
    return KVCache(num_layers, ROWS, max_length, KV_HEADS, HEAD_DIM, dtype=torch.float64)


def feed(cache, qkv, start, end, **options):
    out = cache.attend(0, *(x[:, :, start:end] for x in qkv), **options)
    cache.advance(end - start)
    return out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 0, 3])
@pytest.mark.parametrize(
    "cuts", [(0, 12), (0, 5, 12), (0, 4, 5, 6, 9, 12), tuple(range(13))], ids=str
)
def test_pieces_of_any_size_equal_the_whole(qkv, cuts, window):
    cache = new_cache()
    pieces = [feed(cache, qkv, a, b, window=window) for a, b in itertools.pairwise(cuts)]
    close(torch.cat(pieces, dim=2), attend(*qkv, window=window))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_new", [1, 2])
def test_rows_of_unequal_length_equal_each_row_alone(qkv, num_new, window):
    cache = new_cache()
    lengths = [6, 2, 8]
    feed(cache, qkv, 0, 9, window=window)
    cache.crop(torch.tensor(lengths))
    for step in range(2):
        at = torch.tensor([[n + step * num_new + i for i in range(num_new)] for n in lengths])
        index = at[:, None, :, None]
        new = [x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in qkv]
        assert torch.equal(cache.positions(num_new), at)
        out = cache.attend(0, *new, window=window)
        cache.advance(num_new)
        for row, n in enumerate(lengths):
            end = n + (step + 1) * num_new
            alone = attend(*(x[row : row + 1, :, :end] for x in qkv), window=window)
            close(out[row : row + 1], alone[:, :, -num_new:])


def test_cropping_and_reading_again_changes_nothing(qkv):
    cache = new_cache()
    feed(cache, qkv, 0, 8)
    garbage = [torch.full_like(x[:, :, :4], 1e3) for x in qkv]
    cache.attend(0, *garbage)
    cache.advance(4)
    cache.crop(torch.full((ROWS,), 8))
    close(feed(cache, qkv, 8, 12), attend(*qkv)[:, :, 8:])


def test_cropping_never_lengthens(qkv):
    cache = new_cache()
    feed(cache, qkv, 0, 3)
    cache.crop(torch.tensor([1, 5, 3]))
    assert cache.lengths.tolist() == [1, 3, 3]


def test_rows_can_be_read_alone(qkv):
    cache = new_cache()
    feed(cache, qkv, 0, 5)
    rows = torch.tensor([2, 0])
    new = [x[rows, :, 5:6] for x in qkv]
    assert cache.positions(1, rows).tolist() == [[5], [5]]
    out = cache.attend(0, *new, rows=rows)
    cache.advance(1, rows=rows)
    assert cache.lengths.tolist() == [6, 5, 6]
    close(out, attend(*(x[rows, :, :6] for x in qkv))[:, :, 5:])
    cache.attend(0, *(x[1:2, :, 5:6] for x in qkv), rows=torch.tensor([1]))
    cache.advance(1, rows=torch.tensor([1]))
    close(feed(cache, qkv, 6, 12), attend(*qkv)[:, :, 6:])


def test_rows_can_advance_by_different_amounts(qkv):
    cache = new_cache()
    cache.attend(0, *(x[:, :, :4] for x in qkv))
    cache.advance(torch.tensor([4, 1, 0]))
    assert cache.lengths.tolist() == [4, 1, 0]
    assert cache.positions(2).tolist() == [[4, 5], [1, 2], [0, 1]]


def test_layers_are_kept_apart(qkv):
    cache = new_cache(num_layers=2)
    q, k, v = (x[:, :, :6] for x in qkv)
    cache.attend(0, q, k, v)
    cache.attend(1, q, v, k)
    cache.advance(6)
    q, k, v = (x[:, :, 6:7] for x in qkv)
    first, second = cache.attend(0, q, k, v), cache.attend(1, q, v, k)
    whole_q, whole_k, whole_v = (x[:, :, :7] for x in qkv)
    close(first, attend(whole_q, whole_k, whole_v)[:, :, 6:])
    close(second, attend(whole_q, whole_v, whole_k)[:, :, 6:])


def test_a_full_cache_says_so(qkv):
    cache = new_cache(max_length=6)
    feed(cache, qkv, 0, 5)
    with pytest.raises(ValueError, match="holds 6 tokens per row; 7 are asked"):
        feed(cache, qkv, 5, 7)
    feed(cache, qkv, 5, 6)


def test_a_short_row_has_room_beside_a_full_one(qkv):
    cache = new_cache(max_length=6)
    feed(cache, qkv, 0, 6)
    cache.crop(torch.tensor([6, 2, 6]))
    row = torch.tensor([1])
    out = cache.attend(0, *(x[row, :, 2:4] for x in qkv), rows=row)
    close(out, attend(*(x[row, :, :4] for x in qkv))[:, :, 2:])
    with pytest.raises(ValueError, match="7 are asked"):
        cache.attend(0, *(x[:, :, 6:7] for x in qkv))


def test_size_in_bytes_is_two_per_layer_row_head_and_position():
    assert new_cache(num_layers=5).num_bytes == 2 * 5 * ROWS * KV_HEADS * LENGTH * HEAD_DIM * 8


def test_a_low_precision_cache_serves_float32_queries(qkv):
    cache = KVCache(1, ROWS, LENGTH, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    q, k, v = (x.float() for x in qkv)
    rounded = attend(q, k.bfloat16().float(), v.bfloat16().float())
    feed(cache, (q, k, v), 0, 11)
    out = feed(cache, (q, k, v), 11, 12)
    torch.testing.assert_close(out, rounded[:, :, 11:], rtol=1e-5, atol=1e-6)
