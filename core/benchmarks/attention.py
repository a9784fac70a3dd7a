"""Windowed attention in blocks against full causal attention and against a mask over all keys.

    python core/benchmarks/attention.py [--json FILE]

Forward plus backward, float32. All forms of a shape run in one process, alternating: CPU seconds of
one thread, which other jobs hardly disturb.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.machine.device import device_name
from nanozoo_core.machine.process import tune_process
from nanozoo_core.nn.attention import attend, sdpa

# Batch, heads, sequence, head width, earlier tokens that a query sees.
SHAPES = {
    "tiny": (16, 4, 256, 32, 31),
    "T 1024, W 128": (1, 12, 1024, 64, 127),
    "T 4096, W 128": (1, 12, 4096, 64, 127),
    "T 4096, W 512": (1, 12, 4096, 64, 511),
}

Run = Callable[[], None]


def forms(shape: tuple[int, ...]) -> dict[str, Run]:
    batch, heads, length, width, window = shape
    leaves = torch.randn(3, batch, heads, length, width).unbind()
    for leaf in leaves:
        leaf.requires_grad_()
    behind = torch.arange(length)[:, None] - torch.arange(length)
    mask = (behind >= 0) & (behind <= window)

    def differentiated(function: Callable[..., Tensor]) -> Run:
        def run() -> None:
            y = function(*leaves)
            torch.autograd.grad(y, leaves, torch.ones_like(y))

        return run

    return {
        "causal": differentiated(lambda q, k, v: attend(q, k, v)),
        "mask": differentiated(lambda q, k, v: sdpa(q, k, v, mask=mask)),
        "window": differentiated(lambda q, k, v: attend(q, k, v, window=window)),
    }


def seconds(run: Run) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    results: dict[str, dict[str, float]] = {}
    print("times as fast as causal attention; medians, and the range of rounds")
    print(f"{'shape':16}{'causal ms':>12}{'mask':>22}{'window':>22}")
    for name, shape in SHAPES.items():
        runs = forms(shape)
        rounds = [
            {form: seconds(run) for form, run in runs.items()} for _ in range(arguments.rounds + 1)
        ][1:]
        row = {f"{form}_seconds": statistics.median(r[form] for r in rounds) for form in runs}
        cells = []
        for form in ("mask", "window"):
            ratios = [r["causal"] / r[form] for r in rounds]
            row[form] = statistics.median(ratios)
            cells.append(f"{row[form]:.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
        results[name] = row
        causal = 1e3 * row["causal_seconds"]
        print(f"{name:16}{causal:12.1f}{cells[0]:>22}{cells[1]:>22}", flush=True)
    if arguments.json:
        machine = {"device": device_name(torch.device("cpu")), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
