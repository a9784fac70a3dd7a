"""What one thread of this processor can do at most: products of matrices, and reads of memory.

    python core/benchmarks/peers/limits.py

The peak is the fastest of several products, each the best of its rounds: what a training step could
reach if it held nothing but the product that suits the processor best. Reads are those of a dot
product of two vectors that fit no cache.
"""

import argparse
from collections.abc import Callable

import torch
from race import CPU, DTYPES, begin, end

from nanozoo_core.testing import timing

# Rows, inner size, columns: a square, and layers of widths 384 and 768.
SHAPES = {
    "square": (2048, 2048, 2048),
    "width 384": (4096, 384, 1536),
    "width 768": (2048, 768, 3072),
}
PRODUCT_DTYPES = DTYPES[1:]
VECTOR_BYTES = 128 << 20


def fewest_seconds(run: Callable[[], object], rounds: int) -> float:
    """Of one call."""
    times = timing.take_turns({"run": run}, CPU, rounds=rounds)
    return min(each["run"] for each in times.rounds)


def flops_per_second(shape: tuple[int, int, int], dtype: str, rounds: int) -> float:
    """Of a product, into memory that is there."""
    num_rows, inner, num_columns = shape
    a = torch.randn(num_rows, inner).to(getattr(torch, dtype))
    b = torch.randn(num_columns, inner).to(a.dtype).mT
    out = torch.empty(num_rows, num_columns, dtype=a.dtype)
    seconds = fewest_seconds(lambda: torch.mm(a, b, out=out), rounds)
    return 2 * num_rows * inner * num_columns / seconds


def bytes_per_second(rounds: int) -> float:
    x, y = torch.ones(VECTOR_BYTES // 4), torch.ones(VECTOR_BYTES // 4)
    return 2 * VECTOR_BYTES / fewest_seconds(lambda: torch.dot(x, y), rounds)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    found: dict[str, dict[str, float]] = {dtype: {} for dtype in PRODUCT_DTYPES}
    for name in arguments.shapes:
        for dtype in PRODUCT_DTYPES:
            found[dtype][name] = flops_per_second(SHAPES[name], dtype, arguments.rounds)
            print(f"{name:<11}{dtype:<10}{found[dtype][name] / 1e9:>8,.0f} GFLOP/s", flush=True)
    bandwidth = bytes_per_second(arguments.rounds)
    print(f"{'reads':<21}{bandwidth / 1e9:>8.1f} GB/s")
    return {
        "peak_flops": {dtype: max(rates.values()) for dtype, rates in found.items()},
        "products": found,
        "read_bytes_per_second": bandwidth,
    }


def main() -> None:
    arguments = begin(__doc__, SHAPES)
    end(arguments, measure(arguments))


if __name__ == "__main__":
    main()
