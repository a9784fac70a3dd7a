"""Muon's step against torch.optim.Muon's: `python core/benchmarks/muon.py [--json FILE]`.

Both run in one process, alternating, on one thread; times are the process's own CPU seconds, so
that other jobs on the machine count little. On a GPU they are wall seconds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from nanozoo_core.testing.training import make_muon

# The matrices of so many transformer blocks of that width: q, k, v, o, and an MLP of ratio 4.
BLOCKS = {"4 x width 128": (4, 128), "4 x width 256": (4, 256), "1 x width 768": (1, 768)}
VARIANTS = {
    "ns5": {"orth": "ns5", "beta2": None, "cautious": False},
    "polar_express": {"beta2": None, "cautious": False},
    "polar_express + NorMuon + cautious decay": {},
}
WEIGHT_DECAY = 0.1


def weights(num_blocks: int, width: int, device: torch.device) -> list[nn.Parameter]:
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes * num_blocks:
        parameter = nn.Parameter(torch.randn(shape, generator=generator).to(device))
        parameter.grad = torch.randn(shape, generator=generator).to(device)
        found.append(parameter)
    return found


def seconds(optimizer: torch.optim.Optimizer, steps: int, device: torch.device) -> float:
    """Seconds per step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            optimizer.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps
    started = time.process_time()
    for _ in range(steps):
        optimizer.step()
    return (time.process_time() - started) / steps


def compare(blocks: tuple[int, int], device: torch.device, rounds: int) -> dict:
    """Median milliseconds per step, and the median over rounds of torch's time over ours."""
    oracle = torch.optim.Muon(weights(*blocks, device), weight_decay=WEIGHT_DECAY)
    ours = {
        name: make_muon(weights(*blocks, device), weight_decay=WEIGHT_DECAY, **options)
        for name, options in VARIANTS.items()
    }
    once = seconds(oracle, 1, device)
    for optimizer in ours.values():
        seconds(optimizer, 1, device)
    steps = max(1, round(0.5 / once))
    times: dict[str, list[float]] = {name: [] for name in ("torch.optim.Muon", *ours)}
    for _ in range(rounds):
        times["torch.optim.Muon"].append(seconds(oracle, steps, device))
        for name, optimizer in ours.items():
            times[name].append(seconds(optimizer, steps, device))
    base = times["torch.optim.Muon"]
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(found),
            "ratio": statistics.median(b / t for b, t in zip(base, found, strict=True)),
        }
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(arguments.device)
    results = {}
    print(f"{'blocks':<16}{'optimiser':<44}{'ms/step':>10}{'ratio':>8}")
    for blocks in BLOCKS:
        results[blocks] = compare(BLOCKS[blocks], device, arguments.rounds)
        for name, row in results[blocks].items():
            print(f"{blocks:<16}{name:<44}{row['milliseconds']:>10.2f}{row['ratio']:>8.2f}")
    if arguments.json:
        machine = {"device": str(device), "torch": torch.__version__, "threads": 1}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
