"""The byte-pair vocabulary in a folder of transformers as one of ours, with the same cuts and
merges."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nanozoo_core.data.hf_tokenizer import byte_signs, find_merges
from nanozoo_core.data.tokenizers import SEPARATOR, TOKENIZER_FILE, Tokenizer
from nanozoo_core.errors import DataError
from nanozoo_core.files import read_json

log = logging.getLogger(__name__)

# What `ByteLevel` cuts a text by there, as GPT-2 does.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SEPARATORS = (SEPARATOR, "<s>", "<|begin_of_text|>", "</s>", "<|end_of_text|>")
"""Tokens that may begin a document, the likeliest first."""


class HFVocabulary(Tokenizer):
    """Ours are numbered anew, in the order of theirs and without their special tokens.

    Attributes: rows, by our id the id that it has there, a row of the weights.
    """

    rows: list[int]


def read_hf_tokenizer(folder: Path) -> HFVocabulary | None:
    """None where the folder has no tokenizer.json.

    Raises: DataError when it is of a kind that ours cannot be.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    remedy = "put there the tokenizer.json that transformers saves"
    return read_json(path, lambda s: vocabulary_of(s, path), remedy=remedy, error=DataError)


def vocabulary_of(stored: dict[str, Any], path: Path) -> HFVocabulary:
    """The vocabulary of a tokenizer.json that is read already. Raises: DataError."""
    import tiktoken

    model = stored["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback"):
        raise DataError(f"{path} is no byte-level BPE but {kind}, which nanozoo does not read")
    values = {sign: bytes([byte]) for byte, sign in enumerate(byte_signs())}
    added = {token["content"]: token for token in stored.get("added_tokens", [])}
    special = {content: t["id"] for content, t in added.items() if t.get("special", True)}
    separator = next((name for name in SEPARATORS if name in special), None)
    if separator is None:
        raise DataError(
            f"{path} has none of the tokens {', '.join(SEPARATORS)} that could begin a document"
        )
    ids = {name: i for name, i in model["vocab"].items() if name not in added}
    if not all(set(name) <= values.keys() for name in ids):
        raise DataError(f"{path} is no byte-level BPE: its tokens are not made of bytes")
    _warn_of_the_rest(stored, [name for name in added if name not in special], path)
    names = sorted(ids, key=ids.__getitem__)
    ranks = {b"".join(map(values.__getitem__, name)): rank for rank, name in enumerate(names)}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    theirs = [tuple(b"".join(map(values.__getitem__, part)) for part in pair) for pair in merges]
    if find_merges(ranks) != theirs or any(bytes([byte]) not in ranks for byte in range(256)):
        raise DataError(f"{path} joins tokens in another order than that of their ids")
    encoding = tiktoken.Encoding(
        "bpe",
        pat_str=_pattern(stored, path),
        mergeable_ranks=ranks,
        special_tokens={SEPARATOR: len(ranks)},
    )
    found = HFVocabulary("bpe", encoding, separator=len(ranks))
    found.rows = [*(ids[name] for name in names), special[separator]]
    return found


def _pattern(stored: dict[str, Any], path: Path) -> str:
    """Raises: DataError for a way to cut texts that is no single pattern."""
    first = stored.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    splits = [step for step in steps if step.get("type") == "Split"]
    known = len(levels) + len(splits) == len(steps) and len(levels) == 1
    if known and not levels[0].get("add_prefix_space"):
        if not splits and levels[0].get("use_regex", True):
            return GPT2_PATTERN
        if len(splits) == 1 and not levels[0].get("use_regex", True):
            split, pattern = splits[0], splits[0]["pattern"].get("Regex")
            if pattern and split.get("behavior") == "Isolated" and not split.get("invert"):
                return str(pattern)
        if not splits:  # of bytes that are never joined
            return r"(?s:.+)"
    kinds = ", ".join(str(step.get("type")) for step in steps)
    raise DataError(f"{path} cuts texts by {kinds}, which nanozoo does not do")


def _warn_of_the_rest(stored: dict[str, Any], plain: list[str], path: Path) -> None:
    normalizer = stored.get("normalizer")
    if normalizer is not None:
        log.warning("%s: its normalizer %s is not applied", path, normalizer.get("type"))
    if plain:
        log.warning(
            "%s: %d added tokens, such as %r, are left out; other tokens spell them",
            *(path, len(plain), plain[0]),
        )
