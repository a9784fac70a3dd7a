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
import statistics

from training_runs import Result, add_arguments, conditions, train_seeds


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
    add_arguments(parser, folder="models_table", seeds=[0])
    arguments = parser.parse_args()

    groups = train_seeds(
        arguments.folder,
        {model: (model, arguments.override) for model in arguments.models},
        seeds=arguments.seeds,
        jobs=arguments.jobs,
    )
    flat = [result for group in groups.values() for result in group]
    (arguments.folder / "models_table.json").write_text(json.dumps(flat, indent=2) + "\n")
    print()
    print(table(list(groups.values())))
    print("\nTokens of different tokenizers differ in length: compare bits per byte.")
    print(conditions(flat[0], len(arguments.seeds), arguments.jobs))


if __name__ == "__main__":
    main()
