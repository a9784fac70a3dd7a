"""Trains models on the default data and prints the README's table.

    uv run python core/benchmarks/models_table.py gpt2 d3pm hnet
    uv run python core/benchmarks/models_table.py gpt2 vanilla moe --seeds 0 1 2 --jobs 2

Each run has the recipe of the model's own YAML, a process and a folder of its own. A finished run
is not repeated and an interrupted one goes on, so that the command can be given again. With several
jobs each has one thread. Also writes models_table.json beside the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def train(run: Path, model: str, overrides: list[str], jobs: int) -> Result:
    """Runs one training, unless it is done, and returns its result.json."""
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


def row(runs: list[Result]) -> str:
    """One model's line: mean and standard deviation over seeds, and the time of the fastest."""
    first = runs[0]
    bpbs = [r["val_bpb"] for r in runs]
    sign = "<= " if first["val_bound"] == "upper" else ""
    margin = f" +- {statistics.stdev(bpbs):.3f}" if len(bpbs) > 1 else ""
    active = first.get("params_active", first["params"])
    speed = max(r["tokens_per_second"] for r in runs)
    seconds = min(r["train_seconds"] for r in runs)
    return (
        f"| {first['model']} | {sign}{statistics.mean(bpbs):.3f}{margin} "
        f"| {first['params'] / 1e6:.2f} M | {active / 1e6:.2f} M "
        f"| {first['train_bytes'] / 1e6:.1f} MB | {first['train_flops'] / 1e12:.1f} T "
        f"| {speed:,.0f} | {seconds:.0f} |"
    )


def table(groups: list[list[Result]]) -> str:
    """Markdown rows by rising bits per byte, then the compressors on the same bytes."""
    lines = [
        "| model | bits per byte | parameters | active | text read | FLOPs | tokens/s | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        row(g) for g in sorted(groups, key=lambda g: statistics.mean(r["val_bpb"] for r in g))
    ]
    for name, bpb in groups[0][0]["baselines_bpb"].items():
        lines.append(f"| {name} | {bpb:.3f} | | | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "models_table")
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args()

    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = [
            [
                pool.submit(
                    train,
                    arguments.folder / f"{model}_{seed}",
                    model,
                    [f"seed={seed}", *arguments.override],
                    arguments.jobs,
                )
                for seed in arguments.seeds
            ]
            for model in arguments.models
        ]
        groups = [[future.result() for future in group] for group in futures]
    flat = [result for group in groups for result in group]
    (arguments.folder / "models_table.json").write_text(json.dumps(flat, indent=2) + "\n")
    first = flat[0]
    threads = ", one thread per run" if arguments.jobs > 1 else ""
    print()
    print(table(groups))
    print(
        f"\n{first['val_bytes']:,} validation bytes; {len(arguments.seeds)} seed(s); tokens of "
        f"different tokenizers differ in length: compare bits per byte.\n"
        f"{first['device']}{threads}, torch {first['torch']}, "
        f"commit {str(first['git_commit'])[:10]}, {date.today().isoformat()}"
    )


if __name__ == "__main__":
    main()
