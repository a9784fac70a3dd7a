"""The local model's attention by the Triton kernel beside torch's, on a GPU.

    python packages/megabyte/benchmarks/patch_attention.py [--json FILE]

bfloat16, 65,536 bytes, q, k and v as parts of one projection, forward and forward plus backward.
All forms of a shape run in one process, alternating. `compiled` is the plain form by torch.compile.
GB/s is what the kernel must at least move, over its time.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanozoo_core.testing.timing import Run, begin, end, flags, take_turns
from nanozoo_megabyte.patch_attention import patch_attention, patch_attention_reference

NUM_BYTES, NUM_HEADS, HEAD_DIM = 65536, 8, 64
PATCH_SIZES = (4, 8, 16, 32)
REPEATS = 20


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


def main() -> None:
    arguments = begin(flags(__doc__, rounds=7))
    if not torch.cuda.is_available():
        sys.exit("the kernel needs a GPU, and torch finds none")
    results: dict[str, dict[str, float]] = {}
    print("times as fast as torch's attention; medians, and the range of rounds")
    print(f"{'shape':20}{'sdpa ms':>10}{'kernel':>22}{'compiled':>22}{'kernel GB/s':>13}")
    for size in PATCH_SIZES:
        for with_backward in (False, True):
            runs = forms(size, with_backward=with_backward)
            times = take_turns(runs, arguments.device, rounds=arguments.rounds, repeats=REPEATS)
            row = {f"{form}_seconds": times.median(form) for form in runs}
            speeds = {form: times.speed(form, than="sdpa") for form in ("kernel", "compiled")}
            row |= {form: speed.median for form, speed in speeds.items()}
            cells = "".join(f"{speed!s:>22}" for speed in speeds.values())
            name = f"P {size}, {'both ways' if with_backward else 'forward'}"
            results[name] = row
            # q, k, v and the result; backward q, k, v, the gradient, and three gradients.
            moved = (11 if with_backward else 4) * NUM_BYTES * NUM_HEADS * HEAD_DIM * 2
            speed = moved / row["kernel_seconds"] / 1e9
            sdpa = 1e3 * row["sdpa_seconds"]
            print(f"{name:20}{sdpa:10.3f}{cells}{speed:13.0f}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
