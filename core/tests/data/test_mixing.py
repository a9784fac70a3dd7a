import numpy as np
import pytest

from nanozoo_core.data.mixing import MixedWindows
from nanozoo_core.data.windows import Windows

SHARES = [(1.0,), (0.75, 0.25), (0.5, 0.3, 0.2), (0.001, 0.999), (0.1, 0.2, 0.3, 0.4)]
shares = pytest.mark.parametrize("shares", SHARES, ids=str)


class Counted(Windows):
    """Windows of one token and one of lookahead that say their source and place."""

    def __init__(self, number: int, size: int) -> None:
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "seq_len", 1)
        object.__setattr__(self, "lookahead", 1)
        object.__setattr__(self, "seeds", set())

    def __len__(self) -> int:
        return self.size  # type: ignore[attr-defined,no-any-return]

    def visit(self, indices: np.ndarray, seed: int) -> np.ndarray:
        self.seeds.add(seed)  # type: ignore[attr-defined]
        number = np.full_like(indices, self.number)  # type: ignore[attr-defined]
        return np.stack([number, indices], axis=1).astype(np.uint16)


def mixed(shares: tuple[float, ...]) -> MixedWindows:
    parts = [Counted(number, 10 + number) for number in range(len(shares))]
    return MixedWindows.of(parts, shares)


@shares
def test_each_source_gives_its_windows_one_after_the_other(shares: tuple[float, ...]) -> None:
    windows = mixed(shares)
    part, within = windows.places(np.arange(20_000))
    for number in range(len(shares)):
        mine = within[part == number]
        assert mine.tolist() == list(range(mine.size))


@shares
def test_every_beginning_holds_the_shares(shares: tuple[float, ...]) -> None:
    windows = mixed(shares)
    part, _ = windows.places(np.arange(20_000))
    for number, share in enumerate(shares):
        counts = np.cumsum(part == number)
        expected = share * np.arange(1, counts.size + 1)
        assert np.abs(counts - expected).max() <= number + 1.1
    for size in (0, 1, 7, 1000, 19_999):
        expected = [int((part[:size] == number).sum()) for number in range(len(shares))]
        assert list(windows.counts(size)) == expected


@shares
def test_windows_far_out_are_found_at_once(shares: tuple[float, ...]) -> None:
    windows, far = mixed(shares), 2**40
    part, within = windows.places(far + np.arange(1000))
    before, after = windows.counts(far), windows.counts(far + 1000)
    for number in range(len(shares)):
        mine = within[part == number]
        assert mine.tolist() == list(range(before[number], after[number]))


def test_a_source_reads_by_a_seed_of_its_own() -> None:
    windows = mixed((0.5, 0.5))
    tokens = windows.visit(np.arange(6), seed=3)
    assert tokens[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    assert tokens[:, 1].tolist() == [0, 0, 1, 1, 2, 2]
    first, second = (part.seeds for part in windows.parts)  # type: ignore[attr-defined]
    assert not first & second
