"""Tokenizers of transformers' folders, written here as their files are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.data.hf_tokenizer import byte_signs, find_merges
from nanozoo_core.data.hf_vocabulary import read_hf_tokenizer
from nanozoo_core.data.tokenizers import PATTERN, Tokenizer, train_bpe
from nanozoo_core.errors import DataError

TEXT = "def f(x):\n        return x + 1  # na\u00efve caf\u00e9\n" * 20
SHIFT = 3  # ids of special tokens before the others


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_bpe([TEXT], vocab_size=300)


def stored(ours: Tokenizer, **changes: Any) -> dict[str, Any]:
    """As transformers saves it, with its special tokens first."""
    signs = byte_signs()
    ranks = {token: id for token, id in ours.ids().items() if isinstance(token, bytes)}

    def readable(token: bytes) -> str:
        return "".join(signs[byte] for byte in token)

    special = ["<s>", "<pad>", "</s>"]
    vocab = {name: id for id, name in enumerate(special)}
    vocab |= {readable(token): SHIFT + id for token, id in ranks.items()}
    merges = [[readable(part) for part in pair] for pair in find_merges(ranks)]
    added = [{"id": id, "content": name, "special": True} for id, name in enumerate(special)]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "normalizer": None,
    } | changes


def read(folder: Path, content: dict[str, Any]) -> Any:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return read_hf_tokenizer(folder)


def test_texts_have_the_same_tokens_and_know_their_rows(ours: Tokenizer, tmp_path: Path) -> None:
    found = read(tmp_path, stored(ours))
    ids = found.encode(TEXT)
    assert ids == ours.encode(TEXT)
    assert [found.rows[id] for id in ids] == [SHIFT + id for id in ids]
    assert found.rows[found.separator] == 0  # <s>
    assert sorted(found.rows) == [0, *range(SHIFT, SHIFT + ours.size - 1)]


def test_gpt2s_way_to_cut_is_known(ours: Tokenizer, tmp_path: Path) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    found = read(tmp_path, stored(ours, pre_tokenizer=level))
    assert "'(?:[sdmt]|ll|ve|re)" in found.encoding._pat_str


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"type": "Unigram"}},
            "no byte-level BPE but Unigram",
        ),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "cuts texts by Metaspace"),
        ({"added_tokens": []}, "none of the tokens"),
    ],
    ids=["kind", "cut", "separator"],
)
def test_other_kinds_are_refused(
    ours: Tokenizer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, stored(ours, **changes))


def test_merges_in_another_order_are_refused(ours: Tokenizer, tmp_path: Path) -> None:
    content = stored(ours)
    content["model"]["merges"].reverse()
    with pytest.raises(DataError, match="in another order than that of their ids"):
        read(tmp_path, content)


def test_what_is_left_out_is_said(
    ours: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = stored(ours, normalizer={"type": "NFC"})
    content["added_tokens"].append({"id": 999, "content": "    ", "special": False})
    with caplog.at_level(logging.WARNING):
        read(tmp_path, content)
    assert "its normalizer NFC is not applied" in caplog.text
    assert "1 added tokens, such as '    ', are left out" in caplog.text


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    assert read_hf_tokenizer(tmp_path) is None
