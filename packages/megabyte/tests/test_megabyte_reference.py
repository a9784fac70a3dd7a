"""The whole model against its equations, byte by byte, from weights by name: logits, loss and
gradients, in float64.

Reference: arXiv 2305.07185, section 2. T tokens, P bytes per patch, W width of the global model,
G = W / P, L local_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.testing.laws import equations_test
from nanozoo_megabyte.config import MegabyteConfig

Weights = dict[str, Tensor]

# No two sizes are equal, so that nothing fits by accident.
SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "seq_len": 24,
    "patch_size": 4,
    "global_byte_dim": 6,
    "num_global_layers": 2,
    "num_global_heads": 3,
    "local_dim": 20,
    "num_local_layers": 2,
    "num_local_heads": 5,
    "mlp_ratio": 1.5,
}
WAYS: dict[str, dict[str, Any]] = {
    "paper": {"tie_embeddings": True},
    "no-context": {"use_first_input": False, "pos_emb": "rope"},
    "all-options": {
        "pos_emb": "both", "local_first_input": "prev_byte", "cross_patch": 2, "patch_conv": True,
    },
    "convolutions": {"patch_conv": True, "local_first_input": "prev_byte",
                     "use_first_input": False},
}  # fmt: skip


def logits(config: MegabyteConfig, weights: Weights, tokens: Tensor) -> Tensor:
    """(T, V): position t scores the byte behind tokens[t]."""
    size, length = config.size("patch_size"), len(tokens)
    context, read = int(tokens[0]), [int(token) for token in tokens[1:]]
    conditions = from_global(config, weights, read, -(-length // size))  # (T and more, L)
    rows = []
    for t in range(length):
        if t % size:
            past = weights["local_embedding.weight"][read[t - 1]]
        elif t == 0 and config.use_first_input:
            past = weights["local_embedding.weight"][context]
        elif t == 0 or config.local_first_input == "pad":
            past = weights["local_pad"]
        else:
            past = weights["local_embedding.weight"][read[t - 1]]
        rows.append(conditions[t] + past)
    seen = []
    for t in range(length):
        start = t // size * size
        seen.append(list(range(max(0, start - config.cross_patch), t + 1)))
    positions = [t if config.cross_patch else t % size for t in range(length)]
    z = run(config, weights, "local_", torch.stack(rows), seen, positions)
    return z @ weights["local_embedding.weight" if config.tie_embeddings else "head.weight"].T


def from_global(
    config: MegabyteConfig, weights: Weights, read: list[int], num_patches: int
) -> Tensor:
    """What the global model tells of every byte, (patches * P, L)."""
    size = config.size("patch_size")
    e = []
    for t, byte in enumerate(read[: (num_patches - 1) * size]):
        embedded = weights["global_embedding.weight"][byte]
        if config.pos_emb != "rope":
            embedded = embedded + weights["position.weight"][t]
        e.append(embedded)
    if config.patch_conv:
        for layer in range(3):
            e = convolved(weights[f"convolutions.layers.{layer}.weight"], e)
    u = [weights["global_pad"]]
    u += [torch.cat(e[k * size : (k + 1) * size]) for k in range(num_patches - 1)]
    seen = [list(range(k + 1)) for k in range(num_patches)]
    o = run(config, weights, "global_", torch.stack(u), seen, list(range(num_patches)))
    slices = o.reshape(num_patches * size, -1)  # (patches * P, G)
    return torch.stack([weights["to_local.weight"] @ part for part in slices])


def convolved(kernel: Tensor, e: list[Tensor]) -> list[Tensor]:
    """e + gelu(causal convolution) with a kernel (G, G, taps), the last tap on the byte itself."""
    taps = kernel.shape[2]
    result = []
    for t, own in enumerate(e):
        total = torch.zeros_like(own)
        for back in range(min(taps, t + 1)):
            total = total + kernel[:, :, taps - 1 - back] @ e[t - back]
        result.append(own + F.gelu(total, approximate="tanh"))
    return result


def run(
    config: MegabyteConfig,
    weights: Weights,
    which: str,
    x: Tensor,
    seen: Sequence[list[int]],
    positions: list[int],
) -> Tensor:
    """Pre-norm blocks on one sequence (S, D), of which position i sees `seen[i]`, and a norm."""
    num_heads = config.size(f"num_{which}heads")
    width = x.shape[1] // num_heads
    for layer in range(config.size(f"num_{which}layers")):
        prefix = f"{which}model.blocks.{layer}."
        heads = (norm(x) @ weights[prefix + "attention.qkv.weight"].T).split(width, dim=1)
        outputs = []
        for h in range(num_heads):
            q, k, v = (heads[part * num_heads + h] for part in range(3))
            if config.pos_emb != "learned":
                q, k = turn(q, positions), turn(k, positions)
            outputs.append(
                torch.stack([
                    (k[places] @ q[i] / math.sqrt(width)).softmax(0) @ v[places]
                    for i, places in enumerate(seen)
                ])
            )  # fmt: skip
        x = x + torch.cat(outputs, dim=1) @ weights[prefix + "attention.out.weight"].T
        hidden = F.relu(norm(x) @ weights[prefix + "mlp.up.weight"].T)
        x = x + (hidden * hidden) @ weights[prefix + "mlp.down.weight"].T
    return norm(x)


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turn(head: Tensor, positions: list[int]) -> Tensor:
    """Rotates the rows of a head (S, K); channels i and i + K / 2 are a pair. Angles are float32,
    as in the model, whatever the weights are."""
    half = head.shape[1] // 2
    rates = 1e4 ** (-torch.arange(0, 2 * half, 2).float() / (2 * half))
    angles = torch.tensor(positions).float()[:, None] * rates
    first, second = head[:, :half], head[:, half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=1)


test_the_model_is_its_equations = equations_test(
    "megabyte", {name: SMALL | way for name, way in WAYS.items()}, logits, length=22
)
