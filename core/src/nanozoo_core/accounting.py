"""Parameters and FLOPs, counted on the meta device where no model exists yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from nanozoo_core.default_model_adapter import DefaultModelAdapter


def count_parameters(model: nn.Module, roles: dict[str, str]) -> dict[str, float]:
    """Total parameters, and those outside embedding tables (a tied head counts as a table)."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    tables = sum(n for name, n in sizes.items() if roles.get(name) == "embedding")
    return {"params": sum(sizes.values()), "params_non_embedding": sum(sizes.values()) - tables}


def count_cache(adapter: DefaultModelAdapter, model: nn.Module) -> dict[str, float]:
    """`cache_bytes_per_token`, by which the decoding state grows with every token, and
    `state_bytes`, what it holds from the start, from the adapter's `cache_lengths`; empty where
    the cache has no `num_bytes`."""
    if not hasattr(model, "init_cache"):
        return {}
    lengths = adapter.cache_lengths
    caches = [adapter.init_cache(model, 1, length) for length in lengths]
    if not all(hasattr(cache, "num_bytes") for cache in caches):
        return {}
    return cache_growth(lengths, [cache.num_bytes for cache in caches])


def cache_growth(lengths: tuple[int, int], num_bytes: Sequence[int]) -> dict[str, float]:
    """Of a decoding state that has `num_bytes` at these two lengths and grows evenly."""
    (short, long), (few, many) = lengths, num_bytes
    per_token = (many - few) / (long - short)
    return {"cache_bytes_per_token": per_token, "state_bytes": few - short * per_token}


def transformer_flops_per_token(adapter: DefaultModelAdapter, config: Any, seq_len: int) -> float:
    """Training FLOPs per token of a plain decoder: 6 per weight of its matrices and of the output
    projection, and 12 * num_layers * model_dim * seq_len for attention counted as a full square
    (Kaplan et al. 2020, arXiv 2001.08361, with the attention term of PaLM, arXiv 2204.02311)."""
    with torch.device("meta"):
        model = adapter.model_class(config)
    roles = adapter.parameter_roles(model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    matrices = sum(n for name, n in sizes.items() if roles[name] == "matrix")
    head = config.vocab_size * config.model_dim
    attention = 12 * config.num_layers * config.model_dim * seq_len
    return 6.0 * (matrices + head) + attention
