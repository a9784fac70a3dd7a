"""What the Triton kernels of compressed and of selected attention share.

S sequences, T positions, G query heads of a key head, K head_dim, M rows (queries) and N keys of a
tile.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from nanozoo_core.ops.optional_triton import product_precision


def tile_constants(q: Tensor) -> dict[str, Any]:
    """Those of every kernel, for queries (S, T, G, K)."""
    return {
        "G": q.shape[2],
        "K": q.shape[3],
        "PRECISION": product_precision(q.dtype),
        "UPCAST": not q.is_cuda,
    }


@triton.jit
def load_pair(one, two, at, mask, UPCAST: tl.constexpr):
    """Tiles of two tensors at the same places, 0 outside."""
    first, second = tl.load(one + at, mask=mask, other=0.0), tl.load(two + at, mask=mask, other=0.0)
    if UPCAST:  # the interpreter cannot multiply bfloat16
        first, second = first.to(tl.float32), second.to(tl.float32)
    return first, second


@triton.jit
def load_rows(norms, delta, place, real):
    """Normalisers of rows and sums of grad * out, each (M,). Infinite norms, of rows that see
    nothing or are not there, make all probabilities 0."""
    norm = tl.load(norms + place, mask=real, other=float("inf"))
    return norm, tl.load(delta + place, mask=real, other=0.0)


@triton.jit
def score_gradients(probs, upper, value, mean, PRECISION: tl.constexpr):
    """(M, N): of the scores, from probabilities and the results' gradients (M, K)."""
    d_probs = tl.dot(upper, tl.trans(value), input_precision=PRECISION)
    return (probs * (d_probs - mean[:, None])).to(value.dtype)
