"""Tokens that other programs have written: shards, and nanoGPT's files without a header.

These hold nothing but ids, as uint16 or, from larger vocabularies, as uint32. Neither the width nor
the vocabulary stands in them: `data.tokenizer` names the vocabulary, and the width is the one in
which all ids belong to it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nanozoo_core.data.shards import (
    Shard,
    has_header,
    open_shard,
    shard_content,
    shard_without_header,
)
from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.errors import DataError

_LOOK = 1 << 20  # tokens that mostly tell a wrong width already


def open_foreign(path: Path, vocabulary: Tokenizer, say: Callable[[str], object]) -> Shard:
    """Opens a shard, or a file of ids alone, of which it says how it is read.

    Raises: DataError when it is neither.
    """
    if has_header(path) or path.stat().st_size == 0:
        return open_shard(path)
    if (path.parent / "meta.pkl").exists():
        raise DataError(
            f"{path} is numbered by {path.parent / 'meta.pkl'}, which nanozoo does not read, since "
            "a pickle can run any program; use the text itself with data.corpus=text"
        )
    largest: dict[int, int] = {}  # by the width in bits
    for bits in (32, 16):
        shard = shard_without_header(path, f"<u{bits // 8}")
        if shard is None:
            continue
        largest[bits] = int(shard.tokens[:_LOOK].max())
        if largest[bits] < vocabulary.size:
            largest[bits] = shard_content(shard, vocabulary.byte_counts).largest_id
        if largest[bits] < vocabulary.size:
            say(
                f"{path.name} has no header: it is read as {shard.num_tokens:,} ids of "
                f"{vocabulary.name} in {bits} bits each, {largest[bits]} being the largest"
            )
            return shard
    found = " and ".join(f"{value} of {bits} bits" for bits, value in largest.items())
    raise DataError(
        f"{path} has no header of a shard, and is no file of ids of data.tokenizer="
        f"{vocabulary.name} alone: those are 0 to {vocabulary.size - 1}, and it has "
        f"{found or 'an odd number of bytes'}; use the tokenizer that wrote it"
    )
