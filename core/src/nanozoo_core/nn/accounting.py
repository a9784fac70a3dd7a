"""Counts of parameters, FLOPs and decoding memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def count_parameters(model: nn.Module, roles: dict[str, str]) -> dict[str, float]:
    """Total parameters, and those outside embedding tables (a tied head counts as a table)."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    tables = sum(n for name, n in sizes.items() if roles.get(name) == "embedding")
    return {"params": sum(sizes.values()), "params_non_embedding": sum(sizes.values()) - tables}


def cache_growth(lengths: tuple[int, int], num_bytes: Sequence[int]) -> dict[str, float]:
    """Of a decoding state that has `num_bytes` at these two lengths and grows evenly."""
    (short, long), (few, many) = lengths, num_bytes
    per_token = (many - few) / (long - short)
    return {"cache_bytes_per_token": per_token, "state_bytes": few - short * per_token}


def decoder_flops_per_token(
    model: nn.Module, roles: dict[str, str], config: Any, seq_len: int
) -> float:
    """Training FLOPs per token of a plain decoder: 6 per weight of its matrices and of the output
    projection, and 12 * num_layers * model_dim * seq_len for attention counted as a full square
    (Kaplan et al. 2020, arXiv 2001.08361, with the attention term of PaLM, arXiv 2204.02311).

    Args: model: with or without memory behind its weights; roles: of each parameter.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    matrices = sum(n for name, n in sizes.items() if roles[name] == "matrix")
    head = config.vocab_size * config.model_dim
    attention = 12 * config.num_layers * config.model_dim * seq_len
    return 6.0 * (matrices + head) + attention


@torch.no_grad()
def counted_flops_per_token(model: nn.Module, seq_len: int) -> float:
    """Training FLOPs per token of a model that maps tokens (1, T) to logits: three times the
    products of a forward pass over `seq_len` tokens, as torch counts them. Attention counts as a
    full square. Elementwise work, recurrences and convolutions written as sums are not counted; a
    model in which they weigh adds them, for example by `recurrence_flops` and `window_flops`.

    Args: model: with or without memory behind its weights.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    tokens = torch.zeros(1, seq_len, dtype=torch.int64, device=device)
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    model.train(was_training)
    return 3 * counter.get_total_flops() / seq_len


def keys_in_window(seq_len: int, window: int | None) -> float:
    """Keys that a query meets on average: where every query counts the whole of its window, and
    `window` earlier positions besides its own are one; None is the full square."""
    return float(seq_len if window is None else min(seq_len, window + 1))


def window_flops(width: int, seq_len: int, window: int | None) -> float:
    """Training FLOPs per token of attention's scores and sums, beside its projections.

    Args: width: num_heads * head_dim; window: as `attend` takes it.
    """
    return 12.0 * width * keys_in_window(seq_len, window)


def recurrence_flops(channels: int, *, conv_kernel: int = 0) -> float:
    """Training FLOPs per token of h = a h + b in `channels` channels, a product and a sum, and of a
    depthwise convolution of `conv_kernel` taps in front of it."""
    return 3.0 * 2 * channels * (1 + conv_kernel)
