"""Benchmarks within one process: contestants take turns, and their ratios come with a range.

Seconds are CPU seconds of one thread, which other jobs hardly disturb, or wall seconds on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.machine.device import device_name, synchronize
from nanozoo_core.machine.process import tune_process

Run = Callable[[], object]


def flags(description: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """The flags that every benchmark has; a script may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of every contestant")
    parser.add_argument("--untuned", action="store_true", help="leave the process as torch has it")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and sets the process up: one thread and, unless --untuned, the
    trainer's settings. `device` becomes a torch.device."""
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.untuned:
        tune_process()
    arguments.device = torch.device(arguments.device)
    return arguments


def end(arguments: argparse.Namespace, results: Any) -> None:
    """Writes the results, and on what they were measured, where --json says."""
    if arguments.json is None:
        return
    machine: dict[str, object] = {"device": device_name(arguments.device)}
    machine |= {"torch": torch.__version__, "tuned": not arguments.untuned}
    record = {"machine": machine, "results": results}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def differentiated(function: Callable[..., Tensor], *tensors: Tensor) -> Run:
    """One forward and backward pass of `function`."""
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def run() -> None:
        y = function(*leaves)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return run


def seconds(run: Run, device: torch.device, repeats: int = 1) -> float:
    """Seconds of one call, the mean of `repeats`."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    started = clock()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (clock() - started) / repeats


@dataclass(frozen=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} .. {self.most:.2f})"


@dataclass(frozen=True)
class Times:
    """Seconds of every contestant, round by round."""

    rounds: Sequence[Mapping[str, float]]

    def median(self, name: str) -> float:
        """Seconds of a call."""
        return statistics.median(times[name] for times in self.rounds)

    def speed(self, name: str, than: str) -> Spread:
        """How many times as fast as `than` a contestant is: the ratio within each round."""
        ratios = [times[than] / times[name] for times in self.rounds]
        return Spread(statistics.median(ratios), min(ratios), max(ratios))

    def compare(self, name: str, than: str) -> dict[str, float]:
        """Seconds of both as `<name>_seconds`, and `speed`, `speed_least`, `speed_most`."""
        speed = self.speed(name, than)
        return {
            f"{than}_seconds": self.median(than),
            f"{name}_seconds": self.median(name),
            "speed": speed.median,
            "speed_least": speed.least,
            "speed_most": speed.most,
        }


def take_turns(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    rounds: int,
    repeats: int | None = None,
) -> Times:
    """Times all contestants in each round, forward and backward in turn, so that none always
    follows the same one. Two calls before the first round are not counted.

    Args: repeats: calls in a round; None is as many of each as take half a second.
    """
    for run in runs.values():
        run()  # compiles, allocates
    once = {name: seconds(run, device) for name, run in runs.items()}
    counts = {
        name: max(1, round(0.5 / once[name])) if repeats is None else repeats for name in runs
    }
    found = []
    for number in range(rounds):
        order = list(runs)[:: 1 if number % 2 == 0 else -1]
        found.append({name: seconds(runs[name], device, counts[name]) for name in order})
    return Times(found)


def in_own_process(script: str, arguments: argparse.Namespace, *words: object) -> dict[str, Any]:
    """Runs `script --device D WORDS` and reads the JSON of its last line: a process of its own,
    whose peak memory is that of one case."""
    command = [sys.executable, script, "--device", str(arguments.device), *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])
