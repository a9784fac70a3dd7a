"""Our Triton kernels beside those of mamba_ssm and flash-linear-attention, on a GPU.

    uv pip install mamba-ssm flash-linear-attention
    python core/benchmarks/peers/gpu_kernels.py [--json FILE]

Forward and backward pass in bfloat16, both in one process, alternating: wall seconds. Both must
agree on the result before the clock starts. A peer that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.machine.device import device_name, synchronize
from nanozoo_core.ops.selective_scan import selective_scan
from nanozoo_core.ops.ssd import ssd
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.attention import selected_attention
from nanozoo_nsa.selected.choice import all_blocks

Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]  # ours, theirs, inputs
TOLERANCE = 2e-2  # rms of the difference over rms, both in bfloat16


def mamba1(draw: Callable[..., Tensor], batch: int, length: int, channels: int) -> Case:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    states = 16
    rates = -torch.arange(1.0, states + 1, device=draw().device).repeat(channels, 1)
    skip = torch.ones(channels, device=rates.device)

    def ours(x: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor) -> Tensor:
        return selective_scan(x, delta, rates, b, c, skip=skip, gate=z, delta_softplus=True)[0]

    def theirs(x: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor) -> Tensor:
        x, delta, b, c, z = (t.mT.contiguous() for t in (x, delta, b, c, z))  # channels first
        return selective_scan_fn(x, delta, rates, b, c, skip, z, None, delta_softplus=True).mT

    wide, narrow = (batch, length, channels), (batch, length, states)
    inputs = [draw(*wide), draw(*wide) - 4, draw(*narrow), draw(*narrow), draw(*wide)]
    return ours, theirs, inputs


def mamba2(draw: Callable[..., Tensor], batch: int, length: int, heads: int) -> Case:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    channels, states, chunk = 64, 128, 128
    rates = -torch.linspace(1, 16, heads, device=draw().device)
    skip = torch.ones(heads, device=rates.device)

    def ours(x: Tensor, raw: Tensor, b: Tensor, c: Tensor) -> Tensor:
        delta = F.softplus(raw.float())
        return ssd(x, delta, delta * rates, b, c, skip=skip, chunk_size=chunk)[0]

    def theirs(x: Tensor, raw: Tensor, b: Tensor, c: Tensor) -> Tensor:
        b, c = b[:, :, None], c[:, :, None]  # one group
        return mamba_chunk_scan_combined(x, raw, rates, b, c, chunk, D=skip, dt_softplus=True)

    narrow = (batch, length, states)
    inputs = [draw(batch, length, heads, channels), draw(batch, length, heads) - 4]
    return ours, theirs, [*inputs, draw(*narrow), draw(*narrow)]


def nsa(draw: Callable[..., Tensor], batch: int, length: int, heads: int) -> Case:
    """Selected attention alone, 16 query heads of one key head, as theirs demands."""
    from fla.ops.nsa import parallel_nsa

    width, num_blocks = 64, 16
    grid = Grid(32, 16, block=64, num_selected=num_blocks, init_blocks=0, local_blocks=1)
    device = draw().device
    positions = torch.arange(length, device=device)
    # Random earlier blocks, each once, none from the future and not the query's own.
    scores = torch.rand(batch, heads // 16, length, grid.num_blocks(length), device=device)
    earlier = torch.arange(scores.shape[-1], device=device) < (positions // grid.block)[:, None]
    best = scores.masked_fill(~earlier, -1.0).topk(grid.num_free)
    chosen = best.indices.masked_fill(best.values < 0, -1).int()
    blocks = all_blocks(chosen, positions, grid).transpose(1, 2).contiguous()

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.unflatten(2, (-1, 16)).transpose(1, 2)  # (B, Hk, T, G, K)
        out = selected_attention(q, k.transpose(1, 2), v.transpose(1, 2), chosen, grid)
        return out.transpose(1, 2).flatten(2, 3)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return parallel_nsa(
            q, k, v, block_indices=blocks, block_counts=num_blocks, block_size=grid.block
        )

    keys = (batch, length, heads // 16, width)
    return ours, theirs, [draw(batch, length, heads, width), draw(*keys), draw(*keys)]


CASES: dict[str, tuple[str, Callable[..., Case], tuple[int, int, int]]] = {
    "selective scan": ("mamba_ssm", mamba1, (8, 2048, 1536)),
    "ssd": ("mamba_ssm", mamba2, (8, 2048, 24)),
    "selected attention": ("fla", nsa, (1, 16384, 32)),
}


def differentiated(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]

    def run() -> Tensor:
        y = function(*leaves)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
        synchronize(y.device)
        return y.detach()

    return run


def seconds(run: Callable[[], Tensor], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs=3, help="in place of each case's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("these kernels need a CUDA device, and torch sees none")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    results = {}
    print(f"{device_name(device)}, torch {torch.__version__}")
    for name, (module, make, sizes) in CASES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name}: {module} is not installed")
            continue
        ours, theirs, inputs = make(draw, *(arguments.sizes or sizes))
        runs = {"ours": differentiated(ours, inputs), "theirs": differentiated(theirs, inputs)}
        mine, other = runs["ours"]().double(), runs["theirs"]().double()
        error = float((mine - other).square().mean().sqrt() / other.square().mean().sqrt())
        if error > TOLERANCE:
            sys.exit(f"{name}: the two differ by {error:.3g} of their size; no race")
        count = max(1, round(0.3 / seconds(runs["theirs"], 3)))
        times = [
            {who: seconds(run, count) for who, run in runs.items()} for _ in range(arguments.rounds)
        ]
        ratios = [t["theirs"] / t["ours"] for t in times]
        results[name] = {"speed": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
        print(
            f"{name:20}{module:12}{statistics.median(ratios):6.2f} times as fast "
            f"({min(ratios):.2f} .. {max(ratios):.2f}); they differ by {error:.1e}",
            flush=True,
        )
    if arguments.json:
        head = {"device": device_name(device), "torch": torch.__version__}
        arguments.json.write_text(json.dumps(head | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
