"""A vocabulary without a tokenizer, for tests and for estimates made before any text is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ToyVocabulary:
    """`size` tokens of one byte each; token 0 doubles as the separator."""

    name = "toy"
    separator = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self.token_bytes = torch.ones(size, dtype=torch.int64)

    def encode(self, text: str | bytes) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [byte % self.size for byte in raw]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(token) for token in tokens)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return self.decode(tokens).encode()
