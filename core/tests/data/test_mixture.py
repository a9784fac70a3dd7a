import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.data import token_shards
from nanozoo_core.data.loader import BatchStage, TrainLoader, ValidationSet
from nanozoo_core.data.prepare import MixedData, prepare
from nanozoo_core.data.shards import write_shard
from nanozoo_core.data.tokenizers import ByteTokenizer
from nanozoo_core.errors import ConfigError, DataError

LETTERS = {"many": "abc", "few": "xyz"}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, object]]:
    """A text of a, b and c with three quarters of the weight, and one of x, y and z."""
    generator = np.random.default_rng(0)
    found: dict[str, dict[str, object]] = {}
    for name, letters in LETTERS.items():
        folder = tmp_path / name
        folder.mkdir()
        for number in range(30):
            text = "".join(generator.choice(list(letters), size=200 if name == "many" else 60))
            (folder / f"{number}.txt").write_text(text)
        found[name] = {"corpus": "text", "path": str(folder)}
    found["many"]["weight"] = 3
    return found


def mixture(sources: dict[str, dict[str, object]], **changes: object) -> DataConfig:
    settings = {"corpus": "mixture", "sources": sources, "vocab_size": 280, "val_fraction": 0.3}
    return from_defaults(DataConfig, **(settings | changes))  # type: ignore[arg-type]


def prepared(sources: dict[str, dict[str, object]], **changes: object) -> MixedData:
    data = prepare(mixture(sources, **changes))
    assert isinstance(data, MixedData)
    return data


def source_of(data: MixedData, tokens: torch.Tensor) -> str:
    text = data.vocabulary.decode(tokens.tolist())
    (name,) = (name for name, letters in LETTERS.items() if set(text) <= set(letters))
    return name


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_windows_come_from_each_source_by_its_weight(
    sources: dict[str, dict[str, object]], tokenizer: str
) -> None:
    data = prepared(sources, tokenizer=tokenizer)
    loader = TrainLoader(data, [BatchStage(0, 8, 12), BatchStage(10, 8, 16)], seed=1)
    read = {"many": 0.0, "few": 0.0}
    for step in range(20):
        names = [source_of(data, row) for row in loader.batch(step).tokens]
        assert names.count("many") == 6
        length = loader.stage(step).seq_len
        for part in data.parts:
            windows = loader._windows[length].parts[list(read).index(part.name)]
            read[part.name] += names.count(part.name) / len(windows)
        assert loader.epochs_of_sources(step + 1) == pytest.approx(read)


def test_a_source_goes_through_its_windows_in_epochs_of_its_own(
    sources: dict[str, dict[str, object]],
) -> None:
    """Every window of a source is read once before any is read again."""
    data = prepared(sources, tokenizer="bytes")
    loader = TrainLoader(data, [BatchStage(0, 4, 16)], seed=1)
    count = len(loader._windows[16].parts[1])
    few = [
        next(row for row in loader.batch(step).tokens if source_of(data, row) == "few")
        for step in range(count)
    ]
    assert len({tuple(row.tolist()) for row in few}) == count


def test_a_mixture_batch_depends_on_nothing_read_before(
    sources: dict[str, dict[str, object]],
) -> None:
    data = prepared(sources)
    loaders = [TrainLoader(data, [BatchStage(0, 8, 16)], seed=2) for _ in range(2)]
    forward = [loaders[0].batch(step).tokens for step in range(20)]
    assert all(torch.equal(loaders[1].batch(step).tokens, forward[step]) for step in (19, 3, 7))
    parts = [loaders[1].batch(5, first, 2).tokens for first in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), forward[5])


def test_each_source_gives_its_share_of_the_scored_bytes(
    sources: dict[str, dict[str, object]],
) -> None:
    data = prepared(sources)
    validation = ValidationSet(data, seq_len=16, lookahead=2, num_bytes=400)
    assert validation.source_bytes == {"many": 300, "few": 100}
    assert (validation.num_bytes, sum(map(len, validation.documents))) == (400, 400)
    scored: dict[str, bytes] = {"many": b"", "few": b""}
    num_tokens = 0
    for batch in validation.batches(3):
        numbers = validation.sources_of(batch.rows).tolist()
        masks = torch.ones_like(batch.targets, dtype=bool) if batch.scored is None else batch.scored
        for number, targets, mask in zip(numbers, batch.targets, masks, strict=True):
            name = list(scored)[number]
            scored[name] += data.vocabulary.decode_bytes(targets[mask].tolist())
            num_tokens += int(mask.sum())
    assert num_tokens == validation.num_tokens
    for part in data.parts:
        assert scored[part.name] == b"".join(
            part.data.validation_text(validation.source_bytes[part.name])
        )


