"""The whole of hnet_x_nsa, sparse attention included, as scalar equations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import nanozoo_hnet.mixers
import nanozoo_nsa.mixer
from nanozoo_core.config import model_config
from nanozoo_core.testing.chunking_reference import (
    ChunkingReference,
    Sequence1d,
    Sizes,
    assert_is_the_reference,
    attend,
    exact_angles,
    perturb,
    turn,
    weights_of,
)
from nanozoo_core.testing.sources import batch_of
from nanozoo_hnet_x_nsa.adapter import HNetXNSAAdapter
from nanozoo_hnet_x_nsa.config import HNetXNSAConfig
from nanozoo_hnet_x_nsa.model import HNetXNSA

pytestmark = pytest.mark.filterwarnings("ignore:stage . has about")

LAYOUT = ["N1m1", ["n1", ["N1"], "t1"], "M1"]
# No two sizes agree by accident: heads 3, 4 and 4 of 4, 6 and 10 channels, key heads 1, 2 and 2,
# and the blocks of each stage are its own.
SETTINGS: dict[str, Any] = {
    "vocab_size": 29,
    "arch_layout": LAYOUT,
    "model_dim": [12, 24, 40],
    "mlp_dim": [17, 0, 35],
    "num_heads": [3, 4, 4],
    "num_kv_heads": [1, 2, 2],
    "rotary_emb_dim": [2, 4, 6],
    "window_size": [3, 2, -1],
    "ssm_cfg": {"d_state": 6, "d_conv": 3, "expand": 2, "head_dim": 8, "chunk_size": 5},
    "nsa_cfg": {
        "compress_block_size": [4, 2, 2],
        "compress_stride": [2, 1, 2],
        "selection_block_size": [6, 3, 2],
        "num_selected_blocks": [3, 4, 2],
        "sliding_window_size": [5, 3, 2],
        "init_blocks": 1,
        "local_blocks": [1, 2, 1],
    },
    "ratio_loss_coef": 0.7,
    "norm_eps": 1e-2,
}
WAYS: dict[str, dict[str, Any]] = {
    "learned": {"target_ratio": [2.5, 4.0]},
    "learned and pooled": {
        "target_ratio": [2.5, 4.0], "chunk_pool": "mlp", "pool_window": [4, 3]
    },
    "fixed and unpooled": {
        "target_ratio": [2.0, 3.0], "chunking": "fixed", "chunk_pool": "mlp", "unpool": "mlp",
        "ratio_loss_coef": 0.03,  # the shipped one: no ratio is learned
    },
}  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """Of the sparse attention of a stage."""

    key_heads: int
    length: int  # of a compressed block
    stride: int
    size: int  # of a block that is read as a whole
    count: int  # of these a query reads
    near: int  # nearest positions
    last: int  # blocks up to its own that a query must read, beside the first


BLOCKS = [Blocks(1, 4, 2, 6, 3, 5, 1), Blocks(2, 2, 1, 3, 4, 3, 2), Blocks(2, 2, 2, 2, 2, 2, 1)]


class SparseReference(ChunkingReference):
    """With nsa's attention, a chunk's vector from the positions before it, and parts of it for
    those in it."""

    def mixer(self, letter: str) -> Any:
        return self.sparse if letter == "n" else super().mixer(letter)

    def pool(self, name: str, h: Sequence1d, first: int) -> Tensor:
        places = self.weights.get(f"{name}.pooling.positions")
        if places is None:
            return super().pool(name, h, first)
        window = [
            (h[t] if t >= 0 else 0) + place
            for t, place in enumerate(places, start=first - len(places) + 1)
        ]
        hidden = gelu_by_tanh(self.weights[f"{name}.pooling.up.weight"] @ torch.cat(window))
        return h[first] + self.weights[f"{name}.pooling.down.weight"] @ hidden

    def own_part(self, name: str, chunk: Tensor, place: int) -> Tensor:
        up = self.weights.get(f"{name}.unpooling.up.weight")
        if up is None:
            return super().own_part(name, chunk, place)
        rows = slice(place * len(chunk), (place + 1) * len(chunk))
        part = self.weights[f"{name}.unpooling.down.weight"][rows]
        return part @ gelu_by_tanh(up @ chunk)

    def sparse(self, name: str, u: Sequence1d, number: int) -> Sequence1d:
        """arXiv 2502.11089, eq. 5 to 12, each key head and position by itself."""
        blocks, heads, width = BLOCKS[number], self.sizes.num_heads[number], len(u[0])
        size, group = width // heads, heads // blocks.key_heads
        parts = [
            (self.weights[f"{name}.qkv.weight"] @ x).split([width, *[size * blocks.key_heads] * 6])
            for x in u
        ]
        mixed: list[list[Tensor]] = [[] for _ in u]
        for pair in range(blocks.key_heads):
            own = slice(pair * size, (pair + 1) * size)
            k_whole, v_whole, k_near, v_near, k_raw, v_raw = (
                [part[i][own] for part in parts] for i in range(1, 7)
            )
            k_whole = [turn(k, t, size) for t, k in enumerate(k_whole)]
            k_near = [turn(k, t, size) for t, k in enumerate(k_near)]
            starts = range(0, len(u) - blocks.length + 1, blocks.stride)
            keys = [
                turn(self.phi(f"{name}.compress_keys", k_raw[s : s + blocks.length]), s, size)
                for s in starts
            ]
            values = [
                self.phi(f"{name}.compress_values", v_raw[s : s + blocks.length]) for s in starts
            ]
            for t, x in enumerate(u):
                queries = [
                    turn(parts[t][0][g * size : (g + 1) * size], t, size)
                    for g in range(pair * group, (pair + 1) * group)
                ]
                ended = sum(s + blocks.length <= t + 1 for s in starts)
                coarse = [attend(q, keys[:ended], values[:ended]) for q in queries if ended]
                taken = chosen_blocks(blocks, t, [shares for _, shares in coarse])
                inside = [s for s in range(t + 1) if s // blocks.size in taken]
                near = range(max(0, t - blocks.near + 1), t + 1)
                gates = self.weights[f"{name}.gate_weight"] @ x + self.weights[f"{name}.gate_bias"]
                for g, q in enumerate(queries):
                    gate = 1 / (1 + (-gates[3 * (pair * group + g) :][:3]).exp())
                    y = gate[0] * coarse[g][0] if ended else 0
                    whole = attend(q, [k_whole[s] for s in inside], [v_whole[s] for s in inside])
                    close = attend(q, [k_near[s] for s in near], [v_near[s] for s in near])
                    mixed[t].append(y + gate[1] * whole[0] + gate[2] * close[0])
        return [self.weights[f"{name}.out_proj.weight"] @ torch.cat(parts) for parts in mixed]

    def phi(self, name: str, block: Sequence1d) -> Tensor:
        """One key or value of several: their mean, and an MLP of all."""
        w = {
            part: self.weights[f"{name}.{part}"]
            for part in ("positions", "up", "up_bias", "down", "down_bias")
        }
        joined = torch.cat([x + place for x, place in zip(block, w["positions"], strict=True)])
        hidden = w["up"] @ joined + w["up_bias"]
        hidden = hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))
        return w["down"] @ hidden + w["down_bias"] + sum(block) / len(block)


def chosen_blocks(blocks: Blocks, t: int, shares: Sequence1d) -> set[int]:
    """Those that position t must read, and then those with the most attention of all heads."""
    current = t // blocks.size
    must = {0, *range(max(0, current - blocks.last + 1), current + 1)}

    def attention(j: int) -> float:
        """Eq. 9, by the positions that block j shares with each compressed one."""
        total = 0.0
        for share in shares:
            for i, p in enumerate(share.tolist()):
                here = range(i * blocks.stride, i * blocks.stride + blocks.length)
                total += p * sum(s // blocks.size == j for s in here) / blocks.stride
        return total

    others = sorted(set(range(current + 1)) - must, key=attention, reverse=True)
    return must | set(others[: max(0, blocks.count - blocks.last - 1)])


def gelu_by_tanh(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


@pytest.mark.parametrize("way", WAYS)
def test_loss_logits_and_gradients_are_those_of_the_equations(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nanozoo_hnet.mixers, "rotary_angles", exact_angles)
    monkeypatch.setattr(nanozoo_nsa.mixer, "rotary_angles", exact_angles)
    torch.manual_seed(0)
    model = perturb(HNetXNSA(model_config("hnet_x_nsa", SETTINGS | WAYS[way])), seed=3)
    tokens = torch.randint(29, (2, 27), generator=torch.Generator().manual_seed(1))
    sizes = Sizes(
        layout=LAYOUT,
        num_heads=SETTINGS["num_heads"],
        rotary=SETTINGS["rotary_emb_dim"],
        window=SETTINGS["window_size"],
        ratios=WAYS[way]["target_ratio"],
        clamp=1e-4,
        eps=1e-2,
        stride=[2, 3] if way == "fixed and unpooled" else None,
    )
    assert_is_the_reference(
        HNetXNSAAdapter(HNetXNSAConfig, HNetXNSA),
        model,
        batch_of(tokens),
        SparseReference(weights_of(model), sizes),
        SETTINGS["ratio_loss_coef"],
    )
