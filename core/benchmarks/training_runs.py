"""Trainings side by side, for the benchmarks that compare finished runs.

Each run has a process and a folder of its own. A finished one is not repeated and an interrupted
one goes on, so that a command can be given again; one with other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

Result = dict[str, Any]
OVERRIDES = "overrides.json"  # beside a run, what it was started with


def train(run: Path, model: str, overrides: Sequence[str], jobs: int) -> Result:
    """Runs one training, unless it is done, and returns its result.json.

    Args: jobs: runs at the same time; with several each has one thread.
    Raises: SystemExit when the folder holds a run of other settings.
    """
    _check_settings(run, model, overrides)
    result = run / "result.json"
    if not result.is_file():
        start = ["--model", model, f"run_dir={run}", *overrides]
        started = run / "checkpoints"
        if started.is_dir() and any(started.iterdir()):
            start = [f"resume={run}"]
        threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
        subprocess.run(
            [sys.executable, "-m", "nanozoo_core.train", *start],
            check=True,
            env=os.environ | threads,
            stdout=subprocess.DEVNULL if jobs > 1 else None,
        )
    return json.loads(result.read_text())


def _check_settings(run: Path, model: str, overrides: Sequence[str]) -> None:
    note = run.with_name(f"{run.name}.{OVERRIDES}")
    wanted = [model, *overrides]
    if run.exists() and note.is_file() and json.loads(note.read_text()) != wanted:
        raise SystemExit(
            f"{run} was run with {' '.join(json.loads(note.read_text()))}, not "
            f"{' '.join(wanted)}; remove it or choose another --folder"
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))


def train_seeds(
    folder: Path,
    recipes: dict[str, tuple[str, list[str]]],
    *,
    seeds: Sequence[int],
    jobs: int,
) -> dict[str, list[Result]]:
    """Results of every recipe, (model, overrides) by name, one per seed in order."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            name: [
                pool.submit(
                    train, folder / f"{name}_{seed}", model, [f"seed={seed}", *overrides], jobs
                )
                for seed in seeds
            ]
            for name, (model, overrides) in recipes.items()
        }
        return {name: [run.result() for run in runs] for name, runs in futures.items()}


def add_arguments(parser: argparse.ArgumentParser, *, folder: str, seeds: Sequence[int]) -> None:
    """The options that all these commands have."""
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs") / folder)
    parser.add_argument("--override", action="append", default=[], metavar="key=value")


def conditions(result: Result, num_seeds: int, jobs: int) -> str:
    """Two lines under a table: on what, and where, its numbers were made."""
    threads = ", one thread per run" if jobs > 1 else ""
    return (
        f"{result['val_bytes']:,} validation bytes; {num_seeds} seed(s).\n"
        f"{result['device']}{threads}, torch {result['torch']}, "
        f"commit {str(result['git_commit'])[:10]}, {date.today().isoformat()}"
    )
