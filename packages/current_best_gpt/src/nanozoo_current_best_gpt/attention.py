"""Windowed attention with QK-norm and half rotary positions, and the record's additions to it:
interleaved pairs of heads, offset keys, exclusive and gated heads, and a mix across heads.

B batch, T sequence, S keys, D model_dim, H heads, K head_dim, R rotary_dim, C block length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.nn.attention import attend, sdpa
from nanozoo_core.nn.control import init_input_matrix
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles, apply_rotary
from nanozoo_current_best_gpt.cache import RingCache
from nanozoo_current_best_gpt.coefficients import Named, add_gain
from nanozoo_current_best_gpt.config import VALUE_GATE_DIMS, CurrentBestConfig

EPS = 2.0**-23  # of float32: the embedding's entries are about 0.005, which 1e-6 would damp


@dataclass(frozen=True)
class View:
    """What holds for all layers of a forward pass: positions, windows, documents."""

    before: Tensor  # (B, T): the token before each, itself where there is none
    angles: Angles  # of position t
    paired_angles: tuple[Angles, Angles]  # of 2 t and of 2 t + 1
    windows: dict[str, int]  # by letter of the pattern
    scale: float  # of the scores
    starts: Tensor  # (B, T) bool: nothing stands before this token
    documents: Tensor | None  # (B, T), where attention keeps within them
    cache: RingCache | None = None


class Attention(nn.Module):
    """Reads a normalised stream a (B, T, D); returns what its heads found, projected.

    `value_gate` weighs the token's value embedding by the stream and the embedding themselves;
    without one it is added as it is.
    """

    def __init__(self, config: CurrentBestConfig, layer: int, *, gates_table: bool) -> None:
        super().__init__()
        dim, heads = config.model_dim, config.num_heads
        self.layer, self.num_heads, self.head_dim = layer, heads, config.head_dim
        self.letter = config.window_pattern[layer]
        self.qk_norm = config.qk_norm
        self.is_paired = layer in config.paired_layers
        self.shifts_keys = config.shifts_keys(layer)
        self.dc_window = config.dc_window if layer in config.dc_layers else 0
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        rows = config.qk_head_group * config.head_dim or dim
        split = (rows,) * (2 * dim // rows) + (dim,)
        self.qkv.weight.muon_split = split  # type: ignore[attr-defined]
        self.out = nn.Linear(dim, dim, bias=False)
        self.out_init = config.attn_out_init
        # Gains of what comes in and goes out; QK-norm leaves only the values to the first.
        add_gain(self, "gains", 2, learned=config.learned_gains)
        self.value_gate = (
            nn.Parameter(torch.empty(heads, 2 * VALUE_GATE_DIMS)) if gates_table else None
        )
        self.init_weights()

    gains: Tensor  # (2,)

    def init_weights(self) -> None:
        """
        qkv          U(+-sqrt(3) * 0.5 / sqrt(fan_in))
        out          the same times attn_out_init / 0.5
        gains        0.5, 1
        value_gate   0: a gate of 1
        """
        init_input_matrix(self.qkv.weight)
        init_input_matrix(self.out.weight)
        with torch.no_grad():
            self.out.weight.mul_(self.out_init / 0.5)
            self.gains.copy_(torch.tensor([0.5, 1.0]))
        if self.value_gate is not None:
            nn.init.zeros_(self.value_gate)

    def forward(
        self,
        a: Tensor,
        view: View,
        gates: Named,
        *,
        table: Tensor | None = None,
        extra_value: Tensor | None = None,
    ) -> Tensor:
        """Args:
        table: (B, T, D) the token's value embedding.
        extra_value: (B, T, D) added to the values as it is.
        """
        enter, leave = self.gains.unbind()
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in self.qkv(enter * a).chunk(3, -1))
        if table is not None:
            v = v + self._gate_table(a, table)
        if extra_value is not None:
            v = v + extra_value.unflatten(-1, (self.num_heads, -1))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, K)
        if self.qk_norm:
            q, k = rms_norm(q, EPS), rms_norm(k, EPS)
        # The library divides the scores by sqrt(K).
        q = self._turn(q, view) * (view.scale * math.sqrt(self.head_dim))
        k = self._turn(k, view)
        y = self._read(q, k, v, view, gates)  # (B, H, T, K)
        if "xsa" in gates:
            y = exclude_own(y, v, by_head(gates["xsa"]).tanh())
        if "attention" in gates:
            y = y * by_head(gates["attention"])
        return self.out(leave * y.transpose(1, 2).flatten(2))

    def _gate_table(self, a: Tensor, table: Tensor) -> Tensor:
        if self.value_gate is None:
            return table.unflatten(-1, (self.num_heads, -1))
        seen = torch.cat([a[..., :VALUE_GATE_DIMS], table[..., :VALUE_GATE_DIMS]], dim=-1)
        gate = 2 * torch.sigmoid(F.linear(seen, self.value_gate))  # (B, T, H)
        return gate[..., None] * table.unflatten(-1, (self.num_heads, -1))

    def _turn(self, x: Tensor, view: View) -> Tensor:
        if not self.is_paired:
            return apply_rotary(x, *view.angles)
        # In a pair's interleaved sequence even heads stand at 2 t and odd ones at 2 t + 1.
        even, odd = (
            apply_rotary(x[:, parity::2], *view.paired_angles[parity]) for parity in (0, 1)
        )
        return torch.stack([even, odd], dim=2).flatten(1, 2)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, view: View, gates: Named) -> Tensor:
        window = view.windows[self.letter]
        if view.cache is not None:
            view.cache.write(self.layer, k, v)
            if not view.cache.is_first:
                return self._read_cached(q, view.cache, window, gates)
        if self.shifts_keys:
            k = offset_keys(k, view.starts)
        if self.is_paired:
            documents = view.documents
            if documents is not None:
                documents = documents.repeat_interleave(2, dim=1)
            pairs = (interleave(x) for x in (q, k, v))
            return separate(attend(*pairs, window=window, documents=documents))
        y = attend(q, k, v, window=window, documents=view.documents)
        if self.dc_window:
            y = y + self._mix_heads(q, k, v, gates, view.documents)
        return y

    def _mix_heads(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Named, documents: Tensor | None
    ) -> Tensor:
        read, write = self._dc_weights(gates)
        return mix_heads(q, k, v, read, write, window=self.dc_window, documents=documents)

    def _dc_weights(self, gates: Named) -> Angles:
        """Weights (B, T, H) by which heads enter the mix, normalised over them, and take it."""
        return rms_norm(gates["dc_read"]), gates["dc_write"]

    def _read_cached(self, q: Tensor, cache: RingCache, window: int, gates: Named) -> Tensor:
        k, v = cache.read(self.layer, shifted=self.shifts_keys)  # (B, H, S, K)
        if self.is_paired:
            mask = cache.mask(self.layer, window, paired=True)
            return separate(sdpa(interleave(q), interleave(k), interleave(v), mask=mask))
        y = sdpa(q, k, v, mask=cache.mask(self.layer, window))
        if self.dc_window:
            mask = cache.mask(self.layer, self.dc_window - 1)  # (B, 1, T, S)
            y = y + mix_masked(q, k, v, *self._dc_weights(gates), mask)
        return y


def by_head(gate: Tensor) -> Tensor:
    """(B, H, T, 1) of a gate (B, T, H)."""
    return gate.transpose(1, 2)[..., None]


def interleave(x: Tensor) -> Tensor:
    """(B, H/2, 2T, K) of x (B, H, T, K): row 2t is head j, row 2t + 1 is head j + H/2."""
    first, second = x.chunk(2, dim=1)
    return torch.stack([first, second], dim=3).flatten(2, 3)


def separate(x: Tensor) -> Tensor:
    """The inverse of `interleave`."""
    return torch.cat(x.unflatten(2, (-1, 2)).unbind(3), dim=1)


def offset_keys(k: Tensor, starts: Tensor) -> Tensor:
    """k (B, H, T, K) with the second half of its channels from the token before; where there is
    none (`starts`, (B, T)) they stay."""
    rotated, still = k.chunk(2, dim=-1)
    before = torch.cat([still[:, :, :1], still[:, :, :-1]], dim=2)
    return torch.cat([rotated, torch.where(starts[:, None, :, None], still, before)], dim=-1)


def exclude_own(y: Tensor, v: Tensor, share: Tensor) -> Tensor:
    """y less `share` of its component along v, per head (arXiv 2603.09078)."""
    along = (y * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True).clamp(min=1e-8)
    return y - share * along * v


def mix_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    read: Tensor,
    write: Tensor,
    *,
    window: int,
    documents: Tensor | None = None,
) -> Tensor:
    """write_h A v_h, where A is the sum over heads of read_h softmax(q_h k_h^T / sqrt(K)) over the
    last `window` keys.

    Queries are taken in blocks of `window`, each with its own and the block of keys before.
    Args: q, k, v (B, H, T, K); read, write (B, T, H). Returns: (B, H, T, K).
    Reference: the post-composition of arXiv 2405.08553, as the record has it.
    """
    batch, _, length, _ = q.shape
    block = min(window, length)
    count = -(-length // block)
    end = count * block - length
    steps = torch.arange(2 * block, device=q.device)
    behind = steps[block:, None] - steps  # (C, 2 C): query minus key position
    mask = ((behind >= 0) & (behind < window)).repeat(count, 1, 1)
    mask[0, :, :block] = False  # nothing stands before the first block
    mask = mask.repeat(batch, 1, 1, 1)  # (B, N, C, 2 C)
    if documents is not None:
        padded = F.pad(documents, (block, end)).unflatten(1, (count + 1, block))
        keys = torch.cat([padded[:, :-1], padded[:, 1:]], dim=2)
        mask = mask & (padded[:, 1:, :, None] == keys[:, :, None, :])

    def blocks(x: Tensor) -> Tensor:  # (B, H, T, .) to (B N, H, C, .)
        x = F.pad(x, (0, 0, 0, end)).unflatten(2, (count, block))
        return x.transpose(1, 2).flatten(0, 1)

    def pairs(x: Tensor) -> Tensor:  # (B, H, T, K) to (B N, H, 2 C, K)
        x = F.pad(x, (0, 0, block, end)).unflatten(2, (count + 1, block)).transpose(1, 2)
        return torch.cat([x[:, :-1], x[:, 1:]], dim=3).flatten(0, 1)

    def weights(w: Tensor) -> Tensor:  # (B, T, H) to (B N, C, H)
        return F.pad(w, (0, 0, 0, end)).unflatten(1, (count, block)).flatten(0, 1)

    keys_seen = mask.flatten(0, 1)[:, None]
    out = mix_masked(blocks(q), pairs(k), pairs(v), weights(read), weights(write), keys_seen)
    return out.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def mix_masked(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, write: Tensor, mask: Tensor
) -> Tensor:
    """`mix_heads` with the keys of each query given by a mask (B, 1, T, S)."""
    precision = wide_dtype(q)
    scores = (q @ k.mT).to(precision) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    probs = scores.masked_fill(~mask, -1e30).softmax(-1)
    mixed = (by_head(read).to(precision) * probs).sum(1, keepdim=True)  # (B, 1, T, S)
    return by_head(write) * (mixed.to(v.dtype) @ v)
