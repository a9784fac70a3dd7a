"""Trains models on the default data, one after the other, and prints the README's table.

    uv run python core/benchmarks/models_table.py gpt2 d3pm hnet

Each model trains with the recipe of its own YAML in a process of its own, so that none disturbs
another's memory or speed. Also writes models_table.json beside the runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any


def train(model: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs one training and returns its result.json."""
    run = folder / model
    subprocess.run(
        [
            sys.executable,
            "-m",
            "nanozoo_core.train",
            "--model",
            model,
            f"run_dir={run}",
            *overrides,
        ],
        check=True,
    )
    return json.loads((run / "result.json").read_text())


def table(results: list[dict[str, Any]]) -> str:
    """Markdown rows by rising bits per byte, then the compressors on the same bytes."""
    lines = [
        "| model | bits per byte | parameters | training text | tokens/s | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: r["val_bpb"]):
        sign = "<= " if r["val_bound"] == "upper" else ""
        error = r["val_standard_error"]
        margin = f" +- {error:.3f}" if error else ""
        lines.append(
            f"| {r['model']} | {sign}{r['val_bpb']:.3f}{margin} | {r['params'] / 1e6:.2f} M "
            f"| {r['train_bytes'] / 1e6:.1f} MB | {r['tokens_per_second']:,.0f} "
            f"| {r['train_seconds']:.0f} |"
        )
    for name, bpb in results[0]["baselines_bpb"].items():
        lines.append(f"| {name} | {bpb:.3f} | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "models_table")
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args()
    results = [train(model, arguments.folder, arguments.override) for model in arguments.models]
    (arguments.folder / "models_table.json").write_text(json.dumps(results, indent=2) + "\n")
    first = results[0]
    print()
    print(table(results))
    print(
        f"\n{first['val_bytes']:,} validation bytes; tokens of the {first['tokenizer']} and other "
        f"tokenizers differ in length: compare bits per byte.\n"
        f"{first['device']}, {platform.processor() or platform.machine()}, torch {first['torch']}, "
        f"commit {str(first['git_commit'])[:10]}, {date.today().isoformat()}"
    )


if __name__ == "__main__":
    main()
