"""Every installed model trained in float32 and in bfloat16 for equal steps: scores and speeds.

    python core/benchmarks/precision.py [--models gpt2 moe] [--steps 60] [--seeds 2] [--folder F]

Runs that are in the folder already are not repeated. `difference` is the mean score in bfloat16
less that in float32, `seeds` how far the seeds in float32 lie apart; speed is tokens per second of
the whole training, bfloat16 over float32, at the threads that the environment allows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanozoo_core import registry

TYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=sorted(registry.model_modules()))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/precision"))
    arguments = parser.parse_args()
    print(f"{'model':<17}{'float32':>9}{'bfloat16':>10}{'difference':>12}{'seeds':>8}{'speed':>7}")
    for model in arguments.models:
        results: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in TYPES}
        for seed, dtype in itertools.product(range(arguments.seeds), TYPES):
            folder = arguments.folder / f"{model}-{dtype}-{seed}"
            results[dtype].append(trained(model, dtype, seed, arguments.steps, folder))
        print(row(model, results), flush=True)


def trained(model: str, dtype: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """The result of a run, which is made unless it is there."""
    path = folder / "result.json"
    if not path.exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "nanozoo_core.train", "--model", model),
                *(f"dtype={dtype}", f"seed={seed}", f"run_dir={folder}"),
                *(f"train.max_steps={steps}", "eval.bytes=200000", "eval.every=0"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def row(model: str, results: dict[str, list[dict[str, Any]]]) -> str:
    scores = {dtype: [found["val_bpb"] for found in runs] for dtype, runs in results.items()}
    speeds = {
        dtype: sum(found["train_tokens"] for found in runs)
        / sum(found["train_seconds"] for found in runs)
        for dtype, runs in results.items()
    }
    means = {dtype: sum(values) / len(values) for dtype, values in scores.items()}
    difference = means["bfloat16"] - means["float32"]
    spread = max(scores["float32"]) - min(scores["float32"])
    speed = speeds["bfloat16"] / speeds["float32"]
    return (
        f"{model:<17}{means['float32']:>9.4f}{means['bfloat16']:>10.4f}{difference:>+12.4f}"
        f"{spread:>8.4f}{speed:>7.2f}"
    )


if __name__ == "__main__":
    main()
