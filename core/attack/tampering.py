"""Files of a run and of the cache that are not as they were written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from attempts import Attempt, Count, Outcome, at_once

DECIDING = (".safetensors", "state.json", "tokenizer.json", "config.yaml", "data.json")
"""Ends of the names of files that decide a score: one that is changed may not change it in silence.
"""


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data) // 2, len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "removed": lambda path, _: path.unlink(),
    "emptied": lambda path, _: path.write_bytes(b""),
    "cut in half": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit flipped": flip,
    "random bytes": lambda path, draw: path.write_bytes(draw.randbytes(200)),
    "a list": lambda path, _: path.write_text("[]\n"),
    "null": lambda path, _: path.write_text("null\n"),
    "an empty object": lambda path, _: path.write_text("{}\n"),
    "a text": lambda path, _: path.write_text('"x"\n'),
    "NaN": lambda path, _: path.write_text('{"val_bpb": NaN, "step": NaN}\n'),
    "nested": lambda path, _: path.write_text("[" * 100_000),
    "a folder": lambda path, _: replace_by_folder(path),
    "a link to nowhere": lambda path, _: replace_by_link(path),
}
COMMANDS = (
    ["evaluate"], ["generate", "--max-tokens=2"], ["show"], ["inspect"], ["resume"], ["compare"],
)  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    whole = (p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    found = sorted(path.relative_to(folder) for path in whole)
    return [path for path in found if path.suffix not in (".png", ".lock", ".txt")]


def start(command: list[str], run: Path, work: Path) -> Attempt:
    name, *flags = command
    if name == "resume":
        return Attempt([f"resume={run}", "train.max_steps=4"], work)
    if name == "compare":
        return Attempt(["compare", f"runs={run}", f"folder={run}-report"], work, program="nanozoo")
    return Attempt([name, str(run), *flags], work, program="nanozoo")


def score(outcome: Outcome) -> float | None:
    return json.loads(outcome.out)["val_bpb"] if outcome.status == 0 else None


def attack(count: Count, number: int, seed: int, run: Path, cache: Path, work: Path) -> None:
    draw = random.Random(seed)
    expected = score(start(["evaluate"], run, work).end())
    cases = [(path, name) for path in files_of(run) for name in DAMAGES]
    chosen = draw.sample(cases, min(number - number // 4, len(cases)))

    def damaged() -> Iterator[tuple[tuple[Path, Path, str, list[str]], Callable[[], Attempt]]]:
        for n, (path, name) in enumerate(chosen):
            copy = work / f"damaged-{n}"
            shutil.copytree(run, copy)
            DAMAGES[name](copy / path, draw)
            command = ["evaluate"] if str(path).endswith(DECIDING) else draw.choice(COMMANDS)
            yield (copy, path, name, command), partial(start, command, copy, work)

    for (copy, path, name, command), outcome in at_once(damaged()):
        count.note((str(path), name, command[0]), problem_with(outcome, command, expected))
        shutil.rmtree(copy)
    for _ in range(number // 4):
        path = draw.choice(files_of(cache))
        name = draw.choice(["removed", "emptied", "cut in half", "random bytes", "null"])
        DAMAGES[name](cache / path, draw)
        outcome = start(["evaluate"], run, work).end()
        count.note((f"cache/{path}", name), problem_with(outcome, ["evaluate"], expected))
        shutil.rmtree(cache)
        start(["evaluate"], run, work).end()  # prepares it anew


def problem_with(outcome: Outcome, command: list[str], expected: float | None) -> str | None:
    """As `Outcome.wrong`; another score without an error is wrong, too."""
    problem = outcome.wrong()
    if problem is None and command == ["evaluate"] and outcome.status == 0:
        found = score(outcome)
        is_said = "going on from step" in outcome.err  # an older checkpoint, with a warning
        if found != expected and not is_said:
            problem = f"{found} in place of {expected}, in silence"
    return problem
