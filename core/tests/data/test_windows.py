import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nanozoo_core.data.shards import Shard, open_shard, write_shard
from nanozoo_core.data.windows import Align, Windows, permute
from nanozoo_core.errors import DataError

SEPARATOR = 60_000


def make_shards(folder: Path, *sizes: int, document: int = 0) -> list[Shard]:
    """Shards whose token at position p of shard s is 10000 s + p, so that a token names its place;
    with `document`, a separator stands at its multiples."""
    found = []
    for number, size in enumerate(sizes):
        tokens = 10_000 * number + np.arange(size)
        if document:
            tokens[::document] = SEPARATOR
        path = folder / f"{number}.bin"
        write_shard(path, tokens)
        found.append(open_shard(path))
    return found


def find(shards: list[Shard], seq_len: int, lookahead: int = 1, align: Align = "stream") -> Windows:
    return Windows.find(
        shards, seq_len=seq_len, lookahead=lookahead, align=align, separator=SEPARATOR
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1023, 4097])
@pytest.mark.parametrize("key", [(0, 0), (1, 5)])
def test_permutation_visits_every_index_once(size: int, key: tuple[int, int]) -> None:
    assert sorted(permute(np.arange(size), size, *key).tolist()) == list(range(size))


def test_permutation_of_one_index_is_that_of_all() -> None:
    whole = permute(np.arange(1000), 1000, 3, 4)
    parts = [permute(np.array([index]), 1000, 3, 4)[0] for index in range(1000)]
    assert whole.tolist() == parts


