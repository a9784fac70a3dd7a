"""A training step of our mamba beside transformers' MambaForCausalLM and mambapy, same weights and
tokens.

    uv run --with transformers --with mambapy python core/benchmarks/peers/mamba_vs_others.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is loss, gradients, AdamW(fused=True) and zero_grad; the others run in the
fastest of their forms and ours as --dtype says. On a CPU both others are plain torch: transformers
loops over the positions, mambapy scans in parallel. Of mambapy the blocks are used, between our
embedding and a tied head. Before timing, all must agree on the loss in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from race import adamw, begin, end, race, show_race
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.huggingface import to_hf_config, to_hf_state_dict
from nanozoo_mamba.model import Mamba

# Layers, width, sequence, batch, vocabulary.
SHAPES = {
    "tiny, batch 2": (8, 128, 256, 2, 256),
    "tiny, batch 16": (8, 128, 256, 16, 256),
    "tiny, 1024 long": (8, 128, 1024, 2, 256),
    "wide": (4, 512, 256, 2, 4096),
}
PEERS = ["transformers", "mambapy"]


def transformers_loss(ours: Mamba, tokens: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Their model with our weights, and its loss on a batch as its own training makes it."""
    import transformers

    config = transformers.MambaConfig(**to_hf_config(ours.config))
    model = transformers.MambaForCausalLM(config)
    model.load_state_dict(to_hf_state_dict(ours), strict=False)
    model.tie_weights()
    return model, lambda: model(tokens, labels=tokens).loss


class MambaPy(nn.Module):
    """mambapy's blocks and norm as a language model with a tied head."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        from mambapy import mamba

        assert config.vocab_size is not None
        num_layers, dim = config.shape
        settings = mamba.MambaConfig(d_model=dim, n_layers=num_layers, d_state=config.states)
        self.embeddings = nn.Embedding(config.vocab_size, dim)
        self.blocks = mamba.Mamba(settings)
        self.layers = self.blocks.layers  # as transformers names them
        self.norm_f = mamba.RMSNorm(dim, settings.rms_norm_eps, False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.norm_f(self.blocks(self.embeddings(tokens))), self.embeddings.weight)


def mambapy_loss(ours: Mamba, tokens: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = MambaPy(ours.config)
    weights = {k.removeprefix("backbone."): v for k, v in to_hf_state_dict(ours).items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown
    assert all(name.startswith("blocks.") for name in missing)  # the same tensors, named twice
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return model, lambda: F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def compare(peer: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    num_layers, dim, seq_len, batch_size, vocab_size = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (batch_size, seq_len + 1), generator=generator)
    torch.manual_seed(0)
    shape = {"vocab_size": vocab_size, "seq_len": seq_len, "num_layers": num_layers}
    config = model_config("mamba", shape | {"model_dim": dim})
    ours = Mamba(config)
    theirs, their_loss = {"transformers": transformers_loss, "mambapy": mambapy_loss}[peer](
        ours, tokens
    )
    adapter, batch, step = load_adapter("mamba"), batch_of(tokens), Step(0, 0.0, 0)

    def our_loss() -> Tensor:
        return adapter.training_loss(ours, batch, step).value

    both = adamw(theirs, their_loss), adamw(ours, our_loss)
    values = [one.value() for one in both]
    assert abs(values[0] - values[1]) < 1e-5 * values[0], values
    return race(
        peer,
        *both,
        arguments,
        num_tokens=batch_size * seq_len,
        flops_per_token=adapter.flops_per_token(config, seq_len),
    )


def main() -> None:
    arguments = begin(__doc__, SHAPES, peers=PEERS)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    print(f"{'shape':<17}{'peer':<14}{'their tok/s':>13}{'nanozoo tok/s':>15}{'ratio':>8}  (range)")
    for name in arguments.shapes:
        for peer in arguments.peers:
            row = compare(peer, name, arguments)
            results.setdefault(name, {})[peer] = row
            rates = [row[f"{who}_tokens_per_second"] for who in (peer, "nanozoo")]
            line = f"{name:<17}{peer:<14}{rates[0]:>13,.0f}{rates[1]:>15,.0f}{show_race(row)}"
            print(line, flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
