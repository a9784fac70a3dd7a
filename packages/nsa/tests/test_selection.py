"""Scores of blocks, the choice among them, and the forms of attention over them."""

from __future__ import annotations

import pytest
import torch

from nanozoo_nsa.compressed.attention import compressed_attention
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.attention import masked_attention
from nanozoo_nsa.selected.choice import (
    all_blocks,
    block_mask,
    choose,
    chosen_by,
    forced_blocks,
    importance,
)
from nanozoo_nsa.selected.gathered import gathered_attention

TRIPLES = [(32, 16, 64), (16, 16, 64), (64, 16, 64), (32, 16, 32), (8, 4, 16), (8, 8, 8)]


def grid_of(window: int, stride: int, block: int, num_selected: int = 4) -> Grid:
    return Grid(window, stride, block, num_selected, init_blocks=1, local_blocks=2)


@pytest.mark.parametrize(("window", "stride", "block"), TRIPLES)
def test_scores_are_shared_tokens_over_the_stride(window: int, stride: int, block: int) -> None:
    grid = grid_of(window, stride, block)
    num_windows = grid.num_windows(5 * block + 3)
    scores = importance(torch.eye(num_windows), grid, 6)  # one compressed block at a time
    for i in range(num_windows):
        for j in range(6):
            start = max(i * stride, j * block)
            shared = min(i * stride + window, (j + 1) * block) - start
            assert float(scores[i, j]) == max(shared, 0) / stride


def test_scores_of_the_papers_blocks_by_hand() -> None:
    # Blocks of 32 at 0, 16, 32, ... in blocks of 64: the fourth reaches into the next.
    scores = importance(torch.eye(9), grid_of(32, 16, 64), 2)
    assert scores[:, 0].tolist() == [2, 2, 2, 1, 0, 0, 0, 0, 0]
    assert scores[:, 1].tolist() == [0, 0, 0, 1, 2, 2, 2, 1, 0]


def test_equal_blocks_leave_scores_as_they_are() -> None:
    probs = torch.rand(3, 7)
    assert torch.equal(importance(probs, grid_of(8, 8, 8), 7), probs)


def test_the_highest_scores_are_chosen_and_ties_go_to_the_first() -> None:
    grid = grid_of(8, 4, 16, num_selected=5)
    scores = torch.tensor([9.0, 0.5, 0.25, 0.5, 0.5, 9.0, 9.0, 9.0])
    position = torch.tensor(6 * 16)  # block 6: 0, 5 and 6 are forced, 7 is the future
    assert choose(scores, position, grid).tolist() == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_query_alone_chooses_as_among_others(dtype: torch.dtype) -> None:
    """As decoding asks and as a sequence does, of probabilities with three values: many ties."""
    grid = Grid(4, 2, 8, 6, 1, 2)
    length, kinds = 400, torch.tensor([0.1, 0.3, 0.7], dtype=dtype)
    visible = torch.arange(grid.num_windows(length)) < torch.tensor(
        [[grid.num_windows(t + 1)] for t in range(length)]
    )
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(3, (2, length, 3, visible.shape[1]), generator=generator)
    probs = kinds[index] * visible[:, None] / visible.sum(1).clamp(min=1)[:, None, None]
    together = chosen_by(probs, torch.arange(length), grid, grid.num_blocks(length))
    for t in range(length):
        part = probs[None, :, t, :, : grid.num_windows(t + 1)].clone()  # (1, 2, G, W)
        alone = chosen_by(part, torch.tensor([[t]]), grid, grid.num_blocks(t + 1))
        assert torch.equal(alone[0], together[:, t])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 200])