def test_permutation_depends_on_its_key_and_keeps_no_order() -> None:
    size = 10_000
    index = np.arange(size)
    orders = [permute(index, size, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for number, order in enumerate(orders):
        # Correlation of independent orders has standard deviation 1 / sqrt(size) = 0.01.
        assert abs(np.corrcoef(index, order)[0, 1]) < 0.05
        steps = np.diff(order)
        assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.05  # -1/2 if independent
        assert all(abs(np.corrcoef(order, o)[0, 1]) < 0.05 for o in orders[:number])


def test_permutation_of_a_large_range_is_one_to_one() -> None:
    size = 10**13 + 7
    images = permute(np.arange(0, size, size // 5000), size, 1)
    assert len(set(images.tolist())) == 5001
    assert images.min() >= 0
    assert images.max() < size


@pytest.mark.parametrize("seq_len", [1, 7, 64])
@pytest.mark.parametrize("lookahead", [1, 4])
def test_epoch_scores_each_token_of_its_windows_once(
    tmp_path: Path, seq_len: int, lookahead: int
) -> None:
    shards = make_shards(tmp_path, 1000, 300, 80)
    windows = find(shards, seq_len, lookahead)
    for epoch in range(3):
        indices = np.arange(len(windows)) + epoch * len(windows)
        tokens = windows.read(*windows.locate(indices, 5))
        scored = tokens[:, 1 : seq_len + 1].ravel()
        assert len(np.unique(scored)) == scored.size
        # At most one window per shard is lost to the offset, and part of one to its length.
        assert scored.size > 1380 - 3 * (2 * seq_len + lookahead)


def test_windows_of_a_shard_share_one_boundary_token(tmp_path: Path) -> None:
    windows = find(make_shards(tmp_path, 1000), 16)
    tokens = windows.read(*windows.locate(np.arange(len(windows)), 0)).astype(int)
    firsts = np.sort(tokens[:, 0])
    assert (np.diff(firsts) == 16).all()
    assert (tokens == tokens[:, :1] + np.arange(17)).all()


def test_windows_stay_within_a_shard(tmp_path: Path) -> None:
    windows = find(make_shards(tmp_path, 100, 3, 90, 17), 16)
    tokens = windows.read(*windows.locate(np.arange(3 * len(windows)), 0)).astype(int)
    assert (tokens == tokens[:, :1] + np.arange(17)).all()
    assert set((tokens[:, 0] // 10_000).tolist()) == {0, 2, 3}


def test_offset_is_new_in_every_epoch(tmp_path: Path) -> None:
    windows = find(make_shards(tmp_path, 1000), 50)
    offsets = {
        int(windows.locate(np.array([epoch * len(windows)]), 0)[1][0]) % 50 for epoch in range(40)
    }
    assert len(offsets) > 15


@pytest.mark.parametrize("align", ["stream", "documents"])
def test_data_of_exactly_one_window_are_enough(tmp_path: Path, align: Align) -> None:
    windows = find(make_shards(tmp_path, 20), 17, 3, align)
    assert len(windows) == 1
    assert windows.read(*windows.locate(np.arange(1), 0))[0].tolist() == list(range(20))


def test_window_longer_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.seq_len=18 is longer .* 20 tokens; use at most 17"):
        find(make_shards(tmp_path, 20, 5), 18, 3)


def test_document_windows_begin_at_each_document_and_cover_it(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 700, 350, document=70)
    windows = find(shards, 32, 1, "documents")
    found, starts = windows.locate(np.arange(len(windows)), 9)
    assert {0, 70, 140, 210, 280} <= set(starts[found == 1].tolist())
    begun = (starts % 70) % 32  # from the start of the document, in whole windows
    last = starts == np.array([700 - 33, 350 - 33])[found]  # moved back from the shard's end
    assert (begun[~last] == 0).all()
    scored = windows.read(found, starts)[:, 1:33]
    everything = np.concatenate([shard.tokens[1:] for shard in shards])
    assert set(scored.ravel().tolist()) == set(everything.tolist())


# -- documents truncated to a window ---------------------------------------------------------------


def shard_of_documents(folder: Path, lengths: list[int], *, leading: int = 0) -> Shard:
    """A separator before each document; `lengths` count it. Other tokens name their position, and
    `leading` of them stand before the first document."""
    starts = leading + np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(leading + sum(lengths))
    tokens[starts] = SEPARATOR
    path = folder / "documents.bin"
    write_shard(path, tokens)
    return open_shard(path)


def all_windows(windows: Windows, seed: int = 0) -> list[list[int]]:
    """Those of one epoch, in the order of their places."""
    shards, starts = windows.locate(np.arange(len(windows)), seed)
    order = np.lexsort((starts, shards))
    return windows.read(shards[order], starts[order]).tolist()


def test_documents_are_truncated_and_packed(tmp_path: Path) -> None:
    """By hand: windows of 6 inputs and one target more."""
    shard = shard_of_documents(tmp_path, [4, 9, 1, 2, 14, 3, 5], leading=2)
    s = SEPARATOR
    assert all_windows(find([shard], 6, 1, "truncate")) == [
        [
            s,
            3,
            4,
            5,
            s,
            7,
            8,
        ],  # 4 tokens of the first document, 3 of the second; its rest is dropped
        [s, s, 17, s, 19, 20, 21],  # of 1, 2 and 14 tokens
        [s, 33, 34, s, 36, 37, 38],  # the last document follows the one of 3 tokens
    ]


def test_a_document_as_long_as_a_window_fills_it_alone(tmp_path: Path) -> None:
    """The next document gives no input, so it begins the next window and is not lost."""
    shard = shard_of_documents(tmp_path, [20, 20, 20, 20])
    s = SEPARATOR
    assert all_windows(find([shard], 6, 2, "truncate")) == [
        [s, 1, 2, 3, 4, 5, s, 21],
        [s, 21, 22, 23, 24, 25, s, 41],
        [s, 41, 42, 43, 44, 45, s, 61],
    ]


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("seq_len", [1, 5, 16, 40])
def test_truncated_windows_are_those_of_a_reader_that_goes_along(
    tmp_path: Path, seq_len: int, lookahead: int
) -> None:
    lengths = np.random.default_rng(0).geometric(0.08, size=300).tolist()
    shard = shard_of_documents(tmp_path, lengths, leading=3)
    bounds = (3 + np.cumsum([0, *lengths])).tolist()
    expected, document = [], 0
    while True:
        window: list[int] = []
        following = None
        for number in range(document, len(lengths)):
            if len(window) >= seq_len and following is None:
                following = number
            window += shard.tokens[bounds[number] : bounds[number + 1]][:seq_len].tolist()
        if len(window) < seq_len + lookahead:
            break
        expected.append(window[: seq_len + lookahead])
        if following is None:
            break
        document = following
    assert all_windows(find([shard], seq_len, lookahead, "truncate")) == expected


def test_every_epoch_reads_every_truncated_window_once_in_another_order(tmp_path: Path) -> None:
    shards = [
        *make_shards(tmp_path, 700, 350, document=70),
        shard_of_documents(tmp_path, [30] * 20),
    ]
    windows = find(shards, 32, 1, "truncate")
    epochs = []
    for epoch in range(3):
        indices = np.arange(len(windows)) + epoch * len(windows)
        found, starts = windows.locate(indices, 4)
        epochs.append(list(zip(found.tolist(), starts.tolist(), strict=True)))
        assert (windows.read(found, starts)[:, 0] == SEPARATOR).all()
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert len(set(epochs[0])) == len(windows)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {shard for shard, _ in epochs[0]} == {0, 1, 2}


@pytest.mark.parametrize("lengths", [[], [3, 3]], ids=["no document", "short ones"])
def test_documents_that_fill_no_window_are_refused(tmp_path: Path, lengths: list[int]) -> None:
    tokens = np.concatenate([np.arange(100), *([SEPARATOR, 1, 2] for _ in lengths)])
    write_shard(tmp_path / "few.bin", tokens)
    with pytest.raises(DataError, match=r"data\.packing=truncate finds no window .*seq_len=8"):
        find([open_shard(tmp_path / "few.bin")], 8, 1, "truncate")


def test_another_process_visits_the_same_windows() -> None:
    code = (
        "import numpy as np; from nanozoo_core.data.windows import permute;"
        "print(permute(np.arange(5, 12), 1_000_003, 3, 1).tolist())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "77"},
    )
    assert child.stdout.strip() == str(permute(np.arange(5, 12), 1_000_003, 3, 1).tolist())
