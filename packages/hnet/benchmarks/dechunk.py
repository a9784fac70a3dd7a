"""Dechunking against its definition under autograd: seconds of a forward and backward pass.

    python packages/hnet/benchmarks/dechunk.py [--json FILE]

Both forms alternate in one process: CPU seconds of one thread, or wall seconds on a GPU.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.machine.device import device_name, synchronize
from nanozoo_core.machine.process import tune_process
from nanozoo_hnet.kernels.dechunk import dechunk, dechunk_reference

# Rows, positions, channels; a chunk has five positions on average.
SHAPES = {"tiny": (8, 1024, 96), "long": (1, 8192, 96), "small": (1, 2048, 512)}
GPU_SHAPES = {"small": (8, 8192, 512)}
FORMS = {"definition": dechunk_reference, "dechunk": dechunk}


def make_inputs(shape: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    batch, length, dim = shape
    torch.manual_seed(0)
    boundaries = torch.rand(batch, length, device=device) < 0.2
    boundaries[:, 0] = True
    num_chunks = int(boundaries.sum(1).max())
    floats = [(batch, num_chunks, dim), (batch, num_chunks), (batch, length), (batch, length, dim)]
    values, probs, confidence, residual = (torch.rand(*size, device=device) for size in floats)
    inputs = [values, 0.5 + probs / 2, confidence, residual]
    values, probs, confidence, residual = (x.requires_grad_() for x in inputs)
    return [values, probs, boundaries.cumsum(1) - 1, confidence, residual]


def seconds(form: str, inputs: list[Tensor], repeats: int) -> float:
    clock = time.perf_counter if inputs[0].is_cuda else time.process_time
    synchronize(inputs[0].device)
    started = clock()
    for _ in range(repeats):
        FORMS[form](*inputs).sum().backward()
    synchronize(inputs[0].device)
    return (clock() - started) / repeats


def compare(shape: tuple[int, int, int], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each form, and the ratio definition / dechunk: median and range."""
    inputs = make_inputs(shape, device)
    times = [{form: seconds(form, inputs, 3) for form in FORMS} for _ in range(rounds + 1)][1:]
    ratios = [t["definition"] / t["dechunk"] for t in times]
    return {
        **{f"{form}_seconds": statistics.median(t[form] for t in times) for form in FORMS},
        "speed": statistics.median(ratios),
        "speed_least": min(ratios),
        "speed_most": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    device = torch.device(arguments.device)
    shapes = GPU_SHAPES if device.type == "cuda" else SHAPES
    results = {name: compare(shape, device, arguments.rounds) for name, shape in shapes.items()}
    print(f"{device_name(device)}, torch {torch.__version__}")
    print(f"{'shape':24} {'definition':>12} {'dechunk':>12} {'ratio':>16}")
    for name, row in results.items():
        spread = f"{row['speed']:.1f} ({row['speed_least']:.1f}-{row['speed_most']:.1f})"
        label = f"{name} {shapes[name]}"
        milliseconds = [f"{row[f'{form}_seconds'] * 1e3:.2f} ms" for form in FORMS]
        print(f"{label:24} {milliseconds[0]:>12} {milliseconds[1]:>12} {spread:>16}")
    if arguments.json is not None:
        record = {"device": device_name(device), "torch": torch.__version__, "results": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
