"""NSA as its equations read, one position and head at a time, from weights by name: what the model
is held against.

Reference: arXiv 2502.11089, sections 3.2 and 3.3, with indices that count from 0.
T sequence, D model_dim, H query heads, Hk key heads, K head_dim, W compressed blocks, l tokens of
one, n blocks of a query, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_nsa.config import NSAConfig

Weights = dict[str, Tensor]
Reads = list[list[set[int]]]  # [Hk][T]: the blocks that each position reads


def logits(weights: Weights, config: NSAConfig, tokens: Tensor) -> Tensor:
    """(T, V) of tokens (T,)."""
    x = torch.stack([norm(weights["embedding.weight"][token]) for token in tokens.tolist()])
    for layer in range(config.num_layers):
        start = f"blocks.{layer}."
        own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
        mixer = {n.removeprefix("attention."): w for n, w in own.items()}
        attended, _ = mix(mixer, config, norm(x))
        hidden = F.relu(norm(x + attended) @ own["mlp.up.weight"].T)
        x = x + attended + (hidden * hidden) @ own["mlp.down.weight"].T
    return norm(x) @ weights["head.weight"].T


def mix(weights: Weights, config: NSAConfig, x: Tensor) -> tuple[Tensor, Reads]:
    """What the three branches of one layer add for x (T, D), and the blocks that they select."""
    num_heads, num_kv = config.num_heads, config.num_kv_heads
    width, grid, length = config.model_dim // num_heads, config.grid, len(x)
    rows = list(weights["qkv.weight"].split(width))  # one head each
    queries = [x @ rows.pop(0).T for _ in range(num_heads)]
    pairs = [[x @ rows.pop(0).T for _ in range(num_kv)] for _ in range(2 * config.num_branches)]
    pairs = pairs * (3 // config.num_branches)
    gates = torch.sigmoid(x @ weights["gate_weight"].T + weights["gate_bias"])  # (T, 3 H)

    def scaled(head: Tensor) -> Tensor:
        return norm(head) if config.qk_norm else head

    turned = [scaled(turn(q, 1, config)) for q in queries]
    columns: list[Tensor] = []
    reads: Reads = []
    for kv in range(num_kv):
        raw = turn(pairs[4][kv], 1, config) if config.cmp_rope == "post" else pairs[4][kv]
        keys = compress(weights, "compress_keys.", config, raw)
        if config.cmp_rope == "block_start":
            keys = turn(keys, grid.stride, config)
        keys = scaled(keys)
        values = compress(weights, "compress_values.", config, pairs[5][kv])
        own = range(kv * num_heads // num_kv, (kv + 1) * num_heads // num_kv)
        compressed = [queries[h] if config.cmp_rope == "none" else turned[h] for h in own]
        if config.cmp_rope == "none":
            compressed = [scaled(q) for q in compressed]
        shares: list[list[Tensor]] = [[] for _ in range(length)]
        outputs = {h: [] for h in own}
        for q, h in zip(compressed, own, strict=True):
            for t in range(length):
                ended = [i for i in range(len(keys)) if i * grid.stride + grid.window - 1 <= t]
                p = (keys[ended] @ q[t] / math.sqrt(width)).softmax(0)
                shares[t].append(p)
                outputs[h].append([p @ values[ended]])  # zero, where no block has ended
        reads.append([choose(config, shares[t], t) for t in range(length)])
        near = [
            range(max(0, t - (config.sliding_window_size or 0) + 1), t + 1) for t in range(length)
        ]
        inside = [
            [u for u in range(t + 1) if u // grid.block in reads[kv][t]] for t in range(length)
        ]
        for branch, places in ((0, inside), (2, near)):
            k, v = scaled(turn(pairs[branch][kv], 1, config)), pairs[branch + 1][kv]
            for h in own:
                for t in range(length):
                    seen = list(places[t])
                    p = (k[seen] @ turned[h][t] / math.sqrt(width)).softmax(0)
                    outputs[h][t].append(p @ v[seen])
        for h in own:
            columns.append(
                torch.stack([
                    sum(gates[t, 3 * h + i] * part for i, part in enumerate(outputs[h][t]))
                    for t in range(length)
                ])
            )  # fmt: skip
    return torch.cat(columns, dim=1) @ weights["out_proj.weight"].T, reads


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turn(head: Tensor, step: int, config: NSAConfig) -> Tensor:
    """Rotates row i of a head (rows, K) to position i * step; channels i and i + K / 2 are a pair.
    Angles are float32, as in the model, whatever the weights are."""
    half = head.shape[1] // 2
    rates = config.rope_theta ** (-torch.arange(0, 2 * half, 2).float() / (2 * half))
    angles = (step * torch.arange(len(head))).float()[:, None] * rates
    first, second = head[:, :half], head[:, half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=1)


def compress(weights: Weights, prefix: str, config: NSAConfig, u: Tensor) -> Tensor:
    """phi of every complete block of u (T, K), cut out one by one (eq. 7) -> (W, K)."""
    grid, mode = config.grid, config.compress_mode
    blocks = []
    for start in range(0, len(u) - grid.window + 1, grid.stride):
        block = u[start : start + grid.window]  # (l, K)
        mean = block.mean(0)
        if mode == "mean":
            blocks.append(mean)
            continue
        y = weights[prefix + "up"] @ (block + weights[prefix + "positions"]).flatten()
        if mode == "mlp":
            y = F.gelu(y + weights[prefix + "up_bias"])
            y = weights[prefix + "down"] @ y + weights[prefix + "down_bias"]
            y = y + mean if config.compress_residual_mean else y
        blocks.append(y)
    return torch.stack(blocks) if blocks else u[:0]


def importance(config: NSAConfig, p: Tensor, j: int) -> float:
    """Eq. 9 for block j of one query, from the compressed attention (visible blocks,) of a head."""
    grid = config.grid
    total = 0.0
    for m in range(grid.block // grid.stride):
        for n in range(grid.window // grid.stride):
            i = grid.block // grid.stride * j + m - n
            if 0 <= i < len(p):
                total += float(p[i].detach())
    return total


def choose(config: NSAConfig, shares: list[Tensor], t: int) -> set[int]:
    """The n blocks of position t with the highest scores, forced ones first, ties to the lower."""
    grid = config.grid
    current = t // grid.block

    def rank(j: int) -> tuple[bool, float, int]:
        forced = j < grid.init_blocks or j > current - grid.local_blocks
        return not forced, -sum(importance(config, p, j) for p in shares), j

    return set(sorted(range(current + 1), key=rank)[: grid.num_selected])
