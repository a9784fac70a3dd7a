"""The three tokenizers: bytes, a byte-pair vocabulary that a run keeps, and GPT-2's.

All are tiktoken Encodings underneath and implement `contract.Vocabulary`. Text never becomes a
special token: "<|endoftext|>" in a document is thirteen ordinary characters.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nanozoo_core.config import DataConfig
from nanozoo_core.data.cache import digest
from nanozoo_core.data.shards import Tokens
from nanozoo_core.errors import DataError
from nanozoo_core.files import read_json, write_json

if TYPE_CHECKING:
    import tiktoken
    from torch import Tensor

logger = logging.getLogger(__name__)

SEPARATOR = "<|endoftext|>"
PAD = "<|pad|>"
TOKENIZER_FILE = "tokenizer.json"

# GPT-4's pattern with two changes for source code: a line break takes the indentation after it and
# may hang on the punctuation before it (":\n        " is one token), and "'s" is no unit of its
# own, as it would cut 'self' in two. 3.95 bytes per token on Python source against 3.70.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?+\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++(?:[\r\n]+[ \t]*)?"
    r"|[\r\n]+[ \t]*"
    r"|\s+(?!\S)"
    r"|\s+"
)

# The patterns look ahead from the end of white space, and the libraries that apply them keep a
# place for each of its characters: from about a million on they panic.
LONGEST_SPACE = 100_000
TEXTS_AT_ONCE = 64  # that are counted together; the library's own 8192 may be gigabytes
_PLACE_TO_CUT = re.compile(rf"\s{{{LONGEST_SPACE}}}(?=\s)")


def cut_long_spaces(text: str) -> Iterator[str]:
    """The parts of a text cut within white space longer than `LONGEST_SPACE` characters, which both
    training and encoding see one by one: every other text is whole."""
    start = 0
    if _may_have_long_space(text):
        for found in _PLACE_TO_CUT.finditer(text):
            yield text[start : found.end()]
            start = found.end()
    yield text[start:]


def _may_have_long_space(text: str) -> bool:
    """Whether one of the blocks is white space, of which a longer one would hold a whole."""
    size = LONGEST_SPACE // 2
    return any(text[n : n + size].isspace() for n in range(0, len(text) - size, size))


class Tokenizer:
    """A tiktoken Encoding with a separator, as models and the metric see it.

    Attributes: name, bytes, bpe or gpt2; size, ids are 0 .. size - 1; dtype, of ids in arrays;
    separator, the id that starts every document.
    """

    def __init__(self, name: str, encoding: tiktoken.Encoding, *, separator: int) -> None:
        self.name = name
        self.encoding = encoding
        self.size = encoding.max_token_value + 1
        self.dtype = np.dtype(np.uint16 if self.size <= 65536 else np.uint32)
        self.separator = separator

    @cached_property
    def identity(self) -> str:
        """A digest of the pattern and the tokens: equal for vocabularies that give the same ids."""
        tokens = [self._bytes_of(token).hex() for token in range(self.size)]
        return digest([self.name, self.encoding._pat_str, self.separator, tokens])

    def ids(self) -> dict[bytes | str, int]:
        """The id of every token: bytes, or the name of a special one."""
        found: dict[bytes | str, int] = {
            name: self.encoding.encode_single_token(name)
            for name in self.encoding.special_tokens_set
        }
        special = set(found.values())
        ordinary = (token for token in range(self.size) if token not in special)
        return found | {text: token for token in ordinary if (text := self._bytes_of(token))}

    def equals(self, other: Tokenizer) -> bool:
        return self.identity == other.identity

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of a text. Bytes that are no valid UTF-8 become one token each."""
        if isinstance(text, str):
            return self._encode_text(text)
        tokens: list[int] = []
        while text:
            try:
                return tokens + self._encode_text(text.decode("utf-8"))
            except UnicodeDecodeError as error:
                tokens += self._encode_text(text[: error.start].decode("utf-8"))
                tokens += [
                    self.encoding.encode_single_token(bytes([byte]))
                    for byte in text[error.start : error.end]
                ]
                text = text[error.end :]
        return tokens

    def _encode_text(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in cut_long_spaces(text):
            tokens += self.encoding.encode_ordinary(part)
        return tokens

    def encode_array(self, text: bytes) -> Tokens:
        """Ids of a text as they stand in a shard: those of `encode`, without a list of them."""
        try:
            parts = [
                self.encoding.encode_to_numpy(part, disallowed_special=()).astype(self.dtype)
                for part in cut_long_spaces(text.decode("utf-8"))
            ]
        except UnicodeDecodeError:
            return np.array(self.encode(text), dtype=self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed when it is asked for, which may be a tensor."""
        kept = ("name", "encoding", "size", "dtype", "separator")
        return {key: value for key, value in vars(self).items() if key in kept}

    def decode_bytes(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
        """The text of `tokens`; ids that have none (separator, pad, a model's own) vanish."""
        return self.encoding.decode_bytes(self._with_text(tokens).tolist())

    def _with_text(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        ids = np.asarray(tokens, dtype=np.int64)
        ids = ids[(ids >= 0) & (ids < self.size)]
        return ids[self.byte_counts[ids] > 0]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text for display: invalid UTF-8 is replaced, special tokens vanish."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    @cached_property
    def byte_counts(self) -> npt.NDArray[np.int64]:
        """(size,) bytes of each token, 0 for special ones and for ids that do not occur."""
        special = {self.encoding.encode_single_token(s) for s in self.encoding.special_tokens_set}
        counts = np.zeros(self.size, dtype=np.int64)
        for token in range(self.size):
            if token not in special:
                counts[token] = len(self._bytes_of(token))
        return counts

    def _bytes_of(self, token: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(token)
        except KeyError:
            return b""

    @cached_property
    def token_bytes(self) -> Tensor:
        """`byte_counts` as a tensor, (size,) int64."""
        import torch

        return torch.from_numpy(self.byte_counts)


class ByteTokenizer(Tokenizer):
    """Ids 0 .. 255 are the bytes, 256 separates documents, 257 pads."""

    def __init__(self) -> None:
        import tiktoken

        encoding = tiktoken.Encoding(
            "bytes",
            pat_str=r"(?s:.)",
            mergeable_ranks={bytes([byte]): byte for byte in range(256)},
            special_tokens={SEPARATOR: 256, PAD: 257},
        )
        super().__init__("bytes", encoding, separator=256)

    def encode(self, text: str | bytes) -> list[int]:
        """The UTF-8 bytes of a text, or any bytes."""
        return list(text.encode("utf-8", errors="replace") if isinstance(text, str) else text)

    def encode_array(self, text: bytes) -> Tokens:
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint16)

    def decode_bytes(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
        if isinstance(tokens, np.ndarray) and tokens.dtype == np.uint16:  # those of a shard
            return tokens[tokens < 256].astype(np.uint8).tobytes()
        return self._with_text(tokens).astype(np.uint8).tobytes()


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learns a byte-pair vocabulary of `vocab_size` ids, the separator being the last.

    Too little text gives a smaller vocabulary, with a warning.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()
    parts = (part for text in texts for part in cut_long_spaces(text))
    trainer.train_from_iterator(
        parts, vocab_size=vocab_size - 1, pattern=PATTERN, buffer_size=TEXTS_AT_ONCE
    )
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocab_size - 1:
        logger.warning(
            "data.vocab_size=%d is more than the training text gives; the vocabulary has %d ids",
            vocab_size,
            len(ranks) + 1,
        )
    return _bpe_tokenizer(ranks, PATTERN)


def _bpe_tokenizer(ranks: dict[bytes, int], pattern: str) -> Tokenizer:
    import tiktoken

    separator = len(ranks)
    encoding = tiktoken.Encoding(
        "bpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={SEPARATOR: separator}
    )
    return Tokenizer("bpe", encoding, separator=separator)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a byte-pair vocabulary as tokenizer.json: the pattern, and its tokens by rank in
    base64.

    The other two are known by name and leave no file.
    """
    if tokenizer.name != "bpe":
        return
    tokens = [
        base64.b64encode(tokenizer.encoding.decode_single_token_bytes(rank)).decode("ascii")
        for rank in range(tokenizer.separator)
    ]
    stored = {"format": 1, "pattern": tokenizer.encoding._pat_str, "tokens": tokens}
    write_json(folder / TOKENIZER_FILE, stored, indent=None)


def load_tokenizer(folder: Path, data: DataConfig) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names; one that is trained or comes from a file is read
    from what `save_tokenizer` wrote into the folder.

    Raises: DataError when the file is missing or is not such a vocabulary.
    """
    if data.tokenizer == "bytes":
        return ByteTokenizer()
    if data.tokenizer == "gpt2":
        return gpt2_tokenizer()
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(
            f"data.tokenizer={data.tokenizer} finds no {TOKENIZER_FILE} in {folder}; put the "
            "trained vocabulary there, or use the tokenizer that wrote these tokens"
        )

    remedy = "put the vocabulary there that nanozoo wrote"
    return read_json(path, trained_vocabulary, remedy=remedy, error=DataError)


def trained_vocabulary(stored: dict[str, Any]) -> Tokenizer:
    """What `save_tokenizer` has written. Raises: what wrong types and missing keys raise."""
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(stored["tokens"])}
    return _bpe_tokenizer(ranks, stored["pattern"])


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's 50257 ids; tiktoken downloads them once and honours TIKTOKEN_CACHE_DIR.

    Raises: DataError when they are neither there nor to be had.
    """
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            "data.tokenizer=gpt2 needs GPT-2's vocabulary, which tiktoken could not download "
            f"({type(error).__name__}); run once with a connection, or set TIKTOKEN_CACHE_DIR to "
            "tiktoken's cache folder of a machine that has it, or use data.tokenizer=bpe"
        ) from error
    return Tokenizer("gpt2", encoding, separator=encoding.eot_token)
