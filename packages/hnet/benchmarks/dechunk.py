"""Dechunking against its definition under autograd: seconds of a forward and backward pass.

    python packages/hnet/benchmarks/dechunk.py [--json FILE]

Both forms alternate in one process: CPU seconds of one thread, or wall seconds on a GPU.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanozoo_core.machine.device import device_name
from nanozoo_core.testing.timing import begin, end, flags, take_turns
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


def compare(shape: tuple[int, int, int], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each form, and the ratio definition / dechunk: median and range."""
    inputs = make_inputs(shape, device)
    runs = {name: partial(both_ways, form, inputs) for name, form in FORMS.items()}
    return take_turns(runs, device, rounds=rounds, repeats=3).compare("dechunk", than="definition")


def both_ways(form: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    form(*inputs).sum().backward()


def main() -> None:
    arguments = begin(flags(__doc__))
    device = arguments.device
    shapes = GPU_SHAPES if device.type == "cuda" else SHAPES
    results = {name: compare(shape, device, arguments.rounds) for name, shape in shapes.items()}
    print(f"{device_name(device)}, torch {torch.__version__}")
    print(f"{'shape':24} {'definition':>12} {'dechunk':>12} {'ratio':>16}")
    for name, row in results.items():
        spread = f"{row['speed']:.1f} ({row['speed_least']:.1f}-{row['speed_most']:.1f})"
        label = f"{name} {shapes[name]}"
        milliseconds = [f"{row[f'{form}_seconds'] * 1e3:.2f} ms" for form in FORMS]
        print(f"{label:24} {milliseconds[0]:>12} {milliseconds[1]:>12} {spread:>16}")
    end(arguments, results)


if __name__ == "__main__":
    main()
