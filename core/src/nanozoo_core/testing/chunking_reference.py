"""A hierarchy with learned chunks as its equations say it: loops over positions, in float64.

It shares no code with any model. It reads a model's weights by their names, and autograd gives the
gradients to which a model is held. A sequence is a list of vectors; nothing is batched, padded,
packed or scanned. One document is read at a time, so that nothing can pass between two.

Reference: arXiv 2507.07955 (hierarchy), arXiv 2405.21060 (Mamba-2), arXiv 2104.09864 (rotary
positions), arXiv 2002.05202 (SwiGLU).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Sequence1d = list[Tensor]  # one vector per position


@dataclass(frozen=True)
class Sizes:
    """What the weights do not tell; a list has one value per stage."""

    layout: list[Any]
    num_heads: Sequence[int]
    rotary: Sequence[int]  # channels of a head that turn
    window: Sequence[int]  # positions to the left that attention sees; -1 is all
    ratios: Sequence[float]  # N of each chunking
    clamp: float
    eps: float
    stride: Sequence[int] | None = None  # fixed chunks of so many positions instead of a router


@dataclass
class Decisions:
    """What one chunking decided, over all texts that were read."""

    probs: list[Tensor]
    boundaries: list[bool]

    @property
    def share(self) -> float:
        return sum(self.boundaries) / len(self.boundaries)

    @property
    def mean_prob(self) -> Tensor:
        return torch.stack(self.probs).sum() / len(self.probs)


class ChunkingReference:
    """Reads texts; afterwards `decisions` holds what its chunkings decided."""

    def __init__(self, weights: Mapping[str, Tensor], sizes: Sizes) -> None:
        self.weights, self.sizes = weights, sizes
        self.decisions = [Decisions([], []) for _ in sizes.ratios]

    def logits(self, tokens: Sequence[int]) -> Sequence1d:
        """One vector of V logits per token of one document."""
        vectors = [self.weights["embedding.weight"][token] for token in tokens]
        read = self.stage("stage", self.sizes.layout, vectors, 0)
        return [self.weights["head.weight"] @ y for y in read]

    def ratio_losses(self) -> list[Tensor]:
        """R = 1 + (N F - 1)(N G - 1) / (N - 1) of each chunking: the published sum of two products,
        multiplied out."""
        return [
            1 + (n * found.share - 1) * (n * found.mean_prob - 1) / (n - 1)
            for n, found in zip(self.sizes.ratios, self.decisions, strict=True)
        ]

    # -- stages -----------------------------------------------------------------------------------

    def stage(self, name: str, layout: list[Any], x: Sequence1d, number: int) -> Sequence1d:
        """x (outer width) -> the same width."""
        outer = len(x[0])
        vector = self.weights.get(f"{name}.widen.vector")
        if vector is not None:
            x = [torch.cat([xt, vector]) for xt in x]
        if len(layout) == 1:
            y = self.network(f"{name}.network", layout[0], x, number)
            return [yt[:outer] for yt in y]

        h = self.network(f"{name}.encoder", layout[0], x, number)
        probs, starts = self.decide(name, h, number)
        self.decisions[number].probs += probs
        self.decisions[number].boundaries += starts
        firsts = [t for t, begins in enumerate(starts) if begins]
        chunks = self.stage(
            f"{name}.inner", layout[1], [self.pool(name, h, t) for t in firsts], number + 1
        )
        smoothed: Sequence1d = []
        for k, t in enumerate(firsts):
            p = probs[t] if self.sizes.stride else self.clamped(probs[t])
            before = smoothed[-1] if k else torch.zeros_like(chunks[0])
            smoothed.append(p * chunks[k] + (1 - p) * before)
        y, chunk = [], -1
        for t, begins in enumerate(starts):
            chunk += begins
            confidence = probs[t] if begins else 1 - probs[t]
            straight_through = 1 + confidence - confidence.detach()  # 1, with the slope of c
            residual = self.weights[f"{name}.residual.weight"] @ h[t]
            residual = residual + self.weights[f"{name}.residual.bias"]
            own = self.own_part(name, chunks[chunk], t - firsts[chunk])
            y.append(straight_through * smoothed[chunk] + residual + own)
        y = self.network(f"{name}.decoder", layout[2], y, number)
        return [yt[:outer] for yt in y]

    def pool(self, name: str, h: Sequence1d, first: int) -> Tensor:
        """The vector of the chunk that begins at position `first`."""
        return h[first]

    def own_part(self, name: str, chunk: Tensor, place: int) -> Tensor:
        """What the position `place` steps into a chunk gets beside the smoothed vectors."""
        return torch.zeros_like(chunk)

    def decide(self, name: str, h: Sequence1d, number: int) -> tuple[list[Tensor], list[bool]]:
        """Probability and decision for each position."""
        if self.sizes.stride is not None:
            starts = [t % self.sizes.stride[number] == 0 for t in range(len(h))]
            return [h[0].new_tensor(float(begins)) for begins in starts], starts
        query = self.weights[f"{name}.chunker.query.weight"]
        key = self.weights[f"{name}.chunker.key.weight"]
        probs = [h[0].new_tensor(1.0)]
        for before, here in pairwise(h):
            q, k = query @ before, key @ here
            cosine = (q * k).sum() / ((q * q).sum().sqrt() * (k * k).sum().sqrt())
            probs.append((1 - cosine) / 2)
        return probs, [float(p.detach()) > 0.5 for p in probs]

    def clamped(self, p: Tensor) -> Tensor:
        """p, or without gradient the border that it passes."""
        low, high, value = self.sizes.clamp, 1 - self.sizes.clamp, float(p.detach())
        return p if low < value < high else p.new_tensor(low if value <= low else high)

    # -- networks ---------------------------------------------------------------------------------

    def network(self, name: str, layers: str, r: Sequence1d, number: int) -> Sequence1d:
        """Blocks before which, and a last norm behind which, each vector is normed."""
        letters = [c for letter, n in re.findall(r"(\w)(\d+)", layers) for c in letter * int(n)]
        for i, letter in enumerate(letters):
            block = f"{name}.blocks.{i}"
            mix = self.mixer(letter.lower())
            mixed = mix(f"{block}.mixer", self.norm(f"{block}.mixer_norm", r), number)
            r = [a + b for a, b in zip(r, mixed, strict=True)]
            if letter.isupper():
                for t, x in enumerate(self.norm(f"{block}.mlp_norm", r)):
                    gate, up = (self.weights[f"{block}.mlp.gate_up.weight"] @ x).chunk(2)
                    r[t] = r[t] + self.weights[f"{block}.mlp.down.weight"] @ (silu(gate) * up)
        return self.norm(f"{name}.norm", r)

    def mixer(self, letter: str) -> Any:
        return {"t": self.attention, "m": self.mamba2}[letter]

    def norm(self, name: str, vectors: Sequence1d) -> Sequence1d:
        gain = self.weights[f"{name}.weight"]
        return [rms(x, self.sizes.eps) * gain for x in vectors]

    def attention(self, name: str, u: Sequence1d, number: int) -> Sequence1d:
        width, heads = len(u[0]), self.sizes.num_heads[number]
        size, window = width // heads, self.sizes.window[number]
        projected = [(self.weights[f"{name}.qkv.weight"] @ x).split(width) for x in u]
        mixed: list[list[Tensor]] = [[] for _ in u]
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            queries = [self.turn(q[own], t, number) for t, (q, _, _) in enumerate(projected)]
            keys = [self.turn(k[own], t, number) for t, (_, k, _) in enumerate(projected)]
            for t, query in enumerate(queries):
                seen = range(0 if window < 0 else max(0, t - window), t + 1)
                scores = torch.stack([query @ keys[s] for s in seen]) / math.sqrt(size)
                shares = scores.exp() / scores.exp().sum()
                mixed[t].append(shares @ torch.stack([projected[s][2][own] for s in seen]))
        return [self.weights[f"{name}.out_proj.weight"] @ torch.cat(parts) for parts in mixed]

    def turn(self, x: Tensor, position: int, number: int) -> Tensor:
        """Channels i and i + R/2 turn by position / 10000^(2i/R); those from R on do not."""
        half = self.sizes.rotary[number] // 2
        angles = [position / 10000 ** (i / half) for i in range(half)]
        cos, sin = (x.new_tensor([f(angle) for angle in angles]) for f in (math.cos, math.sin))
        a, b = x[:half], x[half : 2 * half]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, x[2 * half :]])

    def mamba2(self, name: str, u: Sequence1d, number: int) -> Sequence1d:
        """h_t = a_t h_{t-1} + delta_t x_t b_t^T and y_t = h_t c_t + skip x_t in each head."""
        w = {
            key.removeprefix(f"{name}."): value
            for key, value in self.weights.items()
            if key.startswith(f"{name}.")
        }
        inner, heads = w["out_proj.weight"].shape[1], len(w["A_log"])
        states, taps = (len(w["conv.bias"]) - inner) // 2, w["conv.weight"].shape[2]
        projected = [w["in_proj.weight"] @ x for x in u]
        memory = [u[0].new_zeros(inner // heads, states) for _ in range(heads)]
        out = []
        for t, x in enumerate(u):
            filtered = w["conv.bias"]
            for k in range(taps):
                if t - k >= 0:
                    filtered = (
                        filtered + w["conv.weight"][:, 0, taps - 1 - k] * (projected[t - k][inner:])
                    )
            values, b, c = silu(filtered).split([inner, states, states])
            delta = torch.log1p((w["dt_proj.weight"] @ x + w["dt_bias"]).exp())
            parts = []
            for head, value in enumerate(values.chunk(heads)):
                decay = (-w["A_log"][head].exp() * delta[head]).exp()
                memory[head] = decay * memory[head] + delta[head] * torch.outer(value, b)
                parts.append(memory[head] @ c + w["skip"][head] * value)
            gated = torch.cat(parts) * silu(projected[t][:inner])
            out.append(w["out_proj.weight"] @ (rms(gated, self.sizes.eps) * w["norm.weight"]))
        return out


def rms(x: Tensor, eps: float) -> Tensor:
    return x / ((x * x).sum() / len(x) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())
