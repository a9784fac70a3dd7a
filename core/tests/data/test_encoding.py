import itertools
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from nanozoo_core.data import encoding
from nanozoo_core.data.encoding import encoded
from nanozoo_core.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from nanozoo_core.errors import DataError

TEXTS = [f"text {n}: caf\u00e9 {n * n}\n".encode() * (n % 7) for n in range(60)] + [b"\xff no text"]


@pytest.fixture
def vocabulary() -> Tokenizer:
    return train_bpe((text.decode(errors="replace") for text in TEXTS), vocab_size=280)


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> list[encoding._Worker]:
    """Lets even a little text go to two workers, which are listed as they start."""
    started: list[encoding._Worker] = []

    class Worker(encoding._Worker):
        def __init__(self, vocabulary: Tokenizer) -> None:
            super().__init__(vocabulary)
            started.append(self)

    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    monkeypatch.setattr(encoding, "WORKER_BYTES", 1)
    monkeypatch.setattr(encoding, "num_cores", lambda: 2)
    monkeypatch.setattr(encoding, "_Worker", Worker)
    return started


def test_workers_give_the_tokens_of_one_process_in_order(
    vocabulary: Tokenizer, two_workers: list[encoding._Worker]
) -> None:
    found = list(encoded(TEXTS, vocabulary, num_bytes=1000))
    assert len(two_workers) == 2
    assert all(worker._process.poll() is not None for worker in two_workers)
    assert sum(size for size, _ in found) == sum(map(len, TEXTS))
    tokens = [document for _, batch in found for document in batch]
    assert len(tokens) == len(TEXTS)
    for text, document in zip(TEXTS, tokens, strict=True):
        assert document.dtype == np.uint16
        assert document.tolist() == vocabulary.encode(text)


def test_little_text_is_encoded_without_workers(
    vocabulary: Tokenizer, two_workers: list[encoding._Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "WORKER_BYTES", 1000)
    found = [tokens for _, batch in encoded(TEXTS, vocabulary, num_bytes=1999) for tokens in batch]
    assert not two_workers
    assert [tokens.tolist() for tokens in found] == [vocabulary.encode(text) for text in TEXTS]


def test_what_is_read_ahead_is_bounded(two_workers: list[encoding._Worker]) -> None:
    read = 0

    def texts() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield bytes(100)

    batches = encoded(texts(), ByteTokenizer(), num_bytes=1000)
    for number in range(1, 20):
        next(batches)
        assert read <= number + 2 * len(two_workers)
    batches.close()
    assert all(worker._process.poll() is not None for worker in two_workers)


def test_a_lost_worker_is_one_sentence(two_workers: list[encoding._Worker]) -> None:
    batches = encoded(itertools.repeat(bytes(100)), ByteTokenizer(), num_bytes=1000)
    next(batches)
    os.kill(two_workers[0]._process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="a process that tokenizes has ended before its time"):
        for _ in batches:
            pass
    assert all(worker._process.poll() is not None for worker in two_workers)


class Refusing(ByteTokenizer):
    def encode_array(self, text: bytes) -> encoding.Tokens:
        raise BaseException("the library\nhas panicked")  # as one in Rust does


def test_what_the_library_cannot_encode_is_said() -> None:
    assert encoding._answer(Refusing(), [b"text"]) == "the library"
