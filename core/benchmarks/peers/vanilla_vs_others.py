"""A training step of our control beside the plain decoders of nanochat, litgpt and x-transformers.

    PEERS=<folder that holds nanochat/, litgpt/ and x-transformers/> \
        python core/benchmarks/peers/vanilla_vs_others.py

Each pair runs in one process, alternating; times are the CPU seconds of one thread, which other
jobs hardly disturb. A step is loss, gradients, AdamW(fused=True) and zero_grad; the peers run in
the fastest of their forms and ours as --dtype says. All get the process settings that our trainer
makes, or with --untuned none does. The peers get the options nearest to the control, and what is
left to differ is printed. Before timing, each pair must
agree on the loss with equal weights, as far as their architectures are the same.
"""

import argparse
import logging
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from race import adamw, begin, end, find, race, show_sizes
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.testing.sources import batch_of
from nanozoo_vanilla.model import Control


@dataclass(frozen=True)
class Shape:
    num_layers: int
    num_heads: int
    model_dim: int
    seq_len: int
    batch_size: int
    vocab_size: int


SHAPES = {
    "tiny256": Shape(4, 4, 128, 256, 16, 256),
    "tiny4096": Shape(4, 4, 128, 256, 16, 4096),
    "124M": Shape(12, 12, 768, 512, 1, 50304),
}


@dataclass(frozen=True)
class Peer:
    """Another project's decoder. `silent` names our matrices that must be zero for the two to be
    the same function, since a part of the peer has no counterpart."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]  # inputs, targets (B, T)
    load: Callable[[dict[str, Tensor]], None]  # copies our weights into it
    differs: str
    silent: tuple[str, ...] = ()
    softcap: float | None = None  # of the logits, in both


@torch.no_grad()
def copy(theirs: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in weights.items():
        theirs.get_parameter(name).copy_(value)


def nanochat(shape: Shape) -> Peer:
    sys.path.insert(0, str(find("nanochat")))
    from nanochat import gpt

    gpt.has_ve = lambda layer, num_layers: False  # extra embeddings, which the control has not
    config = gpt.GPTConfig(
        sequence_len=shape.seq_len, vocab_size=shape.vocab_size, n_layer=shape.num_layers,
        n_head=shape.num_heads, n_kv_head=shape.num_heads, n_embd=shape.model_dim,
        window_pattern="L",
    )  # fmt: skip
    model = gpt.GPT(config)
    model.init_weights()

    def load(weights: dict[str, Tensor]) -> None:
        copied = outer_weights(weights, "transformer.wte", "lm_head")
        names = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for layer in range(shape.num_layers):
            for name, value in zip(names, block_weights(weights, layer), strict=True):
                copied[f"transformer.h.{layer}.{name}.weight"] = value
        copy(model, copied)
        with torch.no_grad():
            model.resid_lambdas.fill_(1)
            for scalar in (model.x0_lambdas, model.smear_lambda, model.backout_lambda):
                scalar.zero_()

    return Peer(
        model,
        loss=lambda inputs, targets: model(inputs, targets),
        load=load,
        differs="theirs scales q and k by 1.2, mixes in the embedding, the previous token and the "
        "middle layer by scalars; value embeddings taken out; logits soft-capped at 15 in both",
        silent=("attention.out",),
        softcap=15.0,
    )


def litgpt(shape: Shape) -> Peer:
    sys.path.insert(0, str(find("litgpt")))
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=shape.seq_len, n_layer=shape.num_layers, n_head=shape.num_heads,
        n_embd=shape.model_dim, vocab_size=shape.vocab_size, padded_vocab_size=shape.vocab_size,
        norm_class_name="RMSNorm", norm_eps=1e-6, norm_qk=True, parallel_residual=False,
        rotary_percentage=1.0, bias=False, mlp_class_name="GptNeoxMLP", gelu_approximate="tanh",
    )  # fmt: skip
    model = GPT(config)

    def load(weights: dict[str, Tensor]) -> None:
        copied = outer_weights(weights, "transformer.wte", "lm_head")
        for layer in range(shape.num_layers):
            q, k, v, out, up, down = block_weights(weights, layer)
            here = f"transformer.h.{layer}"
            copied[f"{here}.attn.qkv.weight"] = torch.cat([q, k, v])
            copied[f"{here}.attn.proj.weight"] = out
            copied[f"{here}.mlp.fc.weight"] = up
            copied[f"{here}.mlp.proj.weight"] = down
        copy(model, copied)

    return Peer(
        model,
        loss=lambda inputs, targets: chunked_cross_entropy(model(inputs), targets),
        load=load,
        differs="theirs has gains in its RMSNorms, tanh-GELU for relu^2, and no norm after the "
        "embedding; its loss is its pretraining's, in chunks of 128 tokens",
        silent=("mlp.down",),
    )


def x_transformers(shape: Shape) -> Peer:
    sys.path.insert(0, str(find("x-transformers")))
    from x_transformers import Decoder, TransformerWrapper

    head_dim = shape.model_dim // shape.num_heads
    model = TransformerWrapper(
        num_tokens=shape.vocab_size,
        max_seq_len=shape.seq_len,
        use_abs_pos_emb=False,
        attn_layers=Decoder(
            dim=shape.model_dim,
            depth=shape.num_layers,
            heads=shape.num_heads,
            attn_dim_head=head_dim,
            attn_flash=True,
            attn_qk_norm=True,
            attn_qk_norm_scale=math.sqrt(head_dim),
            rotary_pos_emb=True,
            rotary_emb_dim=head_dim,
            use_simple_rmsnorm=True,
            ff_relu_squared=True,
            ff_no_bias=True,
        ),
    )
    # Their pairs of channels are neighbours, ours half a head apart.
    halves = torch.arange(shape.model_dim).unflatten(0, (shape.num_heads, 2, head_dim // 2))
    neighbours = halves.transpose(1, 2).flatten()

    def load(weights: dict[str, Tensor]) -> None:
        copied = outer_weights(weights, "token_emb.emb", "to_logits")
        for layer in range(shape.num_layers):
            q, k, v, out, up, down = block_weights(weights, layer)
            attention = f"attn_layers.layers.{2 * layer}.1"
            mlp = f"attn_layers.layers.{2 * layer + 1}.1.ff"
            copied[f"{attention}.to_q.weight"] = q[neighbours]
            copied[f"{attention}.to_k.weight"] = k[neighbours]
            copied[f"{attention}.to_v.weight"] = v
            copied[f"{attention}.to_out.weight"] = out
            copied[f"{mlp}.0.0.weight"] = up
            copied[f"{mlp}.2.weight"] = down
        copy(model, copied)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return Peer(
        model,
        loss=loss,
        load=load,
        differs="theirs pairs neighbouring channels in its rotation, and has no norm after the "
        "embedding",
    )


PEERS = {"nanochat": nanochat, "litgpt": litgpt, "x-transformers": x_transformers}


def outer_weights(weights: dict[str, Tensor], embedding: str, head: str) -> dict[str, Tensor]:
    """Our embedding and head under a peer's names."""
    found = {embedding: "embedding", head: "head"}
    return {f"{theirs}.weight": weights[f"{ours}.weight"] for theirs, ours in found.items()}


