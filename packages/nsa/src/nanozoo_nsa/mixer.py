"""The NSA mixer: three attentions over a sequence, each by its own keys, and a gate for each.

A mixer is built from an NSAConfig, reads its width, heads, blocks, compression and gates, and
ignores vocabulary, depth and MLP. Any model may use it: like H-Net's mixers it has `out_proj`, the
Linear that writes to the residual stream, `forward(x, state, lengths, documents)`,
`empty_state(batch_size, max_length)`, `step(x, state, rows)` and `flops(length)`. What a position
reads depends on itself and the positions before it alone, so right padding changes nothing.

B batch, L sequence, D model_dim, H query heads, Hk key and value heads, G = H / Hk, K head_dim, R
rows, F chosen blocks of a query, n all blocks of a query, W compressed blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nanozoo_core.nn.control import init_input_matrix
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import apply_rotary, rotary_angles
from nanozoo_nsa.compressed.attention import compressed_attention
from nanozoo_nsa.compressed.compressor import Compressor
from nanozoo_nsa.config import NSAConfig
from nanozoo_nsa.documents import by_document
from nanozoo_nsa.selected.attention import selected_attention
from nanozoo_nsa.selected.choice import all_blocks
from nanozoo_nsa.state import NSAState, attend_step
from nanozoo_nsa.window.attention import window_attention


class Routing(NamedTuple):
    """What the positions of a sequence read."""

    gates: Tensor  # (B, L, H, 3): compressed, selected, window; in (0, 1)
    chosen: Tensor  # (B, Hk, L, F) int32: blocks that scores chose, -1 where none was left


class Heads(NamedTuple):
    """Queries, keys and values of the branches, turned to their positions."""

    q: Tensor  # (B, Hk, L, G, K)
    q_compressed: Tensor  # (B, Hk, L, G, K): q, without positions where compressed keys have none
    selected: tuple[Tensor, Tensor]  # (B, Hk, L, K) each
    window: tuple[Tensor, Tensor]
    raw: tuple[Tensor, Tensor]  # what is compressed


class NSAMixer(nn.Module):
    """y = W_o sum over branches of gate * attention, from x of any length."""

    def __init__(self, config: NSAConfig) -> None:
        super().__init__()
        assert config.sliding_window_size is not None
        self.config, self.grid = config, config.grid
        self.head_dim, self.num_kv_heads = config.head_dim, config.num_kv_heads
        self.num_heads, self.window_size = config.num_heads, config.sliding_window_size
        kv_dim = config.num_kv_heads * config.head_dim
        # Selected, window, compressed: with shared_kv the first pair alone, laid out as the
        # control's attention.
        self.split = (config.model_dim, *[kv_dim] * (2 * config.num_branches))
        self.qkv = nn.Linear(config.model_dim, sum(self.split), bias=False)
        self.qkv.weight.muon_split = self.split  # type: ignore[attr-defined]
        self.compress_keys, self.compress_values = Compressor(config), Compressor(config)
        self.gate_weight = nn.Parameter(torch.empty(3 * config.num_heads, config.model_dim))
        self.gate_bias = nn.Parameter(torch.empty(3 * config.num_heads))
        self.out_proj = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        qkv                 U(+-sqrt(3) * 0.5 / sqrt(fan_in)), the control's
        out_proj            0
        gate_weight, _bias  0, gate_bias_init: gates start the same for all tokens
        """
        init_input_matrix(self.qkv.weight)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.gate_weight)
        self.gate_bias.copy_(torch.tensor(self.config.gate_bias_init).repeat(self.num_heads))

    # -- the whole sequence -----------------------------------------------------------------------

    def forward(
        self, x: Tensor, state: NSAState | None = None, lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, L, D) -> (B, L, D).

        Args:
            state: an empty one, in which to leave what lies behind each row's end.
            lengths: (B,) positions that are not right padding, for `state`; None is all.
            documents: (B, L) numbers; each run of equal ones is read alone, from position 0.
        """
        return self.mix(x, state, lengths, documents)[0]

    def mix(
        self, x: Tensor, state: NSAState | None = None, lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:  # fmt: skip
        """As `forward`, and what was read. Blocks chosen are counted from a document's start."""
        if documents is not None:
            if state is not None:
                raise ValueError("a decoding state holds one document; leave out documents")
            gates = self.gates(x)
            heads, chosen = by_document(lambda part: self._attend(part)[:2], x, documents)
            return self.out_proj(_gated_sum(gates, *heads)), Routing(gates, chosen)
        branches, chosen, kept = self._attend(x)
        gates = self.gates(x)
        if state is not None:
            state.fill(kept, lengths)
        return self.out_proj(_gated_sum(gates, *branches)), Routing(gates, chosen)

    def gates(self, x: Tensor) -> Tensor:
        """(..., H, 3) of x (..., D): each in (0, 1), not normalised over the branches."""
        gates = F.linear(x, self.gate_weight, self.gate_bias).sigmoid()
        return gates.unflatten(-1, (self.num_heads, 3))

    def _attend(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        """The three attentions (B, L, H, K), the chosen blocks, and what decoding keeps."""
        heads = self.project(x, torch.arange(x.shape[1], device=x.device))
        keys, values = self.compress(*heads.raw)
        compressed, chosen = compressed_attention(
            heads.q_compressed, keys, values, self.grid, self.config.nsa_impl
        )
        selected = selected_attention(
            heads.q, *heads.selected, chosen, self.grid, self.config.nsa_impl
        )
        window = window_attention(
            heads.q, *heads.window, self.window_size, self.grid, self.config.nsa_impl
        )
        branches = (_join(compressed), _join(selected), _join(window))
        return branches, chosen, (*heads.selected, *heads.window, *heads.raw, keys, values)

    def project(self, x: Tensor, positions: Tensor) -> Heads:
        """Queries, keys and values of x (B, L, D) at `positions`, (L,) or (B, L)."""
        q, *pairs = self.qkv(x).split(self.split, dim=-1)
        q = q.unflatten(-1, (self.num_kv_heads, -1, self.head_dim)).transpose(1, 2)
        pairs = [pair.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for pair in pairs]
        if self.config.shared_kv:
            pairs = pairs * 3
        k_selected, v_selected, k_window, v_window, k_raw, v_raw = pairs
        angles = rotary_angles(positions, self.head_dim, base=self.config.rope_theta)
        k_selected = self._norm(apply_rotary(k_selected, *angles))
        if self.config.shared_kv:
            k_window = k_selected
        else:
            k_window = self._norm(apply_rotary(k_window, *angles))
        if self.config.cmp_rope == "post":
            k_raw = apply_rotary(k_raw, *angles)
        # One angle for the heads of a group: (B or 1, 1, L, 1, K / 2).
        cos, sin = (a.reshape(-1, 1, q.shape[2], 1, a.shape[-1]) for a in angles)
        turned = self._norm(apply_rotary(q, cos, sin))  # (B, Hk, L, G, K)
        return Heads(
            q=turned,
            q_compressed=self._norm(q) if self.config.cmp_rope == "none" else turned,
            selected=(k_selected, v_selected),
            window=(k_window, v_window),
            raw=(k_raw, v_raw),
        )

    def compress(self, k: Tensor, v: Tensor, first: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of the complete blocks in k, v (B, Hk, L, K) -> (B, Hk, W, K) each.

        Args: first: number of the first block, an int or one per row, (B, 1).
        """
        keys = self.compress_keys(k)
        if self.config.cmp_rope == "block_start":
            blocks = torch.arange(keys.shape[2], device=k.device) + first
            angles = rotary_angles(
                blocks * self.grid.stride, self.head_dim, base=self.config.rope_theta
            )
            keys = apply_rotary(keys, *angles)
        return self._norm(keys), self.compress_values(v)

    def _norm(self, x: Tensor) -> Tensor:
        return rms_norm(x) if self.config.qk_norm else x

    # -- one position at a time -------------------------------------------------------------------

    def empty_state(self, batch_size: int, max_length: int) -> NSAState:
        """A decoding state with room for `max_length` positions per row, which grows."""
        weight = self.out_proj.weight
        return NSAState(
            self.grid,
            self.window_size,
            batch_size,
            max_length,
            self.num_kv_heads,
            self.head_dim,
            device=weight.device,
            dtype=weight.dtype,
        )

    @torch.no_grad()
    def step(self, x: Tensor, state: NSAState, rows: Tensor | None = None) -> Tensor:
        """One position, (R, D) -> (R, D), of all rows or of `rows` (R,)."""
        if rows is None:
            rows = torch.arange(x.shape[0], device=x.device)
        positions = state.lengths[rows]
        heads = self.project(x[:, None], positions[:, None])
        state.append(rows, heads.selected, heads.window, heads.raw)
        ended = state.lengths[rows] - self.grid.window
        complete = rows[(ended >= 0) & (ended % self.grid.stride == 0)]
        if len(complete):
            block = (state.lengths[complete] - self.grid.window) // self.grid.stride
            pair = self.compress(*state.last_window(complete), first=block[:, None])
            state.append_compressed(complete, block, pair)
        branches = attend_step(state, rows, heads.q[:, :, 0], heads.q_compressed[:, :, 0])
        gates = self.gates(x)[:, None]
        return self.out_proj(_gated_sum(gates, *(_join(b[:, :, None]) for b in branches)))[:, 0]

    # -- accounting -------------------------------------------------------------------------------

    def blocks(self, chosen: Tensor) -> Tensor:
        """(..., L, n) int32: forced and chosen blocks (..., L, F) of each position."""
        return all_blocks(chosen, torch.arange(chosen.shape[-2], device=chosen.device), self.grid)

    def flops(self, length: Tensor) -> Tensor:
        """Of the forward pass per position, other than those of Linear weights: gates, compression,
        and scores and outputs over all compressed blocks, n whole blocks and the whole window, none
        beyond the sequence."""
        grid, width = self.grid, self.num_heads * self.head_dim
        compressed = ((length - grid.window) / grid.stride + 1).clamp(min=0)
        selected = length.clamp(max=grid.num_selected * grid.block)
        keys = compressed + selected + length.clamp(max=self.window_size)
        phi = sum(
            2 * p.numel()
            for module in (self.compress_keys, self.compress_values)
            for p in module.parameters()
            if p.ndim == 2 and p is not getattr(module, "positions", None)
        )
        return (
            4 * width * keys + 2 * self.gate_weight.numel() + self.num_kv_heads * phi / grid.stride
        )


def _join(x: Tensor) -> Tensor:
    """(B, Hk, L, G, K) -> (B, L, H, K)."""
    return x.transpose(1, 2).flatten(2, 3)


def _gated_sum(gates: Tensor, *branches: Tensor) -> Tensor:
    """sum of gates (B, L, H, 3) * branches (B, L, H, K) -> (B, L, H K)."""
    if torch.compiler.is_compiling():
        parts = (gates[..., i, None] * branch for i, branch in enumerate(branches))
        return sum(parts, torch.zeros_like(branches[0])).flatten(2)
    return _GatedSum.apply(gates, *branches)


class _GatedSum(torch.autograd.Function):
    """By hand: half of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, *branches: Tensor) -> Tensor:
        ctx.save_for_backward(gates, *branches)
        y = branches[0] * gates[..., 0, None]
        for i, branch in enumerate(branches[1:], start=1):
            y.addcmul_(branch, gates[..., i, None])
        return y.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        gates, *branches = ctx.saved_tensors
        grad = grad.unflatten(-1, (gates.shape[-2], -1))
        d_gates = torch.stack([torch.linalg.vecdot(grad, branch) for branch in branches], dim=-1)
        return d_gates, *(grad * gates[..., i, None] for i in range(len(branches)))


def nsa_roles(model: nn.Module) -> dict[str, str]:
    """Roles of the gates and positions of every NSA mixer in `model`: AdamW's, without decay, as
    they start at zero and have no directions to balance. Their shapes would make them matrices."""
    roles: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, NSAMixer):
            roles |= {f"{path}.gate_weight": "vector", f"{path}.gate_bias": "vector"}
        elif isinstance(module, Compressor) and module.mode != "mean":
            roles[f"{path}.positions"] = "vector"
    return {name.removeprefix("."): role for name, role in roles.items()}
