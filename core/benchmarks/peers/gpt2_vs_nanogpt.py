"""A training step of our gpt2 beside karpathy/nanoGPT's, same shape, weights and tokens.

    PEERS=<folder that holds nanoGPT/> python core/benchmarks/peers/gpt2_vs_nanogpt.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is loss, gradients, AdamW(fused=True) and zero_grad; nanoGPT runs in the
fastest of its forms and ours as --dtype says. Both get the process settings that our trainer makes,
or with --untuned neither. Before timing, the two must agree on the loss in float32.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from race import adamw, both_settings, find, race, race_shapes
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_gpt2.model import GPT2

# Layers, heads, width, sequence, batch, vocabulary.
SHAPES = {
    "tiny256": (4, 4, 128, 256, 16, 256),
    "tiny4096": (4, 4, 128, 256, 16, 4096),
    "small4096": (6, 6, 384, 256, 8, 4096),
    "124M": (12, 12, 768, 512, 1, 50257),
}
THEIR_NAMES = {"transformer.wte": "embedding", "transformer.wpe": "pos_embed", "transformer.": ""}


def load_peer() -> ModuleType:
    """nanoGPT's model.py as a module."""
    path = find("nanoGPT") / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def build(peer: ModuleType, name: str) -> tuple[nn.Module, nn.Module]:
    """Their model and ours, with the same weights."""
    their_settings, our_settings = both_settings(SHAPES[name])
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = peer.GPT(peer.GPTConfig(**their_settings))
    ours = GPT2(model_config("gpt2", our_settings | {"activation": "gelu"}))
    weights = {}
    for key, value in theirs.state_dict().items():
        for old, new in THEIR_NAMES.items():
            key = key.replace(old, new)
        weights[key] = value
    del weights["lm_head.weight"]  # tied
    ours.load_state_dict(weights)
    return theirs, ours


def losses(
    theirs: nn.Module, ours: nn.Module, tokens: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Each contestant's loss on a batch, as its own training makes it."""
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    adapter = load_adapter("gpt2")
    batch, step = batch_of(tokens), Step(number=0, progress=0.0, seed=0)
    return (
        lambda: theirs(inputs, targets)[1],
        lambda: adapter.training_loss(ours, batch, step).value,
    )


def compare(peer: ModuleType, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    _, _, _, seq_len, batch_size, vocab_size = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (batch_size, seq_len + 1), generator=generator)
    theirs, ours = build(peer, name)
    their_loss, our_loss = losses(theirs, ours, tokens)
    both = adamw(theirs, their_loss), adamw(ours, our_loss)
    values = [one.value() for one in both]
    assert abs(values[0] - values[1]) < 1e-5 * values[0], values
    return race(
        "nanoGPT",
        *both,
        arguments,
        num_tokens=batch_size * seq_len,
        flops_per_token=load_adapter("gpt2").flops_per_token(ours.config, seq_len),
    )


def main() -> None:
    race_shapes(__doc__, SHAPES, "nanoGPT", partial(compare, load_peer()))


if __name__ == "__main__":
    main()