@pytest.mark.parametrize("init_blocks", [0, 1, 2])
@pytest.mark.parametrize("local_blocks", [1, 2])
def test_forced_and_chosen_blocks_are_different_and_past(
    length: int, init_blocks: int, local_blocks: int
) -> None:
    grid = Grid(8, 4, 16, 6, init_blocks, local_blocks)
    positions = torch.arange(length)
    scores = torch.rand(2, length, grid.num_blocks(length))
    chosen = choose(scores, positions, grid)
    for row in all_blocks(chosen, positions, grid).tolist():
        for position, blocks in enumerate(row):
            own = position // 16
            there = {block for block in blocks if block >= 0}
            assert len(there) == sum(block >= 0 for block in blocks)
            assert len(there) == min(6, own + 1)
            assert max(there) == own
            forced = {
                *range(min(init_blocks, own + 1)),
                *range(max(0, own - local_blocks + 1), own),
            }
            assert forced <= there


def test_forced_blocks_are_listed_once() -> None:
    grid = Grid(8, 4, 16, 6, 2, 2)
    found = forced_blocks(torch.tensor([0, 16, 32, 48, 160]), grid).tolist()
    assert found == [[-1, -1, -1, 0], [-1, -1, 0, 1], [0, -1, 1, 2], [0, 1, 2, 3], [0, 1, 9, 10]]


def test_a_mask_has_the_listed_blocks_alone() -> None:
    mask = block_mask(torch.tensor([[0, -1, 2], [-1, -1, -1]]), 4)
    assert mask.tolist() == [[True, False, True, False], [False] * 4]


@pytest.mark.parametrize("length", [1, 15, 16, 63, 64, 65, 200])
@pytest.mark.parametrize(
    "grid",
    [
        Grid(8, 4, 16, 4, 1, 2),
        Grid(8, 8, 8, 6, 0, 1),
        Grid(4, 2, 8, 3, 1, 2),
        Grid(8, 4, 32, 8, 2, 2),
    ],
    ids=["default", "free", "forced-alone", "large-blocks"],
)
def test_gathered_blocks_equal_the_mask(length: int, grid: Grid) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    q, k, v = normal(2, 2, length, 3, 8), normal(2, 2, length, 8), normal(2, 2, length, 8)
    scores = torch.rand(2, 2, length, grid.num_blocks(length), generator=generator)
    chosen = choose(scores, torch.arange(length), grid)
    results = []
    for form in (gathered_attention, masked_attention):
        y = form(q, k, v, chosen, grid)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
        results.append([y, *torch.autograd.grad(y, (q, k, v), cotangent)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_gathered_gradients_agree_with_finite_differences() -> None:
    grid = Grid(2, 2, 2, 3, 1, 1)
    q, k, v = (torch.randn(s, dtype=torch.float64) for s in ((1, 1, 9, 2, 2), *[(1, 1, 9, 2)] * 2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    chosen = choose(torch.rand(1, 1, 9, 5), torch.arange(9), grid)
    assert torch.autograd.gradcheck(lambda *x: gathered_attention(*x, chosen, grid), leaves)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanozoo_nsa.compressed import attention as compression
    from nanozoo_nsa.selected import gathered

    grid = Grid(8, 4, 16, 5, 1, 2)
    q = torch.randn(2, 1, 150, 2, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 1, 150, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 2, 1, grid.num_windows(150), 8, dtype=torch.float64)

    def both() -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v, keys, values)]
        compressed, chosen = compressed_attention(leaves[0], leaves[3], leaves[4], grid)
        selected = gathered_attention(*leaves[:3], chosen, grid)
        (compressed * selected).sum().backward()
        return [compressed.detach(), selected.detach(), *(x.grad for x in leaves)]

    whole = both()
    monkeypatch.setattr(compression, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(gathered, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(both(), whole, rtol=1e-10, atol=1e-10)


def test_compressed_gradients_agree_with_finite_differences() -> None:
    grid = Grid(4, 2, 4, 3, 1, 1)
    q = torch.randn(1, 2, 9, 2, 2, dtype=torch.float64).requires_grad_()
    keys, values = (torch.randn(1, 2, 3, 2, dtype=torch.float64).requires_grad_() for _ in "kv")
    assert torch.autograd.gradcheck(lambda *x: compressed_attention(*x, grid)[0], (q, keys, values))
