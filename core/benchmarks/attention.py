"""Windowed attention in blocks against full causal attention and against a mask over all keys.

    python core/benchmarks/attention.py [--json FILE]

Forward plus backward, float32. All forms of a shape run in one process, alternating: CPU seconds of
one thread, which other jobs hardly disturb.
"""

from functools import partial

import torch

from nanozoo_core.nn.attention import attend, sdpa
from nanozoo_core.testing.timing import Run, begin, differentiated, end, flags, take_turns

# Batch, heads, sequence, head width, earlier tokens that a query sees.
SHAPES = {
    "tiny": (16, 4, 256, 32, 31),
    "T 1024, W 128": (1, 12, 1024, 64, 127),
    "T 4096, W 128": (1, 12, 4096, 64, 127),
    "T 4096, W 512": (1, 12, 4096, 64, 511),
}


def forms(shape: tuple[int, ...]) -> dict[str, Run]:
    batch, heads, length, width, window = shape
    q, k, v = torch.randn(3, batch, heads, length, width).unbind()
    behind = torch.arange(length)[:, None] - torch.arange(length)
    mask = (behind >= 0) & (behind <= window)

    return {
        "causal": differentiated(attend, q, k, v),
        "mask": differentiated(partial(sdpa, mask=mask), q, k, v),
        "window": differentiated(partial(attend, window=window), q, k, v),
    }


def main() -> None:
    arguments = begin(flags(__doc__, rounds=7))
    results: dict[str, dict[str, float]] = {}
    print("times as fast as causal attention; medians, and the range of rounds")
    print(f"{'shape':16}{'causal ms':>12}{'mask':>22}{'window':>22}")
    for name, shape in SHAPES.items():
        times = take_turns(forms(shape), arguments.device, rounds=arguments.rounds)
        speeds = {form: times.speed(form, than="causal") for form in ("mask", "window")}
        causal = times.median("causal")
        results[name] = {"causal_seconds": causal}
        results[name] |= {form: speed.median for form, speed in speeds.items()}
        cells = "".join(f"{speed!s:>22}" for speed in speeds.values())
        print(f"{name:16}{1e3 * causal:12.1f}{cells}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
