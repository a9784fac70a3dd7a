"""Block diffusion: a window cut into blocks, each of them masked diffusion given all clean blocks
before it (Arriola et al. 2025, arXiv 2503.09573).

Block b holds the positions b C + 1 .. (b + 1) C, and the first one the context at position 0 too,
which is never masked. One block is the plain model, blocks of one token a next-token model.

B windows, L scored tokens, S = L + 1 positions, C block size, N blocks, M positions of the clean
text that training reads beside the noised one, H heads, K head_dim, T positions that are seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanozoo_core.contract import Batch
from nanozoo_core.diffusion.dit import DiT, locality_bias
from nanozoo_core.diffusion.sampling import NoiseSource, WindowNoise, draw_window_noise
from nanozoo_core.nn.attention import sdpa


@dataclass(frozen=True)
class CausalView:
    """Tokens of one text, each of which sees its own block and those before it, as they stand."""

    positions: Tensor  # (S,)
    bias: Tensor  # (S, S), or (1, H, S, S)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, mask=self.bias.to(q.dtype))


@dataclass(frozen=True)
class TrainingView:
    """All noised blocks and, behind them, all clean ones but the last, which nothing would see. A
    noised token sees its own block and the clean ones before it; a clean token the clean ones up to
    its own. Reference: arXiv 2503.09573, section 3.2 and figure 3."""

    positions: Tensor  # (S + M,)
    noised_bias: Tensor  # (S, S + M), or (1, H, S, S + M)
    clean_bias: Tensor  # (M, M), or (1, H, M, M)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Two products: no clean token sees a noised one, which is a quarter of the square.
        num_noised = self.noised_bias.shape[-2]
        noised = sdpa(q[:, :, :num_noised], k, v, mask=self.noised_bias.to(q.dtype))
        clean = [x[:, :, num_noised:] for x in (q, k, v)]
        return torch.cat([noised, sdpa(*clean, mask=self.clean_bias.to(q.dtype))], dim=2)


class Memory:
    """Keys and values of the text whose blocks are finished, for all layers: room for `max_length`
    positions, written in place."""

    def __init__(self, net: DiT, batch_size: int, max_length: int) -> None:
        num_heads = net.embedding.embedding_dim // net.head_dim
        shape = (len(net.blocks), 2, batch_size, num_heads, max_length, net.head_dim)
        # Zeros, not empty: a masked-out NaN would still poison the weighted sum.
        like = net.embedding.weight
        self.store = torch.zeros(shape, device=like.device, dtype=like.dtype)
        self.length = 0  # of the finished text

    def join(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the finished text and, behind it, of the tokens that are being read:
        (B, H, T, K) each. What stood behind it before is gone."""
        end = self.length + k.shape[2]
        self.store[layer, :, :, :, self.length : end] = torch.stack([k, v]).to(self.store.dtype)
        keys, values = self.store[layer, :, :, :, :end].to(k.dtype)
        return keys, values


@dataclass(frozen=True)
class MemoryView:
    """Tokens that follow a finished text, which they all see; and each other, but for what `bias`
    hides where nothing is finished yet."""

    positions: Tensor  # (S,)
    memory: Memory
    bias: Tensor | None  # (S, T), or (1, H, S, T)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.memory.join(layer, k, v)
        return sdpa(q, keys, values, mask=None if self.bias is None else self.bias.to(q.dtype))


class Blocks:
    """How windows are cut; its masks are built once and kept."""

    def __init__(self, size: int, *, num_heads: int = 1, locality: float = 0.0) -> None:
        self.size, self.num_heads, self.locality = size, num_heads, locality
        self._causal: dict[torch.device, CausalView] = {}  # the longest so far, cut as needed
        self._training: dict[tuple[int, torch.device], TrainingView] = {}

    def run(self, length: int) -> int:
        """Tokens of a block in windows of `length` scored tokens."""
        return min(self.size, length)

    def number(self, length: int) -> int:
        """N for L."""
        return math.ceil(length / self.size)

    def span(self, block: int) -> tuple[int, int]:
        """First position of a block, and the one behind it in an endless window."""
        return (0 if block == 0 else block * self.size + 1), (block + 1) * self.size + 1

    def of(self, positions: Tensor) -> Tensor:
        """The blocks that hold `positions`."""
        return (positions - 1).clamp(min=0) // self.size

    def noise(self, source: NoiseSource, batch: Batch, *, stratified: bool = True) -> WindowNoise:
        """A level (B, N) for each block of each window of a batch."""
        number = self.number(batch.window.shape[1] - 1)
        return draw_window_noise(source, batch, stratified=stratified, num_levels=number)

    def bias(self, is_seen: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """What attention adds to its scores, float32: minus infinity where a key is not seen, else
        the locality between the positions of `queries` (S,) and `keys` (T,), if there is one."""
        hidden = torch.zeros(is_seen.shape, device=is_seen.device)
        hidden = hidden.masked_fill(~is_seen, -torch.inf)  # (S, T)
        near = self.nearness(queries, keys)
        return hidden if near is None else near + hidden

    def nearness(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """The locality alone, (1, H, S, T)."""
        return locality_bias(queries, self.num_heads, self.locality, keys)

    def causal_view(self, num_positions: int, device: torch.device) -> CausalView:
        kept = self._causal.get(device)
        if kept is None or len(kept.positions) < num_positions:
            positions = torch.arange(num_positions, device=device)
            block = self.of(positions)
            bias = self.bias(block <= block[:, None], positions, positions)
            self._causal[device] = kept = CausalView(positions, bias)
        bias = kept.bias[..., :num_positions, :num_positions]
        return CausalView(kept.positions[:num_positions], bias)

    def training_view(self, num_positions: int, device: torch.device) -> TrainingView:
        key = (num_positions, device)
        if key not in self._training:
            positions = torch.arange(num_positions, device=device)
            block = self.of(positions)
            clean = block[: self.span(self.number(num_positions - 1) - 1)[0]]  # (M,)
            before = positions[: len(clean)]
            both = torch.cat([positions, before])
            seen = torch.cat([block == block[:, None], clean < block[:, None]], dim=1)
            self._training[key] = TrainingView(
                both,
                self.bias(seen, positions, both),
                self.bias(clean <= clean[:, None], before, before),
            )
        return self._training[key]


@dataclass(frozen=True)
class BlockNetwork:
    """A network that reads noised windows block by block, each given the clean blocks before it:
    the blocks of a whole window in one pass."""

    net: DiT
    blocks: Blocks
    window: Tensor  # (B, S), clean

    @property
    def output_weight(self) -> Tensor:
        return self.net.output_weight

    @property
    def output_bias(self) -> Tensor:
        return self.net.output_bias

    def features(self, tokens: Tensor, time: Tensor) -> Tensor:
        """(B, S, D) for noised windows (B, S), told the `time` (B, N) of each block. Clean text is
        told 0, no noise."""
        num_positions = tokens.shape[1]
        if time.shape[1] == 1:
            return self.net.features(tokens, time[:, 0])
        view = self.blocks.training_view(num_positions, tokens.device)
        num_clean = view.clean_bias.shape[-1]
        told = time[:, self.blocks.of(view.positions[:num_positions])]  # (B, S)
        told = torch.cat([told, told.new_zeros(len(told), num_clean)], dim=1)
        both = torch.cat([tokens, self.window[:, :num_clean]], dim=1)  # (B, S + M)
        return self.net.features(both, told, view=view)[:, :num_positions]