def test_windows_of_a_source_are_those_of_its_own_validation(
    sources: dict[str, dict[str, object]],
) -> None:
    data = prepared(sources)
    both = ValidationSet(data, seq_len=16, num_bytes=400)
    alone = [
        ValidationSet(part.data, seq_len=16, num_bytes=size)
        for part, size in zip(data.parts, (300, 100), strict=True)
    ]
    assert both.num_windows == sum(one.num_windows for one in alone)
    together = torch.cat([batch.tokens for batch in both.batches(100)])
    apart = torch.cat([batch.tokens for one in alone for batch in one.batches(100)])
    assert torch.equal(together, apart)


def test_the_vocabulary_is_learned_by_the_weights(
    sources: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, int] = {"many": 0, "few": 0}
    train = token_shards.train_bpe

    def counting(texts, *, vocab_size):  # type: ignore[no-untyped-def]
        texts = list(texts)
        for text in texts:
            read["many" if set(text) <= set("abc") else "few"] += len(text)
        return train(texts, vocab_size=vocab_size)

    monkeypatch.setattr(token_shards, "train_bpe", counting)
    sources["many"]["weight"], sources["few"]["weight"] = 1, 4
    data = prepared(sources)
    few = next(part.data for part in data.parts if part.name == "few")
    assert few.train_bytes < read["few"]  # it is read more than once
    assert read["few"] / sum(read.values()) == pytest.approx(0.8, abs=0.05)
    assert {len(part.data.train) for part in data.parts} == {1}
    assert all(part.data.vocabulary.equals(data.vocabulary) for part in data.parts)


def test_shards_take_part_in_their_own_vocabulary_or_anew(
    sources: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("train", "val"):
        write_shard(folder / f"{name}.bin", [256, *f"{name} one two three ".encode() * 9])
    sources["shards"] = {"corpus": "bin", "path": str(folder)}
    data = prepared(sources, tokenizer="bytes")
    assert data.parts[2].data.train[0].path == folder / "train.bin"
    assert isinstance(data.vocabulary, ByteTokenizer)


def test_fingerprint_is_of_the_sources_and_their_shares(
    sources: dict[str, dict[str, object]],
) -> None:
    first = prepared(sources).fingerprint
    assert prepared(sources, tokenizer="bytes").fingerprint == first
    renamed = {"b": sources["few"], "a": sources["many"]}
    assert prepared(renamed, tokenizer="bytes").fingerprint == first
    doubled = {name: one | {"weight": 2 * one.get("weight", 1)} for name, one in sources.items()}  # type: ignore[operator]
    assert prepared(doubled, tokenizer="bytes").fingerprint == first
    sources["few"]["weight"] = 2
    assert prepared(sources, tokenizer="bytes").fingerprint != first


def test_a_source_too_short_for_a_window_is_named(sources: dict[str, dict[str, object]]) -> None:
    data = prepared(sources, tokenizer="bytes")
    with pytest.raises(DataError, match=r"data\.sources\.few: data\.seq_len=2000 is longer"):
        TrainLoader(data, [BatchStage(0, 1, 2000)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "stdlib"}, r"data\.sources \(many, few\) has no effect with data\.corpus=stdl"),
        ({"sources": {}}, r"data\.corpus=mixture needs data\.sources"),
        ({"path": "x"}, r"data\.path=x has no effect with data\.corpus=mixture"),
        ({"sources": {"a": {"corpus": "stdlib", "weight": 0}}}, r"data\.sources\.a\.weight=0"),
        ({"sources": {"a": {"path": "x"}}}, r"data\.sources\.a\.corpus is missing"),
        ({"sources": {"a": {"corpus": "mixture"}}}, r"a\.corpus=mixture would be a mixture in"),
        ({"sources": {"a": {"corpus": "stdlib", "wieght": 1}}}, r"did you mean 'weight'\?"),
        ({"sources": {"a-b": {"corpus": "stdlib"}}}, r"data\.sources\.a-b: a source's name"),
        ({"sources": {"a": 3}}, r"data\.sources\.a=3 must be a section"),
    ],
    ids=["corpus", "none", "path", "weight", "missing", "nested", "typo", "name", "number"],
)
def test_wrong_sources_are_refused(
    sources: dict[str, dict[str, object]], changes: dict[str, object], message: str
) -> None:
    if changes.get("sources") == {}:
        sources = {}
    elif "sources" in changes:
        sources = changes.pop("sources")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=message):
        mixture(sources, **{k: v for k, v in changes.items() if k != "sources"})


def test_settings_of_a_mixture_survive_a_file(sources: dict[str, dict[str, object]]) -> None:
    from nanozoo_core.config import schema

    config = mixture(sources)
    stored = json.loads(json.dumps(schema.to_dict(config)))
    assert from_defaults(DataConfig, **stored) == config
    one = config.of_source("few")
    assert (one.corpus, one.path, one.sources) == ("text", sources["few"]["path"], {})
    assert replace(one, corpus="stdlib", path=None) == mixture({}, corpus="stdlib")
