import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.data import encoding, shards, token_shards
from nanozoo_core.data.prepare import PreparedData, prepare
from nanozoo_core.data.progress import ByteProgress
from nanozoo_core.errors import DataError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    monkeypatch.setattr(shards, "TOKENS_PER_SHARD", 900)
    monkeypatch.setattr(token_shards, "NOTED_BYTES", 1000)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 200)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Ninety files of some hundred bytes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(90):
        (folder / f"{number}.txt").write_text(f"file {number}: caf\u00e9\n" * (number % 9 + 2))
    settings = {"corpus": "text", "path": str(folder), "vocab_size": 270}
    return from_defaults(DataConfig, **settings)  # type: ignore[arg-type]


def files_of(data: PreparedData) -> dict[str, bytes]:
    folder = data.train[0].path.parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Encoded = Generator[tuple[int, list[encoding.Tokens]]]


@pytest.fixture
def encoded_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Lets the encoding be interrupted after so many batches, and lists the bytes of each."""

    def set_up(stop_after: int | None) -> list[int]:
        found: list[int] = []

        def encoded(*arguments: Any, **options: Any) -> Encoded:
            for batch in encoding.encoded(*arguments, **options):
                if len(found) == stop_after:
                    raise KeyboardInterrupt
                found.append(batch[0])
                yield batch

        monkeypatch.setattr(token_shards, "encoded", encoded)
        return found

    return set_up


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(
    config: DataConfig, own_folder: Path, encoded_bytes: Callable[[int | None], list[int]]
) -> None:
    whole = encoded_bytes(None)
    expected = files_of(prepare(config))
    assert len([name for name in expected if name.endswith(".bin")]) >= 3
    shutil.rmtree(own_folder)
    said: list[str] = []
    read = []
    for stop_after in (len(whole) // 3, len(whole) // 3, None):
        found = encoded_bytes(stop_after)
        if stop_after is None:
            assert files_of(prepare(config, progress=said.append)) == expected
        else:
            with pytest.raises(KeyboardInterrupt):
                prepare(config, progress=said.append)
            (unfinished,) = (own_folder / "tokens").glob(".*.unfinished")
            newest = max(unfinished.glob("train_*.bin"))
            with newest.open("ab") as file:  # what was written after the note, in part
                file.write(b"odd")
        read.append(sum(found))
    assert sum(read) < sum(whole) + 3 * 1400  # what is lost each time is less than a note's bytes
    assert len([line for line in said if "learning" in line]) == 1
    assert not list((own_folder / "tokens").glob(".*.unfinished"))


@pytest.mark.parametrize("damage", ["note", "stream", "finished", "open", "vocabulary"])
def test_what_is_left_damaged_is_not_built_upon(
    config: DataConfig,
    own_folder: Path,
    encoded_bytes: Callable[[int | None], list[int]],
    damage: str,
) -> None:
    whole = encoded_bytes(None)
    expected = files_of(prepare(config))
    shutil.rmtree(own_folder)
    encoded_bytes(len(whole) // 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    (unfinished,) = (own_folder / "tokens").glob(".*.unfinished")
    note = unfinished / "train.progress.json"
    names = sorted(path.name for path in unfinished.glob("train_*.bin"))
    if damage == "note":
        note.write_text("{")
    elif damage == "stream":
        note.write_text(json.dumps(json.loads(note.read_text()) | {"about": "another"}))
    elif damage == "vocabulary":
        (unfinished / "tokenizer.json").write_text("{")
    else:
        path = unfinished / (names[0] if damage == "finished" else names[-1])
        content = path.read_bytes()
        path.write_bytes(content[:1100] + bytes([content[1100] ^ 1]) + content[1101:])
    again = encoded_bytes(None)
    assert files_of(prepare(config)) == expected
    assert (sum(again) == sum(whole)) is (damage != "vocabulary")


def test_a_full_disk_leaves_nothing(
    config: DataConfig, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "note", refuse)
    with pytest.raises(DataError, match="no space is left"):
        prepare(config)
    assert not list((own_folder / "tokens").glob(".*.unfinished"))


def test_workers_write_the_same_shards(
    config: DataConfig, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files_of(prepare(config))
    shutil.rmtree(own_folder)
    monkeypatch.setattr(encoding, "WORKER_BYTES", 100)
    monkeypatch.setattr(encoding, "num_cores", lambda: 2)
    assert files_of(prepare(config)) == expected


def test_shards_end_with_the_document_that_fills_them(config: DataConfig) -> None:
    data = prepare(config)
    longest = max(len(data.vocabulary.encode(text)) for text in data.source.texts(data.train))
    assert all(900 <= shard.num_tokens <= 900 + longest for shard in data.train[:-1])
    assert all(shard.tokens[0] == data.vocabulary.separator for shard in data.train)
    assert np.concatenate([shard.tokens for shard in data.train]).size == data.train_tokens


def test_progress_is_told_in_lines_with_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nanozoo_core.data import progress

    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    said: list[str] = []
    with ByteProgress("tokenizing", 90_000_000, said.append, done=10_000_000) as shown:
        now = 105.0
        shown.update(10_000_000)
        now = 110.0
        shown.update(10_000_000)
        assert not said
        now = 120.0
        shown.update(20_000_000)
    assert said == ["tokenizing: 50 of 90 MB, 2.0 MB/s, 20 s left"]
