"""Compares rustbpe, tiktoken and tokenizers, which learn and apply byte-pair vocabularies.

    uv run --with tokenizers python core/benchmarks/byte_pair_libraries.py --megabytes 30

Prints the megabytes of text that each learns from or encodes in a second of CPU time, on one
thread; whether they learn the same merges and give the same ids; and the longest runs of white
space, letters and digits that each survives. The text is the Python source of the packages that
are installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# One thread each, told before the libraries start.
os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from nanozoo_core.data.hf_tokenizer import byte_signs, find_merges, hf_tokenizer
from nanozoo_core.data.tokenizers import (
    PATTERN,
    Tokenizer,
    cut_long_spaces,
    train_bpe,
)

RUNS = {"white space": " ", "letters": "a", "digits": "1"}
LENGTHS = (10_000, 100_000, 1_000_000, 3_000_000)


def package_texts(num_bytes: int) -> Iterator[str]:
    """Python files of the installed packages, in order of their paths."""
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        if num_bytes <= 0:
            return
        text = path.read_bytes()[:200_000].decode("utf-8", errors="replace")
        num_bytes -= len(text.encode())
        yield text


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returns."""
    before = time.process_time()
    found = call()
    return time.process_time() - before, found


def train_hf(texts: list[str], vocab_size: int) -> Any:
    """A vocabulary learned by `tokenizers` with the same pattern, from the 256 bytes on."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=byte_signs(), show_progress=False
    )
    made.train_from_iterator((part for t in texts for part in cut_long_spaces(t)), trainer)
    return made


def merges_of_hf(made: Any) -> list[tuple[bytes, bytes]]:
    import json

    bytes_of = {sign: bytes([byte]) for byte, sign in enumerate(byte_signs())}
    pairs = json.loads(made.to_str())["model"]["merges"]
    return [
        tuple(b"".join(bytes_of[sign] for sign in part) for part in pair)  # type: ignore[misc]
        for pair in pairs
    ]


def survives(library: str, run: str) -> str:
    """The longest of LENGTHS at which a library encodes a run in a process of its own."""
    longest = "none"
    for length in LENGTHS:
        command = [sys.executable, __file__, "--encode-run", library, run, str(length)]
        try:
            ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            return f"{longest} (60 s are too few for {length:,})"
        if ended.returncode:
            reason = ended.stderr.decode(errors="replace").strip().splitlines()[-1][:60]
            return f"{longest} ({length:,}: {reason})"
        longest = f"{length:,}"
    return longest


def encode_run(library: str, run: str, length: int) -> None:
    """What `survives` has done elsewhere: one long run, encoded without being cut."""
    ours = train_bpe(["some text, 12 345 and\n\n   more of it"] * 20, vocab_size=300)
    text = "x" + RUNS[run] * length + "y"
    encoders(ours)[library](text)


def encoders(ours: Tokenizer) -> dict[str, Callable[[str], Any]]:
    """Each library's way from a text to ids, for one vocabulary of rustbpe's."""
    theirs = hf_tokenizer(ours)
    return {
        "tiktoken": ours.encoding.encode_ordinary,
        "tiktoken, to numpy": lambda text: ours.encoding.encode_to_numpy(
            text, disallowed_special=()
        ),
        "tokenizers": lambda text: theirs.encode(text, add_special_tokens=False).ids,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--encode-run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.encode_run:
        library, run, length = arguments.encode_run
        encode_run(library, run, int(length))
        return
    texts = list(package_texts(int(arguments.megabytes * 1e6)))
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{size:.1f} MB in {len(texts)} files, a vocabulary of {arguments.vocab_size} ids")

    taken, ours = seconds(lambda: train_bpe(texts, vocab_size=arguments.vocab_size))
    print(f"learning, rustbpe: {size / taken:.1f} MB/s ({taken:.1f} s)")
    taken, theirs = seconds(lambda: train_hf(texts, arguments.vocab_size))
    print(f"learning, tokenizers: {size / taken:.1f} MB/s ({taken:.1f} s)")
    merges = find_merges(ours.encoding._mergeable_ranks)
    others = merges_of_hf(theirs)
    pairs = list(zip(merges, others, strict=False))
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    print(
        f"merges: {len(merges)} and {len(others)}, {len(set(merges) & set(others))} in both; "
        f"{'all alike' if first is None else f'the first that differs is number {first}'}"
    )

    ids = {}
    for name, encode in encoders(ours).items():
        taken, found = seconds(lambda encode=encode: [encode(text) for text in texts])  # type: ignore[misc]
        ids[name] = [list(map(int, text)) for text in found]
        print(f"encoding, {name}: {size / taken:.1f} MB/s ({taken:.1f} s)")
    first_ids, *others_ids = ids.values()
    print(f"ids: {'all alike' if all(o == first_ids for o in others_ids) else 'differ'}")
    for library in encoders(ours):
        for run in RUNS:
            print(f"longest run of {run}, {library}: {survives(library, run)}")


if __name__ == "__main__":
    main()
