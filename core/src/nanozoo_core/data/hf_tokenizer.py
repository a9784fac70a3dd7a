"""Our tokenizers as those of the package `tokenizers`, with the same ids."""

from __future__ import annotations

from typing import Any

from nanozoo_core.data.tokenizers import SEPARATOR, Tokenizer
from nanozoo_core.errors import ConfigError


def hf_tokenizer(ours: Tokenizer) -> Any:
    """The same ids from a `tokenizers.Tokenizer`, which also puts the separator before every text;
    as all there, it takes the separator's name in a text for the separator.

    Raises: ConfigError when the package is missing.
    """
    try:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
        from tokenizers import Tokenizer as HFTokenizer
    except ImportError as error:
        raise ConfigError(
            "the export writes the tokenizer with the package tokenizers; install nanozoo-core[hf]"
        ) from error
    encoding = ours.encoding
    special = {text: encoding.encode_single_token(text) for text in encoding.special_tokens_set}
    ranks = {
        encoding.decode_single_token_bytes(token): token
        for token in range(ours.size)
        if token not in special.values()
    }
    signs = byte_signs()
    vocabulary = {_readable(token, signs): rank for token, rank in ranks.items()}
    merges = [
        (_readable(left, signs), _readable(right, signs)) for left, right in find_merges(ranks)
    ]
    theirs = HFTokenizer(models.BPE(vocab=vocabulary | special, merges=merges))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if merges:  # without, where a text is split makes no difference
        steps.insert(0, pre_tokenizers.Split(Regex(encoding._pat_str), "isolated"))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(steps)
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens([AddedToken(text, special=True) for text in special])
    theirs.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A",
        pair=f"{SEPARATOR} $A {SEPARATOR} $B",
        special_tokens=[(SEPARATOR, ours.separator)],
    )
    return theirs


def find_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs that byte-pair encoding joins, by rank: each token of several bytes is what its
    bytes become under the merges before it, joined once more."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) < 2:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(parts[n] + parts[n + 1], rank) for n in range(len(parts) - 1)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def byte_signs() -> list[str]:
    """A printable character for each byte, as GPT-2's vocabulary files have it: printable Latin-1
    bytes stand for themselves, the others for the characters from 256 on, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _readable(token: bytes, signs: list[str]) -> str:
    return "".join(signs[byte] for byte in token)
