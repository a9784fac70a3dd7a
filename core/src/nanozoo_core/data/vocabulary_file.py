"""`data.tokenizer=PATH`: a vocabulary of one's own, written by nanozoo or by Hugging Face's
tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanozoo_core.config import DataConfig
from nanozoo_core.data.hf_vocabulary import vocabulary_of
from nanozoo_core.data.tokenizers import TOKENIZER_FILE, Tokenizer, trained_vocabulary
from nanozoo_core.errors import DataError
from nanozoo_core.files import read_json

MOST_IDS = 65536  # what a .bin shard can hold


def named_vocabulary(data: DataConfig) -> Tokenizer | None:
    """What the file holds that `data.tokenizer` names; None where it names no file.

    Raises: DataError when the file is missing, damaged, or of a kind that gives other ids here.
    """
    if not data.names_tokenizer_file:
        return None
    path = Path(data.tokenizer).expanduser().absolute()
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(
            f"data.tokenizer={data.tokenizer} does not exist (looked from {Path.cwd()}); give a "
            f"{TOKENIZER_FILE}, or bytes, bpe or gpt2"
        )
    remedy = "give one that nanozoo or Hugging Face's tokenizers wrote"
    return read_json(path, lambda stored: _vocabulary(stored, path), remedy=remedy, error=DataError)


def _vocabulary(stored: dict[str, Any], path: Path) -> Tokenizer:
    if "tokens" in stored:
        found = trained_vocabulary(stored)
        if any(bytes([byte]) not in found.encoding._mergeable_ranks for byte in range(256)):
            raise DataError(f"data.tokenizer: {path} lacks a token for some of the 256 bytes")
    elif "model" in stored:
        _refuse_what_changes_text(stored, path)
        found = vocabulary_of(stored, path)
    else:
        raise DataError(
            f"data.tokenizer: {path} is neither a {TOKENIZER_FILE} of nanozoo nor one of Hugging "
            "Face's tokenizers"
        )
    if found.size > MOST_IDS:
        raise DataError(
            f"data.tokenizer: {path} has {found.size} ids, and a .bin shard can hold {MOST_IDS}; "
            "use a smaller vocabulary"
        )
    return found


def _refuse_what_changes_text(stored: dict[str, Any], path: Path) -> None:
    """Raises: DataError for steps that would give a text other ids there than here."""
    normalizer = stored.get("normalizer")
    if normalizer is not None:
        raise DataError(
            f"data.tokenizer: {path} changes the text first (its normalizer is "
            f"{normalizer.get('type')}), and scores are of the text as it is; use a vocabulary "
            "without a normalizer"
        )
    plain = [t["content"] for t in stored.get("added_tokens", []) if not t.get("special", True)]
    if plain:
        raise DataError(
            f"data.tokenizer: {path} has {len(plain)} added tokens that are no special ones, such "
            f"as {plain[0]!r}, and byte-pair encoding would not find them; use a vocabulary "
            "without them"
        )
