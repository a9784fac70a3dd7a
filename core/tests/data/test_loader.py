import bz2
import lzma
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.contract import Batch
from nanozoo_core.data.loader import BatchStage, TrainLoader, ValidationSet, compression_baselines
from nanozoo_core.data.prepare import PreparedData, prepare
from nanozoo_core.data.shards import open_shard, write_shard
from nanozoo_core.data.windows import Align
from nanozoo_core.errors import DataError
from nanozoo_core.likelihood import target_bytes

TOKENIZERS = ["bytes", "bpe"]
aligns = pytest.mark.parametrize("align", ["stream", "documents", "truncate"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of a little text with characters of one to four bytes."""
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    words = ["the", "caf\u00e9", "\u4e16\u754c", "x = 1\n    y", "\U0001f600", "and", "zoo\n"]
    for number in range(40):
        text = " ".join(generator.choice(words, size=generator.integers(20, 200)))
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(params=TOKENIZERS)
def prepared(request: pytest.FixtureRequest, folder: Path) -> PreparedData:
    return prepared_with(request.param, folder)


def prepared_with(tokenizer: str, folder: Path) -> PreparedData:
    return prepare(
        from_defaults(
            DataConfig,
            corpus="text",
            path=str(folder),
            tokenizer=tokenizer,
            vocab_size=270,
            val_fraction=0.3,
        )
    )


def same(a: Batch, b: Batch) -> bool:
    return bool(
        torch.equal(a.tokens, b.tokens)
        and torch.equal(a.documents, b.documents)
        and torch.equal(a.rows, b.rows)
        and a.num_rows == b.num_rows
    )


# -- training -----------------------------------------------------------------------------------


def test_batch_has_the_contract_shapes(prepared: PreparedData) -> None:
    batch = TrainLoader(prepared, [BatchStage(0, 5, 16)], lookahead=3).batch(0)
    assert batch.tokens.shape == batch.documents.shape == (5, 19)
    assert (batch.tokens.dtype, batch.documents.dtype) == (torch.int64, torch.int32)
    assert batch.inputs.shape == batch.targets.shape == (5, 16)
    assert batch.rows.tolist() == [0, 1, 2, 3, 4]
    assert (batch.num_rows, batch.lookahead, batch.scored) == (5, 3, None)


@aligns
def test_batch_does_not_depend_on_what_was_read_before(
    prepared: PreparedData, align: Align
) -> None:
    loader = TrainLoader(prepared, [BatchStage(0, 4, 16)], seed=1, align=align)
    forward = [loader.batch(step) for step in range(60)]
    fresh = TrainLoader(prepared, [BatchStage(0, 4, 16)], seed=1, align=align)
    assert all(same(fresh.batch(step), forward[step]) for step in reversed(range(60)))


@aligns
def test_parts_of_ranks_and_micro_steps_are_the_global_batch(
    prepared: PreparedData, align: Align
) -> None:
    loader = TrainLoader(prepared, [BatchStage(0, 12, 16)], seed=1, align=align)
    whole = loader.batch(7)
    parts = [loader.batch(7, first, 3) for first in range(0, 12, 3)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    assert {part.num_rows for part in parts} == {12}


def test_seed_decides_the_order(prepared: PreparedData) -> None:
    first, second = (TrainLoader(prepared, [BatchStage(0, 4, 16)], seed=s) for s in (0, 1))
    assert not same(first.batch(0), second.batch(0))


def with_places_for_tokens(prepared: PreparedData, folder: Path) -> PreparedData:
    """The same data with a training shard whose token at position p is p."""
    write_shard(folder / "places.bin", np.arange(1000))
    return replace(prepared, train=(open_shard(folder / "places.bin"),))


def test_epoch_reads_every_window_once(prepared: PreparedData, tmp_path: Path) -> None:
    data = with_places_for_tokens(prepared, tmp_path)
    loader = TrainLoader(data, [BatchStage(0, 4, 16)], seed=2)
    count = loader.num_windows()
    assert count == 61  # an epoch ends within a batch
    firsts = torch.cat([loader.batch(step).tokens[:, 0] for step in range(31)])
    for epoch in (firsts[:count], firsts[count : 2 * count]):
        assert epoch.sort().values.diff().tolist() == [16] * (count - 1)
        assert epoch.diff().unique().numel() > 20


@aligns
def test_documents_count_from_the_window_start(prepared: PreparedData, align: Align) -> None:
    loader = TrainLoader(prepared, [BatchStage(0, 8, 200)], align=align)
    batch = loader.batch(0)
    separator = prepared.vocabulary.separator
    for tokens, documents in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        number = 0
        for position, token in enumerate(tokens):
            number += token == separator and position > 0
            assert documents[position] == number
    assert batch.documents.max() > 0


def test_document_windows_start_with_the_separator_or_go_on_from_one(
    prepared: PreparedData,
) -> None:
    loader = TrainLoader(prepared, [BatchStage(0, 8, 2000)], align="documents")
    starts = loader.batch(0).tokens[:, 0]
    assert (starts == prepared.vocabulary.separator).float().mean() > 0.5


def test_truncated_documents_all_begin_in_their_window(prepared: PreparedData) -> None:
    """Whatever precedes a separator in a window, what follows it is the beginning of a document."""
    separator = prepared.vocabulary.separator
    stream = np.concatenate([shard.tokens for shard in prepared.train]).tolist()
    begun = {tuple(stream[p : p + 4]) for p, token in enumerate(stream) if token == separator}
    loader = TrainLoader(prepared, [BatchStage(0, 8, 200)], align="truncate")
    for step in range(3):
        for row in loader.batch(step).tokens.tolist():
            assert row[0] == separator
            places = [p for p, token in enumerate(row[:-4]) if token == separator]
            assert all(tuple(row[p : p + 4]) in begun for p in places)
            assert max(np.diff([*places, len(row)])) <= 201


def test_num_bytes_is_the_length_of_the_scored_text(prepared: PreparedData) -> None:
    loader = TrainLoader(prepared, [BatchStage(0, 6, 50)], lookahead=2)
    batch = loader.batch(3)
    texts = [prepared.vocabulary.decode_bytes(row.tolist()) for row in batch.targets]
    assert target_bytes(batch, loader.vocabulary) == sum(map(len, texts))
    scored = torch.arange(50) % 3 == 0
    masked = Batch(
        batch.tokens, batch.documents, batch.rows, 6, lookahead=2, scored=scored.expand(6, 50)
    )
    texts = [prepared.vocabulary.decode_bytes(row[scored].tolist()) for row in batch.targets]
    assert target_bytes(masked, loader.vocabulary) == sum(map(len, texts))


def test_window_longer_than_the_text_is_refused(prepared: PreparedData) -> None:
    with pytest.raises(DataError, match=r"data\.seq_len=1000000 is longer than the training data"):
        TrainLoader(prepared, [BatchStage(0, 1, 1_000_000)])


def test_larger_batches_go_on_where_the_smaller_stopped(prepared: PreparedData) -> None:
    plain = TrainLoader(prepared, [BatchStage(0, 2, 16)], seed=3)
    stages = [BatchStage(0, 2, 16), BatchStage(5, 4, 16), BatchStage(7, 6, 16)]
    staged = TrainLoader(prepared, stages, seed=3)
    rows = torch.cat([staged.batch(step).tokens for step in range(9)])
    assert [len(staged.batch(step).rows) for step in range(9)] == [2] * 5 + [4] * 2 + [6] * 2
    assert torch.equal(rows, torch.cat([plain.batch(step).tokens for step in range(15)]))


def test_longer_windows_begin_an_epoch_of_their_own(prepared: PreparedData, tmp_path: Path) -> None:
    data = with_places_for_tokens(prepared, tmp_path)
    loader = TrainLoader(data, [BatchStage(0, 4, 16), BatchStage(5, 2, 32)], seed=3)
    assert loader.batch(4).inputs.shape == (4, 16)
    assert loader.batch(5).inputs.shape == (2, 32)
    assert loader.stage(5) == BatchStage(5, 2, 32)
    assert loader.num_windows(5) == 30
    firsts = torch.cat([loader.batch(step).tokens[:, 0] for step in range(5, 20)])
    assert firsts.sort().values.diff().tolist() == [32] * 29


# -- validation ---------------------------------------------------------------------------------


def scored_text(prepared: PreparedData, batches: list[Batch]) -> bytes:
    """The text of all scored tokens in the order of their rows."""
    pieces: dict[int, list[int]] = {}
    for batch in batches:
        mask = torch.ones_like(batch.targets, dtype=torch.bool)
        mask = mask if batch.scored is None else batch.scored
        for row, targets, scored in zip(batch.rows.tolist(), batch.targets, mask, strict=True):
            pieces.setdefault(row, []).extend(targets[scored].tolist())
    tokens = [token for row in sorted(pieces) for token in pieces[row]]
    return prepared.vocabulary.decode_bytes(tokens)


@pytest.mark.parametrize("seq_len", [1, 7, 64, 100_000])
@pytest.mark.parametrize("lookahead", [1, 5])
@pytest.mark.parametrize("num_bytes", [100, 1001])
def test_every_validation_byte_is_scored_once(
    prepared: PreparedData, seq_len: int, lookahead: int, num_bytes: int
) -> None:
    validation = ValidationSet(prepared, seq_len=seq_len, lookahead=lookahead, num_bytes=num_bytes)
    batches = list(validation.batches(3))
    text = b"".join(prepared.validation_text(num_bytes))
    assert scored_text(prepared, batches) == text
    assert validation.num_bytes == len(text)
    assert sum(batch.num_scored for batch in batches) == validation.num_tokens
    assert sum(len(batch.rows) for batch in batches) == validation.num_windows
    assert {batch.num_rows for batch in batches} == {validation.num_windows}
    assert all(batch.tokens.shape[1] == seq_len + lookahead for batch in batches)


def test_validation_pays_for_every_separator_but_the_first(prepared: PreparedData) -> None:
    validation = ValidationSet(prepared, seq_len=30, num_bytes=2000)
    separators = sum(
        int((batch.targets == prepared.vocabulary.separator)[mask].sum())
        for batch in validation.batches(4)
        for mask in [slice(None) if batch.scored is None else batch.scored]
    )
    assert separators == len(validation.documents) - 1 > 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
def test_ranks_share_the_validation_windows(prepared: PreparedData, world_size: int) -> None:
    validation = ValidationSet(prepared, seq_len=64, num_bytes=1500)
    ranks = [
        list(validation.batches(2, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    flat = [batch for batches in ranks for batch in batches]
    assert scored_text(prepared, flat) == b"".join(validation.documents)
    assert sum(batch.num_scored for batch in flat) == validation.num_tokens


def test_last_window_is_full_and_scores_only_what_is_left(prepared: PreparedData) -> None:
    validation = ValidationSet(prepared, seq_len=64, num_bytes=1500)
    *_, last = validation.batches(1)
    left = validation.num_tokens % 64
    assert left
    assert last.scored is not None
    assert last.scored[0].tolist() == [False] * (64 - left) + [True] * left


def test_past_the_end_stand_separators(prepared: PreparedData) -> None:
    validation = ValidationSet(prepared, seq_len=64, lookahead=4, num_bytes=1500)
    *_, last = validation.batches(1)
    assert last.tokens[0, -3:].tolist() == [prepared.vocabulary.separator] * 3
    assert last.tokens[0, -4] != prepared.vocabulary.separator


def test_tokenizers_score_the_same_bytes(folder: Path) -> None:
    sets = [
        ValidationSet(prepared_with(name, folder), seq_len=64, num_bytes=1234)
        for name in TOKENIZERS
    ]
    assert sets[0].documents == sets[1].documents
    assert sets[0].num_bytes == sets[1].num_bytes
    assert sets[0].num_tokens > sets[1].num_tokens


def test_compressors_are_measured_on_the_bytes_themselves() -> None:
    documents = [b"hello " * 100, b"world " * 50]
    found = compression_baselines(documents)
    assert set(found) == {"zlib", "bz2", "xz"}
    assert found["bz2"] == 8 * len(bz2.compress(b"hello " * 100 + b"world " * 50, 9)) / 900


def test_the_strongest_compression_takes_memory_by_the_size_of_the_text() -> None:
    """Its own preset takes 700 MB, and finds no more."""
    text = b"".join(f"word{i * i % 23} ".encode() for i in range(400))
    tracemalloc.start()
    found = compression_baselines([text[:100], text[100:]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    expected = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert found["xz"] == 8 * expected / len(text)


def test_epochs_are_counted_by_the_windows_of_each_stage(prepared: PreparedData) -> None:
    loader = TrainLoader(prepared, [BatchStage(0, 5, 16), BatchStage(10, 3, 32)])
    short, long = loader.num_windows(0), loader.num_windows(10)
    assert short != long
    assert loader.epochs(0) == 0
    assert loader.epochs(4) == 4 * 5 / short
    assert loader.epochs(10) == 10 * 5 / short
    assert loader.epochs(12) == pytest.approx(10 * 5 / short + 2 * 3 / long)
