"""Attention of the local model: causal within each patch, for very many patches of few bytes.

N patches, H heads, P bytes of a patch, K head_dim.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.nn.attention import attend
from nanozoo_core.ops.backend import use_triton


def patch_attention(
    q: Tensor, k: Tensor, v: Tensor, *, backend: Literal["torch", "triton"] = "torch"
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the bytes of a patch up to the query's own, by torch's
    attention or by the Triton kernel, which takes patches of at most 32 bytes and heads of at most
    128 channels. What sees more than its patch is not for it.

    Args: q, k, v: (N, H, P, K). Returns: (N, H, P, K).
    Raises: ValueError when backend=triton cannot run.
    """
    if backend == "triton" and use_triton(backend, q):
        from nanozoo_megabyte.kernels.patch_attention import patch_attention_triton

        return patch_attention_triton(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    return attend(q, k, v)


def patch_attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as it reads, in float32 or more."""
    size, width = q.shape[2:]
    dtype = wide_dtype(q)
    scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(width)  # (N, H, P, P)
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v.to(dtype)).to(q.dtype)
