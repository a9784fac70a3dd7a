"""A training step of our ngpt beside NVIDIA/ngpt's, same shape, weights and tokens.

    PEERS=<folder that holds NVIDIA's ngpt/> python core/benchmarks/peers/ngpt_vs_nvidia.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is loss, gradients, the optimiser, zero_grad and the normalisation of all
weights; NVIDIA's runs in the fastest of its forms and ours as --dtype says. Its model has torch's
attention for flash_attn, in float32, its optimiser is the AdamW that it makes itself, its
normalisation that of its train.py.
Ours has AdamW(fused=True), as our trainer. Its position map is no rotation: before timing, the two
must agree on the logits with that map lent to ours, and then each runs with its own.
"""

import argparse
import contextlib
import io
import sys
import types
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from race import Contestant, both_settings, find, race, race_shapes
from torch import Tensor, nn

import nanozoo_ngpt.model as our_module
from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_ngpt.model import NGPT

# Layers, heads, width, sequence, batch, vocabulary.
SHAPES = {
    "tiny256": (4, 4, 128, 256, 16, 256),
    "tiny4096": (4, 4, 128, 256, 16, 4096),
    "124M": (12, 12, 768, 512, 1, 50304),
}
LR = 1e-4


def load_peer() -> ModuleType:
    """NVIDIA's model.py as a module, for the CPU and in float32."""
    path = find("ngpt") / "model.py"

    def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, **_: object) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale)
        return y.transpose(1, 2)

    flash = types.ModuleType("flash_attn")
    flash.flash_attn_func = attention  # type: ignore[attr-defined]
    flash.flash_attn_qkvpacked_func = None  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = flash
    module = types.ModuleType("nvidia_ngpt_model")
    sys.modules[module.__name__] = module  # where its dataclass looks itself up
    source = path.read_text(encoding="utf-8").replace("torch.bfloat16", "torch.float32")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def build(peer: ModuleType, name: str) -> tuple[nn.Module, NGPT]:
    """Their model and ours, with the same unit weights."""
    their_settings, our_settings = both_settings(SHAPES[name])
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        scale = their_settings["n_embd"] ** -0.5
        config = peer.GPTConfig(**their_settings, base_scale=scale, use_nGPT=1)
        theirs = peer.GPT(config)
    normalize(theirs)
    ours = NGPT(model_config("ngpt", our_settings | {"mlp_ratio": 4}))
    state = theirs.state_dict()
    weights = {
        "embedding.weight": state["transformer.wte.weight"],
        "head.weight": state["lm_head.weight"],
        "sz.stored": state["sz"],
    }
    for layer in range(our_settings["num_layers"]):
        old, new = f"transformer.h.{layer}.", f"blocks.{layer}."
        qkv = [state[f"{old}{part}.weight"] for part in ("query", "key", "value")]
        weights |= {
            f"{new}attention.qkv.weight": torch.cat(qkv),
            f"{new}attention.out.weight": state[f"{old}att_c_proj.weight"],
            f"{new}attention.sqk.stored": state[f"{old}sqk"],
            f"{new}alpha_attention.stored": state[f"{old}attn_alpha"],
            f"{new}mlp.up.weight": state[f"{old}c_fc.weight"],
            f"{new}mlp.suv.stored": state[f"{old}suv"],
            f"{new}mlp.down.weight": state[f"{old}mlp_c_proj.weight"],
            f"{new}alpha_mlp.stored": state[f"{old}mlp_alpha"],
        }
    ours.load_state_dict(weights)
    return theirs, ours


@torch.no_grad()
def normalize(theirs: nn.Module) -> None:
    """What NVIDIA's train.py does after each step, copy and all."""

    def to_unit(linear: nn.Module, axis: int) -> None:
        weight = linear.weight.data
        linear.weight.data.copy_(weight / weight.norm(p=2, dim=axis, keepdim=True))

    to_unit(theirs.transformer["wte"], 1)
    to_unit(theirs.lm_head, 1)
    for block in theirs.transformer["h"]:
        for linear in (block.query, block.key, block.value, block.c_fc):
            to_unit(linear, 1)
        for linear in (block.att_c_proj, block.mlp_c_proj):
            to_unit(linear, 0)


@contextlib.contextmanager
def their_positions(peer: ModuleType) -> Iterator[None]:
    """Lends ours the position map of NVIDIA's code."""

    def lent(x: Tensor, _cos: Tensor, _sin: Tensor) -> Tensor:
        table = peer.get_sinusoidal_embeddings(x.shape[-2], x.shape[-1])
        return peer.apply_rotary_position_embeddings(table, x, x)[0]

    own, our_module.apply_rotary = our_module.apply_rotary, lent  # type: ignore[assignment]
    try:
        yield
    finally:
        our_module.apply_rotary = own


@torch.no_grad()
def logits_differ_by(peer: ModuleType, theirs: nn.Module, ours: NGPT, tokens: Tensor) -> float:
    with their_positions(peer):
        found = ours(tokens)
    return float((found - theirs(tokens, tokens)[0]).abs().max())


def contestants(theirs: nn.Module, ours: NGPT, tokens: Tensor) -> tuple[Contestant, Contestant]:
    """Each as its own training makes it."""
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    adapter = load_adapter("ngpt")
    batch, step = batch_of(tokens), Step(number=0, progress=0.0, seed=0)
    with contextlib.redirect_stdout(io.StringIO()):
        their_adam = theirs.configure_optimizers(0.0, LR, (0.9, 0.95), "cpu")
    our_adam = torch.optim.AdamW(
        ours.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def their_update() -> None:
        their_adam.step()
        their_adam.zero_grad(set_to_none=True)
        normalize(theirs)

    def our_update() -> None:
        our_adam.step()
        our_adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            adapter.after_step(ours, step, [our_adam])

    return (
        Contestant(lambda: theirs(inputs, targets)[1], their_update),
        Contestant(lambda: adapter.training_loss(ours, batch, step).value, our_update),
    )


def compare(peer: ModuleType, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    _, _, _, seq_len, batch_size, vocab_size = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (batch_size, seq_len + 1), generator=generator)
    theirs, ours = build(peer, name)
    difference = logits_differ_by(peer, theirs, ours, tokens[:, :-1].contiguous())
    assert difference <= 1e-4, difference
    row = race(
        "nvidia",
        *contestants(theirs, ours, tokens),
        arguments,
        num_tokens=batch_size * seq_len,
        flops_per_token=load_adapter("ngpt").flops_per_token(ours.config, seq_len),
    )
    return row | {"logits_differ_by": difference}


def main() -> None:
    race_shapes(__doc__, SHAPES, "nvidia", partial(compare, load_peer()))


if __name__ == "__main__":
    main()
