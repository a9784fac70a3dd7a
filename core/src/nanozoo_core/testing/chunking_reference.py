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

import pytest
import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.testing.training import move

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
            rotary = self.sizes.rotary[number]
            queries = [turn(q[own], t, rotary) for t, (q, _, _) in enumerate(projected)]
            keys = [turn(k[own], t, rotary) for t, (_, k, _) in enumerate(projected)]
            values = [v[own] for _, _, v in projected]
            for t, query in enumerate(queries):
                first = 0 if window < 0 else max(0, t - window)
                mixed[t].append(attend(query, keys[first : t + 1], values[first : t + 1])[0])
        return [self.weights[f"{name}.out_proj.weight"] @ torch.cat(parts) for parts in mixed]

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


def assert_is_the_reference(
    adapter: DefaultModelAdapter,
    model: Any,
    batch: Batch,
    reference: ChunkingReference,
    ratio_loss_coef: float,
    *,
    reset: bool = False,
) -> None:
    """The model's logits, training loss and all gradients are those of the reference, which was
    made with `weights_of(model)`; with `reset` it reads each document by itself."""
    loss = adapter.training_loss(model, batch, Step(number=0, progress=0.0, seed=0)).value
    loss.backward()
    with torch.no_grad():
        features, _ = model.encode(batch.inputs, batch.documents[:, :-1])
        logits = (features @ model.output_weight.T).flatten(0, 1)

    expected: Sequence1d = []
    for row, numbers in zip(batch.inputs.tolist(), batch.documents.tolist(), strict=True):
        starts = [t for t in range(1, len(row)) if reset and numbers[t] != numbers[t - 1]]
        for start, end in pairwise([0, *starts, len(row)]):
            expected += reference.logits(row[start:end])
    targets = batch.targets.flatten().tolist()
    nats = [z.exp().sum().log() - z[target] for z, target in zip(expected, targets, strict=True)]
    wanted = torch.stack(nats).mean()
    if reference.sizes.stride is None:
        wanted = wanted + ratio_loss_coef * torch.stack(reference.ratio_losses()).sum()
    wanted.backward()

    for decided in reference.decisions:  # it would be no test if all or none were boundaries
        assert 0.2 < decided.share < 0.8
        assert min(abs(float(p.detach()) - 0.5) for p in decided.probs) > 1e-6
    torch.testing.assert_close(logits, torch.stack(expected).detach(), rtol=1e-9, atol=1e-9)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    for name, parameter in model.named_parameters():
        gradient = reference.weights[name].grad
        assert gradient is not None
        assert gradient.abs().max() > 1e-6, f"nothing depends on {name}"
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-9, msg=name)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies by name, for which gradients can be asked."""
    named = model.named_parameters()
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in named}


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64, in which nothing is zero, one or the identity any more."""
    move(model.double(), 0.3, seed=seed)
    return model


def exact_angles(positions: Tensor, count: int, *, base: float = 1e4) -> tuple[Tensor, Tensor]:
    """In float64, instead of core's `rotary_angles`, which are float32 whatever the model is."""
    exponent = torch.arange(0, count, 2, dtype=torch.float64) / count
    angles = positions.double()[..., None] * base**-exponent
    return angles.cos(), angles.sin()


def attend(query: Tensor, keys: Sequence1d, values: Sequence1d) -> tuple[Tensor, Tensor]:
    """The mean of `values` (at least one) by softmax of query-key products, and its weights."""
    scores = torch.stack([query @ key for key in keys]) / math.sqrt(len(query))
    shares = scores.exp() / scores.exp().sum()
    return shares @ torch.stack(values), shares


def turn(x: Tensor, position: int, channels: int) -> Tensor:
    """Channels i and i + R/2 turn by position / 10000^(2i/R), R = `channels`; all others do not."""
    half = channels // 2
    angles = [position / 10000 ** (i / half) for i in range(half)]
    cos, sin = (x.new_tensor([f(angle) for angle in angles]) for f in (math.cos, math.sin))
    a, b = x[:half], x[half : 2 * half]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x[2 * half :]])


def rms(x: Tensor, eps: float) -> Tensor:
    return x / ((x * x).sum() / len(x) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())
