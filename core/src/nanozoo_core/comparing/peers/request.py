"""What the user asked `nanozoo bench --peers` for, read from its key=value arguments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.comparing.options import Option, Words
from nanozoo_core.comparing.peers.races import Race
from nanozoo_core.errors import Problems, suggest

FILE = "peers.json"
COMMAND = "bench --peers"
DTYPES = ("auto", "float32", "bfloat16")
OPTIONS = (
    Option("races", "A,B", "models, or peers, whose races run (all for which there is a clone)"),
    Option("shapes", "A,B", "sizes of these races, by the names that their scripts give (all)"),
    Option("rounds", "N", "turns of each contestant (7)"),
    Option("dtype", "NAME", "of nanozoo: float32, bfloat16, or auto, the faster one (auto)"),
    Option("folder", "PATH", f"where {FILE} is written (runs/peers/TIME)"),
)


@dataclass(frozen=True)
class Request:
    """The parsed command."""

    races: tuple[Race, ...]
    arguments: tuple[str, ...]
    """What every script is told."""
    folder: Path
    words: tuple[str, ...]


def parse(words: Sequence[str], races: Sequence[Race]) -> Request:
    """Reads the arguments.

    Raises: ConfigError with a sentence for everything that makes no sense.
    """
    problems = Problems()
    given = Words.read(COMMAND, OPTIONS, words, problems)
    keys = [option.key for option in OPTIONS]
    for word in given.settings:
        key = word.partition("=")[0]
        problems.add(f"'{word}': nanozoo {COMMAND} has no {key}{suggest(key, keys)}")
    names = given.parts("races")
    known = sorted({name for race in races for name in (race.model, race.peer)})
    for name in names:
        near = suggest(name, known)
        problems.require(name in known, f"races={name} must be of {', '.join(known)}{near}")
    dtype = given.text("dtype", DTYPES[0])
    problems.require(dtype in DTYPES, f"dtype={dtype} must be of {', '.join(DTYPES)}")
    rounds = given.whole_number("rounds", 7)
    shapes = given.parts("shapes")
    folder = given.path("folder", f"runs/peers/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    problems.raise_if_any()
    arguments = ["--rounds", str(rounds), "--dtype", dtype]
    if shapes:
        arguments += ["--shapes", *shapes]
    chosen = [race for race in races if not names or {race.model, race.peer} & {*names}]
    return Request(tuple(chosen), tuple(arguments), folder, tuple(words))
