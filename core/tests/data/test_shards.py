from pathlib import Path

import numpy as np
import pytest

from nanozoo_core.data import shards
from nanozoo_core.data.shards import (
    ShardWriter,
    document_starts,
    documents,
    open_shard,
    shard_content,
    write_shard,
)
from nanozoo_core.errors import DataError

ONE_BYTE_EACH = np.ones(256, dtype=np.int64)


def test_written_tokens_are_read_back(tmp_path: Path) -> None:
    tokens = np.array([0, 1, 65535, 7])
    write_shard(tmp_path / "a.bin", tokens)
    shard = open_shard(tmp_path / "a.bin")
    assert shard.num_tokens == 4
    assert shard.tokens.dtype == np.uint16
    assert shard.tokens.tolist() == tokens.tolist()


def test_layout_is_that_of_llm_c(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [258, 3])
    data = (tmp_path / "a.bin").read_bytes()
    assert np.frombuffer(data[:12], dtype="<i4").tolist() == [20240520, 1, 2]
    assert data[12:1024] == bytes(1012)
    assert data[1024:] == b"\x02\x01\x03\x00"


def damaged(path: Path, place: slice, data: bytes) -> Path:
    write_shard(path, np.arange(100))
    content = bytearray(path.read_bytes())
    content[place] = data
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("place", "data", "message"),
    [
        (slice(0, 4), b"PK\3\4", "is not a token shard: it starts with 67324752"),
        (slice(0, None), b"", "is not a token shard: it is empty"),
        (slice(0, None), b"x", "is not a token shard|cannot be read"),
        (slice(500, None), b"", "is truncated: its header has 500 of 1024 bytes"),
        (slice(4, 8), b"\7\0\0\0", "has version 7; only version 1"),
        (slice(-2, None), b"", "is truncated: its header promises 100 tokens and .* 99;"),
        (slice(-1, None), b"", "is truncated: its header promises 100 tokens and .* 99.5;"),
        (slice(1224, None), b"\0\0", "has trailing bytes: .* promises 100 .* holds 101;"),
        (slice(8, None), bytes(1016), "holds no tokens"),
    ],
    ids=["foreign", "empty", "one byte", "header", "version", "cut", "odd", "long", "no tokens"],
)
def test_damaged_shard_is_refused(tmp_path: Path, place: slice, data: bytes, message: str) -> None:
    path = damaged(tmp_path / "shard.bin", place, data)
    with pytest.raises(DataError, match=f"shard.bin ({message})"):
        open_shard(path)


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the shard .*none.bin cannot be read"):
        open_shard(tmp_path / "none.bin")


def test_content_is_found_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_CHUNK", 7)
    write_shard(tmp_path / "a.bin", [256, 1, 2, 255, 256, 3, 4, 5, 6])
    shard = open_shard(tmp_path / "a.bin")
    first = shard_content(shard, ONE_BYTE_EACH)
    assert (first.largest_id, first.num_bytes) == (256, 7)
    monkeypatch.setattr(shards, "_CHUNK", 0)  # a second pass would fail
    assert shard_content(shard, ONE_BYTE_EACH) == first
    monkeypatch.setattr(shards, "_CHUNK", 4)
    write_shard(tmp_path / "a.bin", [256, 1, 2, 255, 256, 3, 4, 5, 6, 300])
    changed = shard_content(open_shard(tmp_path / "a.bin"), ONE_BYTE_EACH)
    assert changed.largest_id == 300
    assert changed.content != first.content


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_documents_are_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(shards, "_CHUNK", chunk)
    texts = [b"one", b"two and more", b"x", b"last"]
    with ShardWriter(tmp_path, "train", tokens_per_shard=10) as writer:
        for text in texts:
            writer.write(256, np.frombuffer(text, dtype=np.uint8))
    opened = [open_shard(path) for path in sorted(tmp_path.glob("train_*.bin"))]
    found = [d.astype(np.uint8).tobytes() for shard in opened for d in documents(shard, 256)]
    assert found == texts
    assert [shard.num_tokens for shard in opened] == [17, 7]


def test_documents_before_the_first_separator_and_empty_ones(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [1, 2, 9, 9, 3, 9])
    shard = open_shard(tmp_path / "a.bin")
    assert [document.tolist() for document in documents(shard, 9)] == [[1, 2], [3]]


def test_document_starts_are_the_separators_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_CHUNK", 4)
    write_shard(tmp_path / "a.bin", [9, 1, 2, 9, 3, 4, 5, 9, 9, 1])
    shard = open_shard(tmp_path / "a.bin")
    assert document_starts(shard, 9).tolist() == [0, 3, 7, 8]
    monkeypatch.setattr(shards, "_CHUNK", 0)
    assert document_starts(shard, 9).tolist() == [0, 3, 7, 8]
