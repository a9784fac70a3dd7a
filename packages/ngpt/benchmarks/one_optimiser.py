r"""nGPT beside gpt2 and vanilla as its paper compares them: AdamW for all, each at its best rate.

    uv run python packages/ngpt/benchmarks/one_optimiser.py --steps 100 --seeds 0 1 \
        --override eval.bytes=200000

Every model trains its own tiny recipe but for the optimiser. The first seed tries the rates, and
the best of them trains the other seeds. Prints a table; a finished run is not repeated.
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

RATES = {
    "ngpt": ("7.5e-3", "1.5e-2", "3e-2", "6e-2"),
    "vanilla": ("6e-3", "1.2e-2", "2.4e-2", "4.8e-2"),
    "gpt2": ("1.5e-3", "3e-3", "6e-3", "1.2e-2"),
}
"""AdamW's rates for each model, a factor of two apart."""

WARMUP = {"ngpt": "0", "vanilla": "0.1", "gpt2": "0.1"}
"""As in the paper: nGPT needs no warm-up, and the plain Transformer gets one."""


def entrant(model: str, rate: str) -> Entrant:
    label = f"{model}_{rate.replace('.', '_')}"
    return Entrant(
        label, model=model, overrides=(f"optim.lr={rate}", f"optim.warmup={WARMUP[model]}")
    )


def trained(
    arguments: argparse.Namespace, pairs: list[tuple[str, str]], seeds: list[int]
) -> list[Entry]:
    """One entry per (model, rate), in that order. Exits when a run failed."""
    request = Request(
        entrants=tuple(entrant(model, rate) for model, rate in pairs),
        folder=arguments.folder,
        budget=("steps", arguments.steps),
        seeds=tuple(seeds),
        jobs=arguments.jobs,
        overrides=(
            "optim.name=adamw",
            "eval.every=0",
            "log.tensorboard=false",
            *arguments.override,
        ),
    )
    entries, failures = train_members(request)
    if failures:
        sys.exit("\n".join(f"{name}: {text}" for name, text in failures.items()))
    by_label = {entry.label: entry for entry in entries}
    return [by_label[one.label] for one in request.entrants]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs/one_optimiser"))
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args()

    tried = [(model, rate) for model, rates in RATES.items() for rate in rates]
    found = trained(arguments, tried, arguments.seeds[:1])
    scores = {pair: entry.mean for pair, entry in zip(tried, found, strict=True)}
    chosen = [
        (model, min(rates, key=lambda rate: scores[model, rate])) for model, rates in RATES.items()
    ]
    entries = trained(arguments, chosen, arguments.seeds)

    print("\n| model | AdamW's rates, first seed | best rate | bits per byte |\n|---|---|---|---|")
    for (model, best), entry in zip(chosen, entries, strict=True):
        rates = ", ".join(f"{rate}: {scores[model, rate]:.3f}" for rate in RATES[model])
        spread = f" +- {statistics.stdev(entry.bpbs):.3f}" if len(entry.bpbs) > 1 else ""
        print(f"| {model} | {rates} | {best} | {entry.mean:.3f}{spread} |")
    first = entries[0].first
    print(f"\n{first['steps']} steps, {first['train_tokens']:,} tokens, seeds {arguments.seeds}.")
    print("; ".join(f"{key}: {value}" for key, value in conditions(entries)))


if __name__ == "__main__":
    main()
