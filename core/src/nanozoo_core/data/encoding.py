"""Documents to tokens on all cores: in order, and the same tokens as in one process.

A worker is a process that runs `serve`: it reads lists of documents from its standard input and
writes their tokens to its standard output. So it imports neither the script that asked for it, as
those of multiprocessing do, nor torch.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nanozoo_core.data.shards import Tokens
from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.errors import DataError, first_line

BATCH_BYTES = 1 << 20  # of text that a worker is handed at once
WORKER_BYTES = 8_000_000  # of text that is worth the start of a worker, half a second
MOST_WORKERS = 8  # each of which takes about 100 MB of memory

Batch = list[bytes]


def encoded(
    documents: Iterable[bytes], vocabulary: Tokenizer, *, num_bytes: int
) -> Generator[tuple[int, list[Tokens]]]:
    """Batches of documents, in order: their bytes, and the tokens of each document.

    Args: num_bytes: of all documents, which decides how many processes are worth it.
    Raises: DataError when a worker is lost.
    """
    found = batches(documents)
    num_workers = min(num_cores(), MOST_WORKERS, num_bytes // WORKER_BYTES)
    if num_workers < 2:
        for batch in found:
            yield sum(map(len, batch)), encode_batch(vocabulary, batch)
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker(vocabulary) for _ in range(num_workers)]
    for worker in workers:
        idle.put(worker)

    def by_a_worker(batch: Batch) -> list[Tokens]:
        worker = idle.get()
        try:
            return worker.encode(batch)
        finally:
            idle.put(worker)

    waiting: collections.deque[tuple[int, Future[list[Tokens]]]] = collections.deque()
    pool = ThreadPoolExecutor(num_workers)
    try:
        for batch in found:
            waiting.append((sum(map(len, batch)), pool.submit(by_a_worker, batch)))
            if len(waiting) >= 2 * num_workers:  # what is read ahead is bounded
                size, future = waiting.popleft()
                yield size, future.result()
        while waiting:
            size, future = waiting.popleft()
            yield size, future.result()
    finally:
        for worker in workers:
            worker.stop()
        pool.shutdown(cancel_futures=True)


def batches(documents: Iterable[bytes]) -> Iterator[Batch]:
    """Documents in lists of about `BATCH_BYTES`."""
    batch: Batch = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_batch(vocabulary: Tokenizer, batch: Batch) -> list[Tokens]:
    return [vocabulary.encode_array(document) for document in batch]


def num_cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    def __init__(self, vocabulary: Tokenizer) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a Ctrl-C is for us, who then stop it
        )
        self._vocabulary: Tokenizer | None = vocabulary

    def encode(self, batch: Batch) -> list[Tokens]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if self._vocabulary is not None:
                pickle.dump(self._vocabulary, stdin, protocol=5)
                self._vocabulary = None
            pickle.dump(batch, stdin, protocol=5)
            stdin.flush()
            found = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(
                "a process that tokenizes has ended before its time, perhaps for want of memory; "
                "give the command again: it goes on where it stopped"
            ) from error
        if isinstance(found, str):
            raise DataError(f"a text cannot be tokenized ({found})")
        return list(found)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # of what was still to be written
                stream.close()


def serve() -> None:
    """What a worker does: a tokenizer, and then batch after batch, until its input ends."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever prints may not write between the tokens
    vocabulary = pickle.load(stdin)
    while True:
        try:
            batch = pickle.load(stdin)
        except EOFError:
            return
        pickle.dump(_answer(vocabulary, batch), stdout, protocol=5)
        stdout.flush()


def _answer(vocabulary: Tokenizer, batch: Batch) -> Any:
    """The tokens, or the first line of what the library has raised: its panics are no Exception."""
    try:
        return encode_batch(vocabulary, batch)
    except BaseException as error:
        return first_line(error) or type(error).__name__
