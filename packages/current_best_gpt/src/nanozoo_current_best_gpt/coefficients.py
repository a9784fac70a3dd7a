"""Coefficients per token: small MLPs whose outputs scale heads, streams and skips.

They start as constants (the second layer is zero), and are linear: no sigmoid bounds them. With
gates_per_token=false they stay constants, the same for all tokens, and are learned as such.

B batch, T sequence, D model_dim, H heads, G hidden width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_current_best_gpt.config import CurrentBestConfig

INIT_SCALE = 0.1  # tau at first; the constants below are what comes out
Named = dict[str, Tensor]  # coefficients (B, T, size) by name


class Entry(NamedTuple):
    """A named coefficient: how many numbers per token, and what they are at first."""

    name: str
    size: int
    init: float
    layer: int = 0  # which gates belong to; a mix has one place alone


def add_gain(module: nn.Module, name: str, size: int, *, learned: bool) -> None:
    """A vector of the module that is learned, or stays as init_weights leaves it."""
    if learned:
        module.register_parameter(name, nn.Parameter(torch.empty(size)))
    else:
        module.register_buffer(name, torch.empty(size), persistent=False)


class Coefficients(nn.Module):
    """tau (W2 gelu(W1 z) + c), cut into its entries; tau c alone without a hidden layer."""

    def __init__(self, model_dim: int, hidden_dim: int | None, entries: list[Entry]) -> None:
        super().__init__()
        self.entries = entries
        size = sum(e.size for e in entries)
        self.w1 = self.w2 = None
        if hidden_dim is not None:
            self.w1 = nn.Parameter(torch.empty(hidden_dim, model_dim))
            self.w2 = nn.Parameter(torch.empty(size, hidden_dim))
        self.bias = nn.Parameter(torch.empty(size))
        self.init_weights()

    def init_weights(self) -> None:
        """
        w1     U(+-1 / sqrt(fan_in))
        w2     0
        bias   each entry's constant / tau
        """
        if self.w1 is not None and self.w2 is not None:
            limit = 1 / math.sqrt(self.w1.shape[1])
            nn.init.uniform_(self.w1, -limit, limit)
            nn.init.zeros_(self.w2)
        inits = [e.init / INIT_SCALE for e in self.entries for _ in range(e.size)]
        with torch.no_grad():
            self.bias.copy_(torch.tensor(inits))

    def parts(self, z: Tensor, scale: Tensor | float) -> list[tuple[Entry, Tensor]]:
        """Each entry with its coefficients (B, T, size). Args: z (B, T, D); scale: tau."""
        if self.w1 is None or self.w2 is None:
            out = (self.bias * scale).expand(*z.shape[:-1], -1)
        else:
            out = F.linear(F.gelu(F.linear(z, self.w1)), self.w2, self.bias) * scale
        parts = out.split([e.size for e in self.entries], dim=-1)
        return list(zip(self.entries, parts, strict=True))


class Gates(Coefficients):
    """The coefficients of many layers, read off one stream."""

    def forward(self, z: Tensor, scale: Tensor) -> dict[int, Named]:
        """By layer, from z (B, T, D) and tau."""
        found: dict[int, Named] = {}
        for entry, part in self.parts(z, scale):
            found.setdefault(entry.layer, {})[entry.name] = part
        return found


class Mix(Coefficients):
    """The coefficients by which earlier streams are mixed in at one place."""

    def forward(self, z: Tensor) -> Named:
        """From z (B, T, D)."""
        return {entry.name: part for entry, part in self.parts(z, INIT_SCALE)}


def gate_entries(config: CurrentBestConfig) -> list[list[Entry]]:
    """What the gate MLPs give: those read off the embedding, and those from gate_split_layer on."""
    heads = config.num_heads
    split = config.gate_split_layer or config.num_layers
    entries: list[Entry] = []
    entries += [Entry("xsa", heads, 0.0, layer) for layer in sorted(config.xsa_layers)]
    entries += [Entry("attention", heads, 0.25, layer) for layer in sorted(config.attn_gate_layers)]
    for layer in range(config.num_layers):
        if config.attends(layer) and not _is_mudd(config, layer):
            if config.x0_injection:
                entries.append(Entry("x0", 1, 0.0, layer))
            if config.bigram_rows:
                entries.append(Entry("bigram", 1, 0.05, layer))
    if _needs_first_injection(config):
        entries.append(Entry("bigram", 1, 0.05, 0))
    if config.skip is not None:
        entries.append(Entry("skip", 1, 0.5, config.skip[1]))
    for layer in sorted(config.dc_layers):
        entries += [Entry("dc_read", heads, 1.0, layer), Entry("dc_write", heads, 0.0, layer)]
    late = [e for e in entries if e.layer >= split]
    return [[e for e in entries if e not in late], late]


def _is_mudd(config: CurrentBestConfig, layer: int) -> bool:
    return config.mudd and layer == config.num_layers - 1


def _needs_first_injection(config: CurrentBestConfig) -> bool:
    """The bigram enters before layer 0 whatever layer 0 does."""
    usual = config.attends(0) and not _is_mudd(config, 0)
    return config.bigram_rows > 0 and not usual


def mudd_entries(config: CurrentBestConfig) -> list[Entry]:
    """Coefficients of the last block: sources of values and stream, value gates, residuals."""
    sources = ["start", *(["snapshot"] if config.snapshot_layer is not None else []), "stream"]
    entries = [Entry(f"value_{source}", 1, 0.0) for source in sources]
    entries += [Entry(f"stream_{source}", 1, 0.0) for source in sources]
    if config.value_gates and config.num_layers - 1 in config.value_embed_layers:
        halves = 2 if config.num_heads % 2 == 0 else 1
        entries.append(Entry("table", halves, 2.0))
    residual = math.sqrt(config.residual_scale)
    entries += [Entry("keep", 1, residual), Entry("add", 1, 1.0)]
    if config.x0_injection:
        entries.append(Entry("x0", 1, 0.0))
    if config.bigram_rows:
        entries.append(Entry("bigram", 1, 0.05))
    return [*entries, Entry("mlp_keep", 1, residual), Entry("mlp_add", 1, 1.0)]


def hidden_width(config: CurrentBestConfig, width: int) -> int | None:
    """Of an MLP that computes coefficients; None where they are constants."""
    return width if config.gates_per_token else None


def head_entries(config: CurrentBestConfig) -> list[Entry]:
    """Coefficients of what is added to the head's input, the last block's own input among them."""
    entries = [Entry("start", 1, 0.0), Entry("entry", 1, 0.0)]
    if config.snapshot_layer is not None:
        entries.append(Entry("snapshot", 1, -config.backout))
    if config.value_embed_layers:
        entries.append(Entry("table", 1, 0.0))
    if config.skip is not None:
        entries.append(Entry("skip", 1, 0.0))
    return entries
