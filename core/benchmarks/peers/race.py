"""Two training steps timed in one process: what the scripts of this folder share."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from nanozoo_core.machine.device import device_name
from nanozoo_core.machine.process import tune_process

Step = Callable[[], None]


def begin(
    description: str | None, shapes: Iterable[str], **options: list[str]
) -> argparse.Namespace:
    """Reads the command line (`options` are further choices, all by default) and sets the process
    up: one thread, and our trainer's settings unless --untuned."""
    parser = argparse.ArgumentParser(description=description)
    for name, choices in {**options, "shapes": list(shapes)}.items():
        parser.add_argument(f"--{name}", nargs="*", choices=choices, default=choices)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--untuned", action="store_true", help="leave the process as torch has it")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.untuned:
        tune_process()
    return arguments


def end(arguments: argparse.Namespace, results: dict) -> None:
    """Writes the results where --json says."""
    if arguments.json:
        machine: dict[str, object] = {"torch": torch.__version__}
        machine["device"] = device_name(torch.device("cpu"))
        machine["tuned"] = not arguments.untuned
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


def adamw_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Loss, gradients, AdamW(fused=True) and zero_grad."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Step, count: int) -> float:
    """CPU seconds per step."""
    started = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - started) / count


def race(peer: str, theirs: Step, ours: Step, *, num_tokens: int, rounds: int) -> dict:
    """Median tokens per second of both, and the ratio ours / theirs over rounds: median and range.
    The two alternate, and take turns at being first."""
    runs = {peer: theirs, "nanozoo": ours}
    for step in runs.values():
        seconds(step, 2)
    count = max(1, round(1 / seconds(theirs, 1)))
    times = []
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        times.append({who: seconds(runs[who], count) for who in order})
    ratios = [t[peer] / t["nanozoo"] for t in times]
    return {
        **{
            f"{who}_tokens_per_second": num_tokens / statistics.median(t[who] for t in times)
            for who in runs
        },
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def show_race(row: dict) -> str:
    """The ratio and its range."""
    return f"{row['ratio']:>8.3f}  ({row['ratio_least']:.3f}..{row['ratio_most']:.3f})"
