"""Two training steps timed in one process: what the scripts of this folder share."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from nanozoo_core.testing import timing
from nanozoo_core.testing.timing import end

__all__ = [
    "adamw_step",
    "begin",
    "both_settings",
    "end",
    "find",
    "race",
    "race_shapes",
    "show_race",
    "show_sizes",
]

CPU = torch.device("cpu")
Step = Callable[[], None]


def find(folder: str) -> Path:
    """The clone of another project in the folder that PEERS names, or the end of the program."""
    path = Path(os.environ.get("PEERS", "")) / folder
    if "PEERS" not in os.environ or not path.exists():
        sys.exit(f"set PEERS to the folder where {folder} is cloned (no {path})")
    return path


def both_settings(shape: tuple[int, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Layers, heads, width, sequence, batch and vocabulary in nanoGPT's names, and in ours."""
    ours = ("num_layers", "num_heads", "model_dim", "seq_len", "", "vocab_size")
    theirs = ("n_layer", "n_head", "n_embd", "block_size", "", "vocab_size")
    named = (dict(zip(names, shape, strict=True)) for names in (theirs, ours))
    first, second = ({k: v for k, v in settings.items() if k} for settings in named)
    return first, second


def begin(
    description: str | None, shapes: Iterable[str], **options: list[str]
) -> argparse.Namespace:
    """Reads the command line (`options` are further choices, all by default) and sets the process
    up, on the CPU."""
    parser = timing.flags(description, rounds=7)
    parser.set_defaults(device="cpu")
    for name, choices in {**options, "shapes": list(shapes)}.items():
        parser.add_argument(f"--{name}", nargs="*", choices=choices, default=choices)
    return timing.begin(parser)


def adamw_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Loss, gradients, AdamW(fused=True) and zero_grad."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def race(peer: str, theirs: Step, ours: Step, *, num_tokens: int, rounds: int) -> dict:
    """Median tokens per second of both, and the ratio ours / theirs over rounds: median and range.
    The two alternate, and take turns at being first."""
    runs = {peer: theirs, "nanozoo": ours}
    repeats = max(1, round(1 / max(timing.seconds(theirs, CPU, 2), 1e-9)))
    times = timing.take_turns(runs, CPU, rounds=rounds, repeats=repeats)
    ratio = times.speed("nanozoo", than=peer)
    return {
        **{f"{who}_tokens_per_second": num_tokens / times.median(who) for who in runs},
        "ratio": ratio.median,
        "ratio_least": ratio.least,
        "ratio_most": ratio.most,
    }


def show_race(row: dict) -> str:
    """The ratio and its range."""
    return f"{row['ratio']:>8.3f}  ({row['ratio_least']:.3f}..{row['ratio_most']:.3f})"


def show_sizes(peer: str, row: dict) -> str:
    """Parameters and speeds of the two, and the race between them."""
    sizes = [row["parameters"][who] for who in (peer, "nanozoo")]
    rates = [row[f"{who}_tokens_per_second"] for who in (peer, "nanozoo")]
    numbers = [f"{size:>13,}" for size in sizes] + [f"{rate:>10,.0f}" for rate in rates]
    return "".join(numbers) + show_race(row)


def race_shapes(
    description: str | None,
    shapes: Iterable[str],
    peer: str,
    compare: Callable[[str, int], dict],
) -> None:
    """A race for every shape that the command line asks for, as a table.

    Args: peer: the name that `compare(shape, rounds)` gave to `race`.
    """
    arguments = begin(description, shapes)
    results = {}
    print(f"{'shape':<10}{f'{peer} tok/s':>15}{'nanozoo tok/s':>15}{'ratio':>8}  (range)")
    for name in arguments.shapes:
        row = results[name] = compare(name, arguments.rounds)
        rates = [row[f"{who}_tokens_per_second"] for who in (peer, "nanozoo")]
        print(f"{name:<10}{rates[0]:>15,.0f}{rates[1]:>15,.0f}{show_race(row)}", flush=True)
    end(arguments, results)
