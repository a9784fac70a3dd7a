"""NSA as its equations read, one position and head at a time: what the fast forms are held against.

Reference: arXiv 2502.11089, sections 3.2 and 3.3, with indices that count from 0.
B batch, T sequence, D model_dim, Hk key heads, K head_dim, W compressed blocks, l tokens of one, n
blocks of a query.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_nsa.compressed.compressor import Compressor
from nanozoo_nsa.mixer import NSAMixer


def compress_reference(phi: Compressor, u: Tensor) -> Tensor:
    """phi of every complete block of u (T, K), cut out one by one (eq. 7) -> (W, K)."""
    blocks = []
    for start in range(0, len(u) - phi.window + 1, phi.stride):
        block = u[start : start + phi.window]  # (l, K)
        if phi.mode == "mean":
            blocks.append(block.mean(0))
            continue
        y = phi.up @ (block + phi.positions).flatten()
        if phi.mode == "mlp":
            y = phi.down @ F.gelu(y + phi.up_bias) + phi.down_bias
            y = y + block.mean(0) if phi.adds_mean else y
        blocks.append(y)
    return torch.stack(blocks) if blocks else u[:0]


def importance_reference(probs: Tensor, window: int, stride: int, block: int, j: int) -> float:
    """Eq. 9 for block j of one query, from the compressed attention (visible blocks,) of a head."""
    total = 0.0
    for m in range(block // stride):
        for n in range(window // stride):
            i = block // stride * j + m - n
            if 0 <= i < len(probs):
                total += float(probs[i])
    return total


def mix_reference(mixer: NSAMixer, x: Tensor) -> tuple[Tensor, list[list[list[set[int]]]]]:
    """Output (B, T, D) for x (B, T, D), and the blocks that each row's key heads read at each
    position, [B][Hk][T]."""
    config, grid = mixer.config, mixer.grid
    length, width = x.shape[1], mixer.head_dim
    group = config.num_heads // config.num_kv_heads
    heads = mixer.project(x, torch.arange(length))
    gates = mixer.gates(x)
    outputs: list[Tensor] = []
    reads: list[list[list[set[int]]]] = []
    for b in range(x.shape[0]):
        mixed = torch.zeros(length, config.num_heads, width, dtype=x.dtype)
        reads.append([])
        for kv in range(config.num_kv_heads):
            keys = compress_reference(mixer.compress_keys, heads.raw[0][b, kv])
            keys = turn_reference(mixer, keys)
            values = compress_reference(mixer.compress_values, heads.raw[1][b, kv])
            reads[b].append([])
            for t in range(length):
                probs, compressed = [], []
                visible = max(0, (t + 1 - grid.window) // grid.stride + 1)
                for g in range(group):
                    q = heads.q_compressed[b, kv, t, g]
                    p = (keys[:visible] @ q / math.sqrt(width)).softmax(0)
                    probs.append(p)
                    compressed.append(p @ values[:visible] if visible else torch.zeros_like(q))
                chosen = choose_reference(mixer, probs, t)
                reads[b][kv].append(chosen)
                for g in range(group):
                    q = heads.q[b, kv, t, g]
                    inside = [u for u in range(t + 1) if u // grid.block in chosen]
                    near = list(range(max(0, t - mixer.window_size + 1), t + 1))
                    parts = [compressed[g]]
                    for (k, v), places in ((heads.selected, inside), (heads.window, near)):
                        p = (k[b, kv, places] @ q / math.sqrt(width)).softmax(0)
                        parts.append(p @ v[b, kv, places])
                    head = kv * group + g
                    mixed[t, head] = sum(gates[b, t, head, i] * parts[i] for i in range(3))
        outputs.append(mixed.flatten(1))
    return mixer.out_proj(torch.stack(outputs)), reads


def choose_reference(mixer: NSAMixer, probs: list[Tensor], t: int) -> set[int]:
    """The n blocks of position t with the highest scores, forced ones first, ties to the lower."""
    grid, current = mixer.grid, t // mixer.grid.block

    def rank(j: int) -> tuple[bool, float, int]:
        forced = j < grid.init_blocks or j > current - grid.local_blocks
        score = sum(importance_reference(p, grid.window, grid.stride, grid.block, j) for p in probs)
        return not forced, -score, j

    return set(sorted(range(current + 1), key=rank)[: grid.num_selected])


def turn_reference(mixer: NSAMixer, keys: Tensor) -> Tensor:
    """Position and norm of compressed keys (W, K)."""
    config = mixer.config
    if config.cmp_rope == "block_start":
        half = keys.shape[1] // 2
        rates = config.rope_theta ** (-torch.arange(half) / half)
        angles = torch.arange(len(keys))[:, None] * mixer.grid.stride * rates  # (W, K / 2)
        first, second = keys[:, :half], keys[:, half:]
        cos, sin = angles.cos(), angles.sin()
        keys = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=1)
    return keys / (keys.square().mean(-1, keepdim=True) + 1e-6).sqrt() if config.qk_norm else keys
