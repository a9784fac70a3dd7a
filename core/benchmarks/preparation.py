"""Prepares a large corpus: on all cores, on one, and interrupted; with its time and its memory.

    uv run python core/benchmarks/preparation.py FOLDER --megabytes 1000

Fills FOLDER/text with the Python source of the installed packages, over and over until there is
enough, and prepares it into caches beside it with a vocabulary trained on it. The second time the
command is interrupted (SIGINT) in the middle and given again; the shards must be the same to the
byte. Memory is the sum over all processes, looked at five times a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from nanozoo_core.data.tokenizers import load_tokenizer

LARGEST_FILE = 500_000  # bytes: beyond are tables that programs wrote
TIMED_BYTES = 20_000_000  # given to the tokenizer library alone


def write_text(folder: Path, num_bytes: int) -> int:
    """Writes the corpus, copy by copy, each file with a first line of its own; returns its size."""
    sources = [
        path
        for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
        if 0 < path.stat().st_size < LARGEST_FILE
    ]
    written = copy = 0
    while written < num_bytes:
        place = folder / f"copy{copy}"
        place.mkdir(parents=True)
        for number, path in enumerate(sources):
            text = f"# copy {copy}, file {number}\n".encode() + path.read_bytes()
            if b"\0" in text or written >= num_bytes:
                continue
            (place / f"{number:06d}.py").write_bytes(text)
            written += len(text)
        copy += 1
    return written


class Measured:
    """One `nanozoo prepare`, with what it takes."""

    def __init__(
        self, text: Path, cache: Path, *, cores: set[int], stop_after: float | None = None
    ) -> None:
        command = [sys.executable, "-m", "nanozoo_core.commands.cli", "prepare", str(text)]
        command.append("tokenizer=bpe")
        before, began = os.times(), time.monotonic()
        process = subprocess.Popen(
            command,
            env=os.environ | {"NANOZOO_CACHE": str(cache)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.peak = 0
        while process.poll() is None:
            self.peak = max(self.peak, sum(map(resident, family(process.pid))))
            if stop_after is not None and time.monotonic() - began > stop_after:
                process.send_signal(signal.SIGINT)
                stop_after = None
            time.sleep(0.2)
        after = os.times()
        self.status = process.returncode
        self.wall = time.monotonic() - began
        self.cpu = sum(after[2:4]) - sum(before[2:4])

    def say(self, what: str, num_bytes: int) -> None:
        print(
            f"{what}: {self.wall:.1f} s, {num_bytes / 1e6 / self.wall:.1f} MB/s, "
            f"{self.cpu:.1f} s of CPU time, at most {self.peak / 1e6:.0f} MB, "
            f"status {self.status}",
            flush=True,
        )


def family(pid: int) -> Iterator[int]:
    """A process and those that it has started."""
    yield pid
    try:
        children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return
    for child in " ".join(children).split():
        yield from family(int(child))


def resident(pid: int) -> int:
    """Bytes of memory that are a process's own: what it shares with others counts by its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def shards(cache: Path) -> dict[str, bytes]:
    """The digests of all shards, by name."""
    return {
        str(path.relative_to(cache)): path.read_bytes() for path in cache.glob("*/*/shards.json")
    }


def library_speed(text: Path, cache: Path) -> float:
    """Bytes that tiktoken encodes in a second of CPU time with the vocabulary just trained."""
    from nanozoo_core.config import DataConfig, from_defaults

    (folder,) = (path.parent for path in cache.glob("tokens/*/tokenizer.json"))
    vocabulary = load_tokenizer(folder, from_defaults(DataConfig))
    texts, size = [], 0
    for path in sorted(text.rglob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += path.stat().st_size
        if size > TIMED_BYTES:
            break
    before = time.process_time()
    for text_of_file in texts:
        vocabulary.encoding.encode_ordinary(text_of_file)
    return size / (time.process_time() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="takes six times the text")
    parser.add_argument("--megabytes", type=float, default=1000)
    arguments = parser.parse_args()
    text = arguments.folder / "text"
    if text.exists():
        num_bytes = sum(path.stat().st_size for path in text.rglob("*.py"))
    else:
        num_bytes = write_text(text, int(arguments.megabytes * 1e6))
    cores = os.sched_getaffinity(0)
    print(f"{num_bytes / 1e6:.0f} MB of text, {len(cores)} cores, load {os.getloadavg()[0]:.1f}")
    caches = [arguments.folder / name for name in ("all", "interrupted", "one")]
    for cache in caches:
        shutil.rmtree(cache, ignore_errors=True)
    whole = Measured(text, caches[0], cores=cores)
    whole.say("on all cores", num_bytes)
    first = Measured(text, caches[1], cores=cores, stop_after=0.7 * whole.wall)
    first.say("interrupted", num_bytes)
    Measured(text, caches[1], cores=cores).say("gone on with", num_bytes)
    alike = shards(caches[0]) == shards(caches[1])
    print(f"the shards of both are {'the same' if alike else 'DIFFERENT'}")
    alone = Measured(text, caches[2], cores={min(cores)})
    alone.say("on one core", num_bytes)
    print(f"all cores against one: {alone.wall / whole.wall:.2f} times as fast")
    speed = library_speed(text, caches[0])
    print(
        f"tiktoken alone encodes {speed / 1e6:.1f} MB per second of CPU time; all of the "
        f"preparation takes {alone.cpu * speed / num_bytes:.2f} times as long"
    )
    for cache in caches:
        shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
