"""Several processes on one run or one cache, and runs of which one process fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attempts import TOY, Attempt, Count, Outcome, attempt

MESSAGE = "the attack made this up"


def together(attempts: list[Attempt]) -> list[Outcome]:
    return [one.end() for one in attempts]


def attack_at_once(count: Count, number: int, corpus: Path, work: Path) -> None:
    """Two processes each: on a new run, on a run to resume, and on an empty cache."""
    start = [*TOY, f"data.path='{corpus}'"]
    for n in range(number):
        run = work / f"shared-{n}"
        if n % 3 == 2:
            cache = {"NANOZOO_CACHE": str(work / f"cache-{n}")}
            words = ["prepare", str(corpus), "tokenizer=bpe", "vocab_size=280"]
            pair = [Attempt(words, work, program="nanozoo", environment=cache) for _ in range(2)]
            ended = together(pair)
            problem = _all_well(ended)
            if problem is None and not ended[0].out == ended[1].out != "":
                problem = "they prepared different data"
            count.note("an empty cache", problem)
            continue
        words = [*start, f"run_dir={run}"]
        if n % 3 == 1:
            attempt([*words, "train.stop_after=1"], work)
            words = [f"resume={run}"]
        ended = together([Attempt(words, work) for _ in range(2)])
        problem = next((found for one in ended if (found := one.wrong())), None)
        statuses = sorted(str(one.status) for one in ended)
        if problem is None and statuses != ["0", "1"]:
            problem = f"statuses {statuses}, where one must win"
        if problem is None:
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            steps = [row["step"] for row in rows if "loss" in row]
            problem = None if steps == [1, 2, 3] else f"its steps are {steps}"
        count.note("a new run" if n % 3 == 0 else "a run to resume", problem)
        shutil.rmtree(run, ignore_errors=True)


def _all_well(ended: list[Outcome]) -> str | None:
    found = [one.wrong() or (one.err if one.status else None) for one in ended]
    return next((problem for problem in found if problem is not None), None)


def _raise_config_error(*_: object, **__: object) -> None:
    from nanozoo_core.errors import ConfigError

    raise ConfigError(MESSAGE)


def _raise_data_error(*_: object, **__: object) -> None:
    from nanozoo_core.errors import DataError

    raise DataError(MESSAGE)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


PLACES = (
    ("nanozoo_core.training.trainer.set_up", _raise_data_error),
    ("nanozoo_core.training.trainer.build_optimizers", _raise_config_error),
    ("nanozoo_core.training.trainer.Trainer.one_step", _raise_config_error),
    ("nanozoo_core.training.trainer.Trainer._validate", _raise_data_error),
    ("nanozoo_core.training.trainer.Trainer.one_step", _die),
)


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])


def attack_ranks(count: Count, number: int, corpus: Path, work: Path) -> None:
    """Two ranks, of which one fails in some place: both end, and the reason is said."""
    for n in range(number):
        place, act = PLACES[n // 2 % len(PLACES)]
        failing = n % 2
        run = work / f"ranks-{n}"
        with free_port() as port:
            pass
        words = [*TOY, f"data.path='{corpus}'", f"run_dir={run}", "device=cpu"]
        ranks = []
        for rank in range(2):
            environment = {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                "RANK": str(rank), "LOCAL_RANK": str(rank),
            }  # fmt: skip
            before = _patch(place, act) if rank == failing else None
            ranks.append(Attempt(words, work, before=before, environment=environment))
        ended = together(ranks)
        said = "".join(one.err for one in ended)
        problem = next(
            (f for one in ended if (f := one.wrong(also=(-signal.SIGKILL,), is_rank=True))), None
        )
        if problem is None and any(one.status == 0 for one in ended):
            problem = f"statuses {[one.status for one in ended]}"
        reasons = re.findall(r"^error on rank \d: (.*)", said, re.MULTILINE)
        if problem is None and act is not _die and reasons != [MESSAGE]:
            problem = f"the reason is said so: {reasons}"
        if problem is None and act is _die and not reasons:
            problem = "nobody says why"
        count.note(f"rank {failing} of 2 in {place.rpartition('.')[2]}, {act.__name__}", problem)
        shutil.rmtree(run, ignore_errors=True)


def _patch(place: str, act: Callable[..., None]) -> Callable[[], None]:
    def patch() -> None:
        import importlib

        owner, _, name = place.rpartition(".")
        try:
            holder: object = importlib.import_module(owner)
        except ModuleNotFoundError:  # a class in a module
            module, _, cls = owner.rpartition(".")
            holder = getattr(importlib.import_module(module), cls)
        setattr(holder, name, act)

    return patch
