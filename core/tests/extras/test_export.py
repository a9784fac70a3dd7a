"""The tokenizer that an export writes gives the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from nanozoo_core.config import compose
from nanozoo_core.data.hf_tokenizer import find_merges, hf_tokenizer
from nanozoo_core.data.tokenizers import SEPARATOR, ByteTokenizer, Tokenizer, train_bpe
from nanozoo_core.errors import ConfigError
from nanozoo_core.training.export import export_hf
from nanozoo_core.training.runs import LoadedRun

SOURCE = Path(compose.__file__).read_text()
TEXTS = [
    "def f(x):\n        return x + 1\n",
    "it's self.x's \t\t tabs\r\n\r\n  and   spaces   ",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 12345 0x1F",
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([SOURCE * 3], vocab_size=500)


@pytest.mark.parametrize("name", ["bpe", "bytes"])
def test_ids_are_the_same(name: str, bpe: Tokenizer) -> None:
    ours = bpe if name == "bpe" else ByteTokenizer()
    theirs = hf_tokenizer(ours)
    for text in [*TEXTS, SOURCE, ""]:
        expected = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == expected
        assert theirs.encode(text).ids == [ours.separator, *expected]
        assert theirs.decode(expected) == text
    assert theirs.token_to_id(SEPARATOR) == ours.separator
    assert theirs.get_vocab_size() == ours.size


def test_the_separators_name_in_a_text_becomes_the_separator(bpe: Tokenizer) -> None:
    theirs = hf_tokenizer(bpe)  # as in every tokenizer of transformers
    assert theirs.encode(f"a{SEPARATOR}b", add_special_tokens=False).ids == [
        *bpe.encode("a"), bpe.separator, *bpe.encode("b")
    ]  # fmt: skip


def test_merges_rebuild_the_vocabulary() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"abc": 257, b"cd": 258}
    assert find_merges(ranks) == [(b"a", b"b"), (b"ab", b"c"), (b"c", b"d")]


def test_a_model_without_a_class_says_which_have_one(run: LoadedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="toy has no class in transformers"):
        export_hf(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
