"""Counts of parameters, FLOPs and decoding memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
