"""A training step of our megabyte beside MEGABYTE-pytorch's.

    uv run --with MEGABYTE-pytorch python core/benchmarks/peers/megabyte_vs_lucidrains.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is loss, gradients, AdamW(fused=True) and zero_grad, at equal widths, layers,
heads and bytes; theirs runs in the fastest of its forms and ours as --dtype says. The two are not
the same function, see what is printed at the end: no losses are compared but that of a uniform
guess, from which both start.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from race import adamw, begin, end, race, show_sizes
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_megabyte.model import Megabyte

PEER = "MEGABYTE-pytorch"
DIFFERS = (
    "theirs reads a patch by LayerNorm, Linear, LayerNorm where ours joins embeddings, puts "
    "a start token before each sequence (P + 1 positions in the local model), shifts half of the "
    "channels by one position before every layer, has gains in its norms, biases in its MLPs and "
    "GELU for relu^2; its attention is the fused one, as ours"
)


@dataclass(frozen=True)
class Shape:
    patch_size: int
    num_global_layers: int
    num_local_layers: int
    num_heads: int
    width: int  # of both models
    seq_len: int
    batch_size: int
    vocab_size: int = 258


SHAPES = {
    "tiny": Shape(4, 3, 2, 4, 128, 1024, 8),
    "tiny, 8192 bytes": Shape(8, 3, 2, 4, 128, 8192, 1),
    "width 512": Shape(8, 4, 2, 8, 512, 1024, 2),
}


def build(shape: Shape) -> Megabyte:
    torch.manual_seed(0)
    settings = {
        "vocab_size": shape.vocab_size,
        "seq_len": shape.seq_len,
        "patch_size": shape.patch_size,
        "global_byte_dim": shape.width // shape.patch_size,
        "num_global_layers": shape.num_global_layers,
        "num_global_heads": shape.num_heads,
        "local_dim": shape.width,
        "num_local_layers": shape.num_local_layers,
        "num_local_heads": shape.num_heads,
    }
    return Megabyte(model_config("megabyte", settings))


def build_peer(shape: Shape) -> nn.Module:
    from MEGABYTE_pytorch import MEGABYTE

    torch.manual_seed(0)
    return MEGABYTE(
        num_tokens=shape.vocab_size,
        dim=(shape.width, shape.width),
        depth=(shape.num_global_layers, shape.num_local_layers),
        max_seq_len=(shape.seq_len // shape.patch_size, shape.patch_size),
        dim_head=shape.width // shape.num_heads,
        heads=shape.num_heads,
        pos_emb=True,
        flash_attn=True,
        pad_id=shape.vocab_size - 1,
    )


def our_loss(model: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    adapter = load_adapter("megabyte")
    batch, step = batch_of(tokens), Step(number=0, progress=0.0, seed=0)
    return lambda: adapter.training_loss(model, batch, step).value


def compare(name: str, shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes per second of both, and the ratio ours / theirs over rounds: median and range."""
    models = {PEER: build_peer(shape), "nanozoo": build(shape)}
    generator = torch.Generator().manual_seed(1)
    size = (shape.batch_size, shape.seq_len + 1)
    tokens = torch.randint(shape.vocab_size - 1, size, generator=generator)  # none is their pad
    modelled = tokens[:, 1:].contiguous()
    losses = {
        PEER: lambda: models[PEER](modelled, return_loss=True),
        "nanozoo": our_loss(models["nanozoo"], tokens),
    }
    both = {who: adamw(model, losses[who]) for who, model in models.items()}
    uniform = math.log(shape.vocab_size)
    for who, contestant in both.items():
        start = contestant.value()
        assert abs(start - uniform) < 0.5, (who, start, uniform)
    config: Any = models["nanozoo"].config
    row = race(
        PEER,
        *both.values(),
        arguments,
        num_tokens=modelled.numel(),
        flops_per_token=load_adapter("megabyte").flops_per_token(config, shape.seq_len),
    )
    sizes = {who: sum(p.numel() for p in model.parameters()) for who, model in models.items()}
    return row | {"parameters": sizes, "differs": DIFFERS}


def main() -> None:
    arguments = begin(__doc__, SHAPES)
    results = {}
    print(f"{'':<18}{'parameters':>18}{'':>8}{'bytes/s':>12}")
    print(f"{'shape':<18}{'theirs':>13}{'ours':>13}{'theirs':>10}{'ours':>10}   ratio")
    for name in arguments.shapes:
        results[name] = compare(name, SHAPES[name], arguments)
        print(f"{name:<18}{show_sizes(results[name])}", flush=True)
    print(f"{PEER}: {DIFFERS}")
    end(arguments, results)


if __name__ == "__main__":
    main()