def block_weights(weights: dict[str, Tensor], layer: int) -> list[Tensor]:
    """Our q, k, v, out, up and down of one block."""
    here = f"blocks.{layer}"
    fused = weights[f"{here}.attention.qkv.weight"].chunk(3)
    others = ("attention.out", "mlp.up", "mlp.down")
    return [*fused, *(weights[f"{here}.{name}.weight"] for name in others)]


def our_loss(model: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    adapter = load_adapter("vanilla")
    batch, step = batch_of(tokens), Step(number=0, progress=0.0, seed=0)
    return lambda: adapter.training_loss(model, batch, step).value


def build(shape: Shape) -> Control:
    """Our control with weights as after some training: nothing is zero, embeddings are normal."""
    torch.manual_seed(0)
    model = Control(
        model_config(
            "vanilla",
            {
                "num_layers": shape.num_layers,
                "num_heads": shape.num_heads,
                "model_dim": shape.model_dim,
            },
            seq_len=shape.seq_len,
            vocab_size=shape.vocab_size,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5 / math.sqrt(shape.model_dim))
        embedding = model.embedding.weight
        embedding.copy_(F.rms_norm(embedding, (shape.model_dim,)))
    return model


@torch.no_grad()
def check(
    ours: Control, peer: Peer, their_loss: Callable[[], Tensor], our_loss: Callable[[], Tensor]
) -> None:
    """Asserts equal losses where the unequal parts are silenced."""
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    for name in weights:
        if any(part in name for part in peer.silent):
            weights[name].zero_()
    kept = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.load_state_dict(weights)
    peer.load(weights)
    values = float(our_loss()), float(their_loss())
    assert abs(values[0] - values[1]) < 1e-4 * values[0], values
    ours.load_state_dict(kept)
    peer.load(kept)


def compare(name: str, shape: Shape, arguments: argparse.Namespace) -> dict[str, object]:
    """Tokens per second of both, and the ratio ours / theirs over rounds: median and range."""
    peer, ours = PEERS[name](shape), build(shape)
    generator = torch.Generator().manual_seed(1)
    size = (shape.batch_size, shape.seq_len + 1)
    tokens = torch.randint(shape.vocab_size, size, generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ours.logit_softcap = peer.softcap  # type: ignore[assignment]
    models = {name: peer.model, "nanozoo": ours}
    losses = {name: lambda: peer.loss(inputs, targets), "nanozoo": our_loss(ours, tokens)}
    check(ours, peer, *losses.values())
    row = race(
        name,
        *(adamw(model, losses[who]) for who, model in models.items()),
        arguments,
        num_tokens=targets.numel(),
        flops_per_token=load_adapter("vanilla").flops_per_token(ours.config, shape.seq_len),
    )
    sizes = {who: sum(p.numel() for p in m.parameters()) for who, m in models.items()}
    return row | {"parameters": sizes, "differs": peer.differs}


def main() -> None:
    arguments = begin(__doc__, SHAPES, peers=list(PEERS))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    results: dict[str, dict] = {}
    print(f"{'':<26}{'parameters':>18}{'':>8}{'tokens/s':>12}")
    print(f"{'shape':<10}{'peer':<16}{'theirs':>13}{'ours':>13}{'theirs':>10}{'ours':>10}   ratio")
    for name in arguments.shapes:
        for peer in arguments.peers:
            row = compare(peer, SHAPES[name], arguments)
            results.setdefault(name, {})[peer] = row
            print(f"{name:<10}{peer:<16}{show_sizes(row)}", flush=True)
    for peer in arguments.peers:
        print(f"{peer}: {results[arguments.shapes[0]][peer]['differs']}")
    end(arguments, results)


if __name__ == "__main__":
    main()
