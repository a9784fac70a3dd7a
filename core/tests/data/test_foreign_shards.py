"""Tokens of llm.c in 32 bits, and of nanoGPT without a header."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.data.foreign_shards import open_foreign
from nanozoo_core.data.loader import BatchStage, TrainLoader, ValidationSet
from nanozoo_core.data.prepare import PreparedData, prepare
from nanozoo_core.data.shards import open_shard
from nanozoo_core.data.tokenizers import ByteTokenizer, _bpe_tokenizer, save_tokenizer
from nanozoo_core.errors import DataError

TRAIN, VAL = [*b"one two", 256, *b"three", 256], [*b"four five", 256]


def large_shard(tokens: list[int], *, magic: int = 20240801, version: int = 7) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + np.array(tokens, dtype="<u4").tobytes()


def bare(tokens: list[int], dtype: str = "<u2") -> bytes:
    return np.array(tokens, dtype=dtype).tobytes()


def prepared(folder: Path, train: bytes, val: bytes, tokenizer: str = "bytes") -> PreparedData:
    folder.mkdir(exist_ok=True)
    (folder / "train.bin").write_bytes(train)
    (folder / "val.bin").write_bytes(val)
    return prepare(from_defaults(DataConfig, corpus="bin", path=str(folder), tokenizer=tokenizer))


@pytest.mark.parametrize("write", [large_shard, bare, lambda t: bare(t, "<u4")],
                         ids=["llm.c", "nanoGPT", "nanoGPT in 32 bits"])  # fmt: skip
def test_tokens_of_others_are_read(tmp_path: Path, write: object) -> None:
    data = prepared(tmp_path / "a", write(TRAIN), write(VAL))  # type: ignore[operator]
    assert list(data.source.texts(data.train)) == [b"one two", b"three"]
    assert data.validation_text(4) == [b"four"]
    assert (data.train_tokens, data.train_bytes, data.validation_bytes) == (14, 12, 9)


def test_how_a_file_without_a_header_is_read_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "train.bin").write_bytes(bare(TRAIN))
    open_foreign(tmp_path / "train.bin", ByteTokenizer(), said.append)
    assert said == [
        "train.bin has no header: it is read as 14 ids of bytes in 16 bits each, 256 being the "
        "largest"
    ]


def test_a_file_that_takes_anothers_place_is_read_anew(tmp_path: Path) -> None:
    for tokens in (TRAIN, TRAIN[::-1]):
        (tmp_path / "train.bin").write_bytes(bare(tokens))
        shard = open_foreign(tmp_path / "train.bin", ByteTokenizer(), str)
        assert shard.tokens.tolist() == tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bare([1, 2, 3, 258]), "those are 0 to 257, and it has 16908291 of 32 bits and 258 of 16"),
        (bare([*itertools.repeat(3, 1 << 20), 4, 9999]), "9999 of 16 bits; use the tokenizer"),
        (b"abc", "it has an odd number of bytes"),
        (b"PK\3\4" * 9, "no header of a shard, and is no file of ids of data.tokenizer=bytes"),
        (b"", "is not a token shard: it is empty"),
    ],
    ids=["id", "late id", "odd", "archive", "empty"],
)
def test_what_is_no_file_of_the_vocabularys_ids_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_foreign(tmp_path / "train.bin", ByteTokenizer(), str)


def test_ids_that_a_pickle_numbers_are_refused(tmp_path: Path) -> None:
    """Those of nanoGPT's characters would pass for bytes."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0}}))
    with pytest.raises(DataError, match=r"numbered by .*meta\.pkl, which nanozoo does not read"):
        prepared(tmp_path / "a", bare([1, 2]), bare([3]))


def test_a_large_shard_of_another_version_or_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(large_shard(TRAIN, version=1))
    with pytest.raises(DataError, match=r"has version 1; only version 7 \(uint32 tokens\)"):
        open_shard(path)
    path.write_bytes(large_shard(TRAIN)[:-2])
    with pytest.raises(DataError, match=r"promises 14 tokens and the file holds 13\.5"):
        open_shard(path)


def test_ids_above_65535_are_trained_on_and_scored(tmp_path: Path) -> None:
    tokens = [bytes([n]) for n in range(256)]
    tokens += [bytes(pair) for pair in itertools.product(range(256), repeat=2)]
    vocabulary = _bpe_tokenizer({token: rank for rank, token in enumerate(tokens)}, r"(?s:.{1,2})")
    assert vocabulary.separator == 65792
    (tmp_path / "a").mkdir()
    save_tokenizer(vocabulary, tmp_path / "a")
    train = [vocabulary.separator, 65789, 65790, 65791] * 9
    val = [vocabulary.separator, *vocabulary.encode("\u00ff\u00fe" * 3)]
    data = prepared(tmp_path / "a", large_shard(train), large_shard(val), "bpe")
    assert data.train_bytes == 2 * 27
    scored = ValidationSet(data, seq_len=4, num_bytes=100)
    assert next(scored.batches(1)).tokens.tolist()[0] == val[:5]
    for align in ("stream", "documents", "truncate"):
        batch = TrainLoader(data, [BatchStage(0, 1, 4)], align=align).batch(0)  # type: ignore[arg-type]
        assert batch.tokens.tolist()[0] in [train[n : n + 5] for n in range(len(train))]
