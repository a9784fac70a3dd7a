"""The local model's attention by the Triton kernel beside torch's, on a GPU.

    python packages/megabyte/benchmarks/patch_attention.py [--json FILE]

bfloat16, 65,536 bytes, q, k and v as parts of one projection, forward and forward plus backward.
All forms of a shape run in one process, alternating. `compiled` is the plain form by torch.compile.
GB/s is what the kernel must at least move, over its time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.machine.device import device_name, synchronize
from nanozoo_megabyte.patch_attention import patch_attention, patch_attention_reference

NUM_BYTES, NUM_HEADS, HEAD_DIM = 65536, 8, 64
PATCH_SIZES = (4, 8, 16, 32)
REPEATS = 20

Run = Callable[[], object]


def forms(size: int, *, with_backward: bool) -> dict[str, Run]:
    shape = (NUM_BYTES // size, size, 3 * NUM_HEADS * HEAD_DIM)
    qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=with_backward)

    def run(form: Callable[..., Tensor]) -> object:
        q, k, v = (x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        y = form(q, k, v)
        return torch.autograd.grad(y, qkv, torch.ones_like(y)) if with_backward else y

    return {
        "sdpa": partial(run, partial(patch_attention, backend="torch")),
        "kernel": partial(run, partial(patch_attention, backend="triton")),
        "compiled": partial(run, torch.compile(patch_attention_reference, dynamic=False)),
    }


def seconds(run: Run) -> float:
    device = torch.device("cuda")
    synchronize(device)
    started = time.perf_counter()
    for _ in range(REPEATS):
        run()
    synchronize(device)
    return (time.perf_counter() - started) / REPEATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("the kernel needs a GPU, and torch finds none")
    results: dict[str, dict[str, float]] = {}
    print("times as fast as torch's attention; medians, and the range of rounds")
    print(f"{'shape':20}{'sdpa ms':>10}{'kernel':>22}{'compiled':>22}{'kernel GB/s':>13}")
    for size in PATCH_SIZES:
        for with_backward in (False, True):
            runs = forms(size, with_backward=with_backward)
            rounds = [
                {form: seconds(run) for form, run in runs.items()}
                for _ in range(arguments.rounds + 1)
            ][1:]
            row = {f"{form}_seconds": statistics.median(r[form] for r in rounds) for form in runs}
            cells = []
            for form in ("kernel", "compiled"):
                ratios = [r["sdpa"] / r[form] for r in rounds]
                row[form] = statistics.median(ratios)
                cells.append(f"{row[form]:.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
            name = f"P {size}, {'both ways' if with_backward else 'forward'}"
            results[name] = row
            # q, k, v and the result; backward q, k, v, the gradient, and three gradients.
            moved = (11 if with_backward else 4) * NUM_BYTES * NUM_HEADS * HEAD_DIM * 2
            speed = moved / row["kernel_seconds"] / 1e9
            sdpa = 1e3 * row["sdpa_seconds"]
            print(f"{name:20}{sdpa:10.3f}{cells[0]:>22}{cells[1]:>22}{speed:13.0f}", flush=True)
    if arguments.json:
        machine = {"device": device_name(torch.device("cuda")), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
