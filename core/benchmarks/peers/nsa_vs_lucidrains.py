"""A training step of nsa beside lucidrains' native-sparse-attention-pytorch.

    uv run --with native-sparse-attention-pytorch python core/benchmarks/peers/nsa_vs_lucidrains.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is loss, gradients, AdamW(fused=True) and zero_grad, at equal widths, heads,
blocks and tokens read; theirs runs in the fastest of its forms and ours as --dtype says. The two
are not the same function: theirs scores blocks by averaged logits, has a learned key before the
compressed ones, GELU in its MLPs and an RMSNorm with gain; ours adds a mean to compression and
norms queries and keys. Its faster forms need CUDA.
"""

from dataclasses import dataclass

import torch
from race import adamw, begin, end, race, show_race

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_nsa.model import NSA

VOCAB_SIZE = 256
BEGIN = Step(0, 0.0, 0)


@dataclass(frozen=True)
class Shape:
    batch_size: int
    seq_len: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    compressed: tuple[int, int]  # block and stride
    selected: tuple[int, int]  # tokens of a block, blocks
    window: int


SHAPES = {
    "tiny256": Shape(4, 256, 2, 128, 4, 1, (8, 4), (16, 4), 32),
    "tiny1024": Shape(1, 1024, 2, 128, 4, 1, (8, 4), (16, 4), 32),
    "nano1024": Shape(1, 1024, 1, 384, 6, 2, (16, 8), (32, 6), 128),
    "small2048": Shape(1, 2048, 1, 384, 6, 2, (32, 16), (64, 8), 256),
    "paper2048": Shape(1, 2048, 1, 256, 4, 1, (32, 16), (64, 16), 512),
}


def ours(shape: Shape) -> NSA:
    changes = {
        "num_layers": shape.num_layers,
        "model_dim": shape.model_dim,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "compress_block_size": shape.compressed[0],
        "compress_stride": shape.compressed[1],
        "selection_block_size": shape.selected[0],
        "num_selected_blocks": shape.selected[1],
        "sliding_window_size": shape.window,
        "shared_kv": True,
    }
    return NSA(model_config("nsa", changes, seq_len=shape.seq_len, vocab_size=VOCAB_SIZE))


def theirs(shape: Shape) -> torch.nn.Module:
    from native_sparse_attention_pytorch.transformer import Transformer

    return Transformer(
        num_tokens=VOCAB_SIZE,
        dim=shape.model_dim,
        depth=shape.num_layers,
        heads=shape.num_heads,
        dim_head=shape.model_dim // shape.num_heads,
        kv_heads=shape.num_kv_heads,
        use_sparse_attn=True,
        sparse_attn_kwargs={
            "sliding_window_size": shape.window,
            "compress_block_size": shape.compressed[0],
            "compress_block_sliding_stride": shape.compressed[1],
            # Hidden width of our default, 2 heads.
            "compress_mlp_expand_factor": 2 / shape.compressed[0],
            "selection_block_size": shape.selected[0],
            "num_selected_blocks": shape.selected[1] - 1,  # it reads the query's own besides
        },
    )


def main() -> None:
    arguments = begin(__doc__, SHAPES)
    adapter = load_adapter("nsa")
    results = {}
    for name in arguments.shapes:
        shape = SHAPES[name]
        torch.manual_seed(0)
        model, peer = ours(shape), theirs(shape)
        tokens = torch.randint(VOCAB_SIZE, (shape.batch_size, shape.seq_len + 1))
        batch = batch_of(tokens)
        results[name] = race(
            "lucidrains",
            adamw(peer, lambda peer=peer, tokens=tokens: peer(tokens, return_loss=True)),
            adamw(
                model,
                lambda model=model, batch=batch: adapter.training_loss(model, batch, BEGIN).value,
            ),
            arguments,
            num_tokens=shape.batch_size * shape.seq_len,
            flops_per_token=adapter.flops_per_token(model.config, shape.seq_len),
        )
        print(f"{name:12}{show_race(results[name])}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
