r"""The walk from 2017 to the control, measured: what each change is worth to the score.

    uv run python packages/vanilla/benchmarks/walk.py --steps 40 --seeds 0 1 \
        --override train.batch_tokens=2048 --override eval.bytes=100000

Trains every preset alike: Muon, and AdamW for what is no matrix, at one rate and one warm-up.
Prints a table whose differences are taken seed by seed; a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from nanozoo_core.comparing.compare.command import train_members
from nanozoo_core.comparing.compare.report import conditions
from nanozoo_core.comparing.compare.request import Entrant, Request
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_vanilla.config import WALK

ALIKE = ("optim.name=muon", "optim.lr=3e-3", "optim.warmup=0.1")


def rows(entries: list[Entry]) -> list[str]:
    """A line per preset: its score, and the change from the line above in mean and deviation."""
    lines = []
    for number, entry in enumerate(entries):
        change = ""
        if number:
            before = entries[number - 1].bpbs
            steps = [mine - other for mine, other in zip(entry.bpbs, before, strict=True)]
            change = f"{statistics.mean(steps):+.3f}"
            if len(steps) > 1:
                change += f" +- {statistics.stdev(steps):.3f}"
        lines.append(f"| {entry.label} | {entry.mean:.3f} | {change} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs/walk"))
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args()

    request = Request(
        entrants=tuple(
            Entrant(name, model="vanilla", overrides=(f"model_cfg.preset={name}",)) for name in WALK
        ),
        folder=arguments.folder,
        budget=("steps", arguments.steps),
        seeds=tuple(arguments.seeds),
        jobs=arguments.jobs,
        overrides=(*ALIKE, "eval.every=0", "log.tensorboard=false", *arguments.override),
    )
    entries, failures = train_members(request)
    if failures:
        sys.exit("\n".join(f"{name}: {text}" for name, text in failures.items()))
    print("\n| preset | bits per byte | change |\n|---|---|---|")
    print("\n".join(rows(entries)))
    first = entries[0].first
    print(f"\n{first['steps']} steps, {first['train_tokens']:,} tokens, seeds {arguments.seeds}.")
    print("; ".join(f"{key}: {value}" for key, value in conditions(entries)))


if __name__ == "__main__":
    main()
