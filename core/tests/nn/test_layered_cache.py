"""A window's rolling state gives what attention over the whole text gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanozoo_core.errors import NanozooError
from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.layered_cache import LayeredCache, WindowState

CPU = torch.device("cpu")
B, H, T, K = 3, 4, 90, 8


def heads(num_heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, num_heads, T, K, generator=generator, dtype=torch.float64)


def parts(window: int) -> tuple[Tensor, Tensor, Tensor, Tensor, WindowState]:
    """q, k, v of a text with one head of keys, attention over all of it, and an empty state."""
    q, k, v = heads(H, 0), heads(1, 1), heads(1, 2)
    state = WindowState.empty(B, window, 1, K, device=CPU, dtype=torch.float64)
    return q, k, v, attend(q, k, v, window=window), state


@pytest.mark.parametrize("window", [1, 5, 100])
@pytest.mark.parametrize("first", [1, 3, 70])
def test_pieces_of_any_length_attend_as_the_whole(window: int, first: int) -> None:
    q, k, v, expected, state = parts(window)
    size = state.num_bytes
    past = torch.zeros(B, dtype=torch.int64)
    ends = [first, first + 1, first + 2, first + 10, T]
    for start, end in zip([0, *ends], ends, strict=False):
        new = slice(start, end)
        found = state.attend(q[:, :, new], k[:, :, new], v[:, :, new], past)
        torch.testing.assert_close(found, expected[:, :, new], rtol=1e-12, atol=1e-12)
        past = past + (end - start)
    assert state.num_bytes == size


@pytest.mark.parametrize("window", [1, 5, 100])
def test_rows_of_different_length_go_on_as_if_alone(window: int) -> None:
    q, k, v, expected, state = parts(window)
    past, lengths = torch.zeros(B, dtype=torch.int64), torch.tensor([2, 20, 11])
    found = state.attend(q[:, :, :20], k[:, :, :20], v[:, :, :20], past, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(
            found[row, :, :length], expected[row, :, :length], rtol=1e-12, atol=1e-12
        )
    past = past + lengths
    for num_new, valid in ((1, None), (6, torch.tensor([6, 1, 4])), (2, None)):
        at = past[:, None] + torch.arange(num_new)  # (B, num_new)

        def taken(x: Tensor, at: Tensor = at) -> Tensor:
            return x.gather(2, at[:, None, :, None].expand(-1, x.shape[1], -1, K))

        found = state.attend(taken(q), taken(k), taken(v), past, valid)
        count = torch.full((B,), num_new) if valid is None else valid
        for row, length in enumerate(count.tolist()):
            torch.testing.assert_close(
                found[row, :, :length],
                taken(expected)[row, :, :length],
                rtol=1e-12,
                atol=1e-12,
            )
        past = past + count


def test_a_layered_cache_counts_and_does_not_forget() -> None:
    states = [WindowState.empty(2, size, 1, K, device=CPU) for size in (3, 5)]
    cache = LayeredCache(states, torch.zeros(2, dtype=torch.int64))
    assert cache.num_bytes == 2 * 2 * (3 + 5) * K * 4
    cache.advance(torch.tensor([4, 2]))
    assert cache.positions(2).tolist() == [[4, 5], [2, 3]]
    cache.advance(1)
    cache.crop(torch.tensor([5, 3]))
    with pytest.raises(NanozooError, match="cannot forget"):
        cache.crop(torch.tensor([5, 2]))
