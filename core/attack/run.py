"""`nox -s attack`: odd settings, damaged files, kills, processes at once and failing ranks.

    --quick      a part of it, in about a minute and two at most
    --write      puts the table of counts into docs/pages/reliability.md
    --seed N     other odd settings, files and moments
    --only KIND  one part: settings, files, kills, at-once or ranks

It takes ten minutes at most: a slow machine makes fewer attempts, and says so. Everything is drawn
from the seed. The commands run in processes forked from this one, on a toy model and in a temporary
folder; the exit status is 1 when anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import crowds
import kills
import overrides
import tampering
from attempts import TOY, Count, OutOfTimeError, attempt

CORE = Path(__file__).parent.parent
PAGE = CORE.parent / "docs" / "pages" / "reliability.md"
FULL = {"settings": 320, "files": 120, "kills": 64, "at-once": 12, "ranks": 10}
QUICK = {"settings": 60, "files": 12, "kills": 6, "at-once": 3, "ranks": 2}
FULL_SECONDS, QUICK_SECONDS = 600, 120
SHARES = {"settings": 0.35, "kills": 0.7, "files": 0.85, "at-once": 0.92, "ranks": 1.0}
"""Of the time, at which each kind ends."""
KINDS = {
    "settings": "odd settings",
    "kills": "kills",
    "files": "damaged files",
    "at-once": "processes at once",
    "ranks": "failing ranks",
}
MEANING = {
    "odd settings": "a sentence, or a run",
    "damaged files": "a sentence, or the same score",
    "kills": "the run ends later, with the same bits",
    "processes at once": "one trains and the other says why not; both prepare the same data",
    "failing ranks": "all ranks end, and the reason is said",
}


def prepare_process(work: Path) -> None:
    """Imports what the commands need, so that a forked process begins at once."""
    toy = str(CORE / "tests" / "toy_zoo")
    sys.path.insert(0, toy)
    os.environ |= {"PYTHONPATH": toy, "NANOZOO_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    import torch

    torch.set_num_threads(1)
    import hydra  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo

    import nanozoo_core.commands.cli
    import nanozoo_core.comparing.compare.command
    import nanozoo_core.training.trainer  # noqa: F401


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    for number in range(20):
        words = [f"word{(number * 7 + i * i) % 23}" for i in range(400)]
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n")
    return folder


def attack_in_time(
    part: Callable[[Count, int], None], count: Count, number: int, started: float
) -> None:
    """Makes that number of attempts, or as many as there is time for, and says how it went."""
    late = ""
    try:
        part(count, number)
    except OutOfTimeError:
        late = f", stopped by the time before {number}"
    passed = time.monotonic() - started
    print(f"{count.kind}: {count.attempts}, {count.wrong} wrong ({passed:.0f} s{late})", flush=True)


def table(counts: list[Count], seconds: float, seed: int) -> str:
    rows = ["| kind | attempts | wrong | what is right |", "|---|---|---|---|"]
    rows += [
        f"| {count.kind} | {count.attempts} | {count.wrong} | {MEANING[count.kind]} |"
        for count in counts
    ]
    about = (
        f"Made by `uv run nox -s attack -- --write` with seed {seed} on {date.today()}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPU cores, in {seconds / 60:.0f} minutes."
    )
    return "\n".join([*rows, "", about])


def write_page(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- attack: begin -->", "<!-- attack: end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FULL)
    arguments = parser.parse_args()
    numbers = QUICK if arguments.quick else FULL
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        work = Path(place)
        prepare_process(work)
        corpus, seed = write_corpus(work / "corpus"), arguments.seed
        run = work / "run"
        begun = attempt([*TOY, f"data.path='{corpus}'", f"run_dir={run}"], work)
        if begun.status != 0:
            print(begun.err)
            return 1
        cache = work / "cache"
        parts: dict[str, Callable[[Count, int], None]] = {
            "settings": lambda count, n: overrides.attack(count, n, seed, corpus, run, work),
            "kills": lambda count, n: kills.attack(count, n, seed, corpus, work),
            "files": lambda count, n: tampering.attack(count, n, seed, run, cache, work),
            "at-once": lambda count, n: crowds.attack_at_once(count, n, corpus, work),
            "ranks": lambda count, n: crowds.attack_ranks(count, n, corpus, work),
        }
        counts = []
        limit = QUICK_SECONDS if arguments.quick else FULL_SECONDS
        for name, part in parts.items():
            if arguments.only in (None, name):
                share = 1.0 if arguments.only else SHARES[name]
                counts.append(Count(KINDS[name], started + limit * share))
                attack_in_time(part, counts[-1], numbers[name], started)
    text = table(counts, time.monotonic() - started, arguments.seed)
    print(text)
    if arguments.write:
        write_page(text)
    return int(any(count.wrong for count in counts))


if __name__ == "__main__":
    sys.exit(main())
