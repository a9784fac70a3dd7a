"""The fused head loss against F.linear and F.cross_entropy: time and peak memory, forward+backward.

    python core/benchmarks/linear_cross_entropy.py [--json FILE]

Times come from one process in which both forms alternate: CPU seconds of one thread, which other
jobs hardly disturb, or wall seconds on a GPU. Peak memory is what a process of its own gains over
its inputs; the weight's gradient, which both forms must return, is part of it.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.device import peak_memory_bytes
from nanozoo_core.ops.linear_cross_entropy import linear_cross_entropy
from nanozoo_core.testing.timing import begin, end, flags, take_turns

# Tokens, width, vocabulary: byte models, the default recipes, and GPT-2's head.
SHAPES = {
    "bytes": (4096, 128, 258),
    "tiny": (4096, 128, 4096),
    "wide": (2048, 768, 4096),
    "gpt2": (1024, 768, 50257),
}
GPU_SHAPES = {"gpt2": (32768, 768, 50257), "wide": (32768, 2048, 50257)}


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), targets)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "fused": linear_cross_entropy,
}


def make_inputs(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, dim, vocab_size = shape
    torch.manual_seed(0)
    x = torch.randn(num_tokens, dim, device=device).requires_grad_()
    weight = torch.randn(vocab_size, dim, device=device).mul_(0.02).requires_grad_()
    return x, weight, torch.randint(vocab_size, (num_tokens,), device=device)


def run(form: str, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    x.grad = weight.grad = None
    with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
        loss = FORMS[form](*inputs)
    loss.backward()


def compare(shape: tuple[int, int, int], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each form, and the ratio plain / fused over rounds: median and range."""
    inputs = make_inputs(shape, device)
    runs = {form: partial(run, form, inputs) for form in FORMS}
    return take_turns(runs, device, rounds=rounds).compare("fused", than="plain")


def held_bytes(device: torch.device) -> int:
    """Most memory held so far; Linux's own counter, as ru_maxrss begins at the parent's."""
    status = Path("/proc/self/status")
    if device.type == "cpu" and status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return peak_memory_bytes(device)


def print_peak(form: str, shape: tuple[int, int, int], device: torch.device) -> None:
    """In a child process: prints the bytes that one form holds over its inputs."""
    small = make_inputs((64, 64, 64), device)
    run(form, small)  # libraries load here
    inputs = make_inputs(shape, device)
    before = held_bytes(device)
    run(form, inputs)
    print(held_bytes(device) - before)


def peak_bytes(form: str, name: str, device: torch.device) -> int:
    command = [sys.executable, __file__, "--device", device.type, "--peak", form, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "SHAPE"), help=argparse.SUPPRESS)
    arguments = begin(parser)
    device = arguments.device
    shapes = GPU_SHAPES if device.type == "cuda" else SHAPES
    if arguments.peak:
        form, name = arguments.peak
        print_peak(form, shapes[name], device)
        return

    results = {}
    head = f"{'tokens x width x vocabulary':<30}{'plain ms':>10}{'fused ms':>10}"
    print(head + f"{'speed':>8} {'(range)':<14}{'plain MiB':>10}{'fused MiB':>10}{'memory':>8}")
    for name, shape in shapes.items():
        speed = compare(shape, device, arguments.rounds)
        peaks = {form: peak_bytes(form, name, device) for form in FORMS}
        memory = peaks["fused"] / peaks["plain"]
        results[name] = {"shape": shape, **speed, "peak_bytes": peaks, "memory": memory}
        spread = f"({speed['speed_least']:.2f}..{speed['speed_most']:.2f})"
        print(
            f"{' x '.join(map(str, shape)):<30}"
            f"{1e3 * speed['plain_seconds']:>10.1f}{1e3 * speed['fused_seconds']:>10.1f}"
            f"{speed['speed']:>8.2f} {spread:<14}"
            f"{peaks['plain'] / 2**20:>10.0f}{peaks['fused'] / 2**20:>10.0f}{memory:>8.2f}"
        )
    end(arguments, results)


if __name__ == "__main__":
    main()
