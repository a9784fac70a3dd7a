"""Time and memory of one layer's mixing against the length of the text: the scan of Mamba-1, that
of Mamba-2, and causal attention of the same width.

    python packages/mamba/benchmarks/lengths.py [--longest N] [--json FILE]

Forward and backward pass of one sequence of 256 channels; attention has 4 heads of 64. Every length
and kind runs in a process of its own, whose peak memory above that of its inputs is measured;
times are CPU seconds of one thread, or wall seconds on a GPU.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.device import device_name, peak_memory_bytes
from nanozoo_core.ops.selective_scan import selective_scan
from nanozoo_core.ops.ssd import ssd
from nanozoo_core.testing.timing import Run, begin, end, flags, in_own_process, seconds

KINDS = ("mamba1", "mamba2", "attention")
CHANNELS, STATES, HEADS = 256, {"mamba1": 16, "mamba2": 64}, 4


def mixing(kind: str, length: int, device: torch.device) -> Run:
    """A forward and backward pass, its inputs made."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    def steps(width: int) -> Tensor:
        raw = torch.randn(1, length, width, generator=generator) - 4
        return F.softplus(raw).to(device).requires_grad_()

    if kind == "attention":
        inputs = [normal(1, HEADS, length, CHANNELS // HEADS) for _ in range(3)]

        def forward() -> Tensor:
            return F.scaled_dot_product_attention(*inputs, is_causal=True)

    elif kind == "mamba1":
        x, delta, gate = normal(1, length, CHANNELS), steps(CHANNELS), normal(1, length, CHANNELS)
        b, c = normal(1, length, STATES[kind]), normal(1, length, STATES[kind])
        rates = -torch.arange(1.0, STATES[kind] + 1, device=device).repeat(CHANNELS, 1)
        inputs = [x, delta, b, c, gate]

        def forward() -> Tensor:
            return selective_scan(x, delta, rates, b, c, gate=gate)[0]

    else:
        heads = CHANNELS // 32
        x, delta = normal(1, length, heads, 32), steps(heads)
        b, c = normal(1, length, STATES[kind]), normal(1, length, STATES[kind])
        inputs = [x, delta, b, c]

        def forward() -> Tensor:
            return ssd(x, delta, -8 * delta, b, c, chunk_size=32)[0]

    def run() -> None:
        y = forward()
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    return run


def measure(kind: str, length: int, device: torch.device) -> dict[str, float]:
    """Seconds and bytes of one pass, in this process."""
    mixing(kind, 64, device)()  # loads what the first pass loads
    run = mixing(kind, length, device)
    before = peak_memory_bytes(device)
    times: list[float] = []
    while len(times) < 3 and sum(times) <= 20:
        times.append(seconds(run, device))
    return {"seconds": statistics.median(times), "bytes": peak_memory_bytes(device) - before}


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "LENGTH"), help=argparse.SUPPRESS)
    arguments = begin(parser)
    device = arguments.device
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]), device)))
        return
    lengths = [length for length in (256, 1024, 4096, 16384, 65536) if length <= arguments.longest]
    results: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
    print(f"{device_name(device)}, torch {torch.__version__}; microseconds and kilobytes per token")
    print(f"{'length':>8}" + "".join(f"{kind + ' us':>15}{'kB':>8}" for kind in KINDS))
    for length in lengths:
        cells = ""
        for kind in KINDS:
            row = in_own_process(__file__, arguments, "--one", kind, length)
            results[kind][length] = row
            cells += f"{1e6 * row['seconds'] / length:>15.1f}{row['bytes'] / length / 1e3:>8.1f}"
        print(f"{length:>8}{cells}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
