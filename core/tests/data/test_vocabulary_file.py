import json
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.config.resolved import expected_vocab_size
from nanozoo_core.data.prepare import prepare
from nanozoo_core.data.tokenizers import Tokenizer, save_tokenizer, train_bpe
from nanozoo_core.data.vocabulary_file import named_vocabulary
from nanozoo_core.errors import ConfigError, DataError

TEXT = "def f(x):\n    return {'self': x + 1}\n\n\n the cat's hat, caf\u00e9 12345  "


def config(file: Path, **changes: Any) -> DataConfig:
    return from_defaults(DataConfig, tokenizer=str(file), **changes)


@pytest.fixture
def own() -> Tokenizer:
    return train_bpe([TEXT] * 9, vocab_size=290)


@pytest.fixture
def foreign(own: Tokenizer) -> dict[str, Any]:
    """The same vocabulary in the form of Hugging Face's tokenizers, cut as GPT-2 cuts."""
    tokenizers = pytest.importorskip("tokenizers")
    from nanozoo_core.data.hf_tokenizer import hf_tokenizer

    made = hf_tokenizer(own)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found: dict[str, Any] = json.loads(made.to_str())
    return found


def test_a_vocabulary_that_nanozoo_wrote_is_taken(own: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(own, tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = named_vocabulary(config(path))
        assert found is not None
        assert found.equals(own)
        assert found.encode(TEXT) == own.encode(TEXT)
    assert expected_vocab_size(config(tmp_path / "tokenizer.json")) == own.size


def test_one_of_hugging_face_gives_the_same_ids(foreign: dict[str, Any], tmp_path: Path) -> None:
    import tokenizers

    path = tmp_path / "mine.json"
    path.write_text(json.dumps(foreign))
    found = named_vocabulary(config(path))
    assert found is not None
    theirs = tokenizers.Tokenizer.from_str(json.dumps(foreign))
    assert found.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False).ids
    assert found.size == theirs.get_vocab_size() == expected_vocab_size(config(path))
    assert found.decode(found.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "changes the text first .*NFC"),
        ({"model": {"type": "Unigram", "vocab": []}}, "is no byte-level BPE but Unigram"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts texts by Whitespace"),
        (
            {"added_tokens": [{"content": "  ", "id": 300, "special": False}]},
            "has 1 added tokens that are no special ones, such as '  '",
        ),
    ],
    ids=["normalizer", "model", "cuts", "added"],
)
def test_another_kind_is_refused_with_the_reason(
    foreign: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(foreign | changes))
    with pytest.raises(DataError, match=message):
        named_vocabulary(config(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("{}", "is neither a tokenizer.json of nanozoo nor"),
        ('{"pattern": ".", "tokens": ["YQ=="]}', "lacks a token for some of the 256 bytes"),
    ],
    ids=["damaged", "other", "bytes"],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        named_vocabulary(config(path))


def test_a_missing_file_and_a_wrong_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer=.*nowhere\.json does not exist"):
        prepare(config(tmp_path / "nowhere.json"))
    with pytest.raises(ConfigError, match=r"data\.tokenizer=bype must be one of bytes, .*'bpe'\?"):
        config(Path("bype"))


def test_the_data_are_in_the_named_vocabulary_alone(
    own: Tokenizer, tmp_path: Path, own_folder: Path
) -> None:
    """Two files at one place are two vocabularies."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(f"{number} {TEXT}")
    asked = config(tmp_path / "tokenizer.json", corpus="text", path=str(texts))
    for vocabulary in (own, train_bpe([TEXT] * 9, vocab_size=270)):
        save_tokenizer(vocabulary, tmp_path)
        for _ in range(2):
            data = prepare(asked)
            assert data.vocabulary.equals(vocabulary)
            assert data.parts[0].data.train[0].tokens.max() == vocabulary.separator
    (tmp_path / "tokenizer.json").unlink()
    assert prepare(asked, vocabulary=own).vocabulary.equals(own)  # a run brings its own
