"""The control against its equations, one position and head at a time: logits, loss and gradients,
in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.testing.chunking_reference import attend, exact_angles, rms, turn
from nanozoo_core.testing.laws import equations_test

# No two sizes are equal, so that nothing fits by accident.
SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "num_layers": 2,
    "model_dim": 12,
    "num_heads": 3,
    "mlp_ratio": 1.5,
}
EPS = 1e-6


@pytest.fixture(autouse=True)
def angles_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanozoo_core.nn.control.rotary_angles", exact_angles)


def _logits(config: ControlConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    stream = [rms(weights["embedding.weight"][token], EPS) for token in tokens.tolist()]
    for layer in range(config.num_layers):
        start = f"blocks.{layer}."
        own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
        attended = _attention(own, config.num_heads, [rms(x, EPS) for x in stream])
        stream = [x + y for x, y in zip(stream, attended, strict=True)]
        hidden = [(own["mlp.up.weight"] @ rms(x, EPS)).clamp(min=0) for x in stream]
        stream = [x + own["mlp.down.weight"] @ h**2 for x, h in zip(stream, hidden, strict=True)]
    return torch.stack([weights["head.weight"] @ rms(x, EPS) for x in stream])


def _attention(weights: dict[str, Tensor], num_heads: int, read: list[Tensor]) -> list[Tensor]:
    width = len(read[0]) // num_heads
    rows = weights["attention.qkv.weight"].split(width)  # of one head each
    outputs: list[list[Tensor]] = [[] for _ in read]
    for head in range(num_heads):
        w_q, w_k, w_v = rows[head], rows[num_heads + head], rows[2 * num_heads + head]
        queries = [rms(turn(w_q @ x, t, width), EPS) for t, x in enumerate(read)]
        keys = [rms(turn(w_k @ x, t, width), EPS) for t, x in enumerate(read)]
        values = [w_v @ x for x in read]
        for t, query in enumerate(queries):
            outputs[t].append(attend(query, keys[: t + 1], values[: t + 1])[0])
    return [weights["attention.out.weight"] @ torch.cat(heads) for heads in outputs]


test_the_control_is_its_equations = equations_test("toy", {"control": SMALL}, _logits, length=7)
