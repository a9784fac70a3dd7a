"""How many tokens of the default data gpt2 and this model need for the same score.

    uv run python packages/current_best_gpt/benchmarks/against_gpt2.py --jobs 2

Both train by their own default recipe, whose budget of tokens is part of it; gpt2 also with the
batch and the budget of this model, which tells what the small batches alone are worth. A finished
run is not repeated. Writes against_gpt2.json beside the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "core" / "benchmarks"))

from training_runs import Result, add_arguments, conditions, train_seeds

RECIPES: dict[str, tuple[str, list[str]]] = {
    "gpt2": ("gpt2", []),
    "gpt2, small batches": ("gpt2", ["train.batch_tokens=1024", "train.max_steps=530"]),
    "current_best_gpt": ("current_best_gpt", []),
}


def row(name: str, runs: list[Result], reference: list[Result]) -> str:
    first = runs[0]
    bpbs = [r["val_bpb"] for r in runs]
    margin = f" +- {statistics.stdev(bpbs):.4f}" if len(bpbs) > 1 else ""
    share = first["train_tokens"] / reference[0]["train_tokens"]
    flops = first["train_flops"] / reference[0]["train_flops"]
    return (
        f"| {name} | {first['train_tokens']:,} | {share:.3f} | {flops:.2f} "
        f"| {first['params'] / 1e6:.2f} M | {statistics.mean(bpbs):.4f}{margin} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, folder="against_gpt2", seeds=[0, 1, 2])
    arguments = parser.parse_args()
    common = ["eval.every=0", "checkpoint.every=50", "log.tensorboard=false", *arguments.override]
    results = train_seeds(
        arguments.folder,
        {
            name.replace(", ", "_").replace(" ", "_"): (model, [*common, *overrides])
            for name, (model, overrides) in RECIPES.items()
        },
        seeds=arguments.seeds,
        jobs=arguments.jobs,
    )
    flat = [result for runs in results.values() for result in runs]
    (arguments.folder / "against_gpt2.json").write_text(json.dumps(flat, indent=2) + "\n")
    reference, ours = results["gpt2"], results["current_best_gpt"]
    print()
    print("| model | tokens | of gpt2's | FLOPs of gpt2's | parameters | bits per byte |")
    print("|---|---|---|---|---|---|")
    for name, runs in zip(RECIPES, results.values(), strict=True):
        print(row(name, runs, reference))
    pairs = zip(ours, reference, strict=True)
    better = sum(mine["val_bpb"] <= theirs["val_bpb"] for mine, theirs in pairs)
    print(f"\ncurrent_best_gpt is at or below gpt2 with {better} of {len(ours)} seeds.")
    print(conditions(flat[0], len(arguments.seeds), arguments.jobs))


if __name__ == "__main__":
    main()
