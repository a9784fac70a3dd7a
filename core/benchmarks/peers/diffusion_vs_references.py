"""A training step of our mdl and sedd beside the code of their papers, same shape and tokens.

    PEERS=<folder that holds mdlm/ and Score-Entropy-Discrete-Diffusion/> \
        python core/benchmarks/peers/diffusion_vs_references.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is fresh noise, loss, gradients, AdamW(fused=True) and zero_grad, without
dropout; theirs runs in the fastest of its forms and ours as --dtype says. Theirs is their own loss
over their own network, with our stand-ins for what they import and do not need here: flash_attn
becomes torch's attention and a rotation in place, einops three reshapes. Ours is what our trainer
runs; before as many scored tokens as theirs, a window of ours has one of clean context. Before
timing, the two networks must agree on the logits of equal weights, and mdl's loss on equal noise
with theirs. sedd runs where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from race import Contestant, adamw, begin, end, find, race, show_race
from torch import Tensor, nn

from nanozoo_core import registry
from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.diffusion.bounds import MaskDraw, network_draw_sum
from nanozoo_core.diffusion.dit import DiT
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED
from nanozoo_core.testing.sources import batch_of

# Layers, heads, width, sequence, batch, vocabulary.
SHAPES = {
    "tiny256": (4, 4, 128, 256, 16, 256),
    "tiny4096": (4, 4, 128, 256, 16, 4096),
    "124M": (12, 12, 768, 512, 1, 50257),
}
MODELS = ["mdl", "sedd"]
FOLDERS = {"mdl": "mdlm", "sedd": "Score-Entropy-Discrete-Diffusion"}
COND_DIM = 128


# -- what the references import -------------------------------------------------------------------


class RotateInPlace(torch.autograd.Function):
    """flash_attn's rotation of queries and keys in a packed (B, S, 3, H, K), both ways in place."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.mark_dirty(qkv)
        rotate_(qkv[:, :, :2], cos, sin)
        return qkv

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        rotate_(grad[:, :, :2], cos, -sin)
        return grad, None, None


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Of x (B, S, 2, H, K) by angles (S, K / 2)."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    first, second = x.chunk(2, dim=-1)
    turned = first * cos - second * sin
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)


def attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float, causal: bool
) -> Tensor:
    """flash_attn's packed attention of windows of equal length, (B * S, 3, H, K)."""
    assert not causal
    q, k, v = qkv.unflatten(0, (-1, max_seqlen)).permute(2, 0, 3, 1, 4)  # (B, H, S, K)
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    return y.transpose(1, 2).flatten(0, 1)  # (B * S, H, K)


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """The three patterns of einops that the references use."""
    if pattern == "b s (three h d) -> b s three h d":
        return x.unflatten(-1, (sizes["three"], sizes["h"], -1))
    if pattern == "b s ... -> (b s) ...":
        return x.flatten(0, 1)
    assert pattern == "(b s) h d -> b s (h d)", pattern
    return x.flatten(1).unflatten(0, (sizes["b"], -1))


def stand_ins() -> dict[str, ModuleType]:
    """By name: what computes, and empty shells of what only the references' other code needs."""

    def module(name: str, **attributes: object) -> ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(attributes)
        return made

    names: dict[str, dict[str, object]] = {
        "flash_attn": {},
        "flash_attn.layers": {},
        "flash_attn.layers.rotary": {"apply_rotary_emb_qkv_": RotateInPlace.apply},
        "flash_attn.flash_attn_interface": {"flash_attn_varlen_qkvpacked_func": attention},
        "einops": {"rearrange": rearrange},
        "huggingface_hub": {"PyTorchModelHubMixin": type("PyTorchModelHubMixin", (), {})},
        "lightning": {"LightningModule": nn.Module},
        "torchmetrics": {},
        "torchmetrics.aggregation": {"MeanMetric": object},
        "transformers": {"PreTrainedTokenizer": object},
        "dataloader": {},
        "models": {},
        "utils": {"print_nans": lambda tensor, name: None},
    }
    made = {name: module(name, **attributes) for name, attributes in names.items()}
    for name, child in made.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, child)
    return made


@contextmanager
def importing_from(folder: Path, *, without: tuple[str, ...] = ()) -> Iterator[None]:
    """Imports find `folder` first, and the stand-ins; afterwards both are gone again, so that the
    two references' modules of one name do not meet."""
    before = dict(sys.modules)
    sys.modules.update({k: v for k, v in stand_ins().items() if k not in without})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            file = getattr(sys.modules[name], "__file__", None)
            if file is None or str(folder) in str(file):
                del sys.modules[name]


def checkout(model: str) -> Path:
    return find(FOLDERS[model])


# -- theirs ---------------------------------------------------------------------------------------


def network_settings(name: str) -> SimpleNamespace:
    num_layers, num_heads, model_dim, seq_len, _, _ = SHAPES[name]
    return SimpleNamespace(
        hidden_size=model_dim, cond_dim=COND_DIM, length=seq_len, n_blocks=num_layers,
        n_heads=num_heads, scale_by_sigma=True, dropout=0.0,
    )  # fmt: skip


def mdlm(name: str) -> nn.Module:
    """Their `Diffusion`, without its tokenizer, metrics and averages, in the paper's settings."""
    vocab_size = SHAPES[name][-1]
    folder = checkout("mdl")
    with importing_from(folder):
        diffusion = importlib.import_module("diffusion")
        noise = importlib.import_module("noise_schedule")
        spec = importlib.util.spec_from_file_location("mdlm_dit", folder / "models" / "dit.py")
        assert spec is not None
        assert spec.loader is not None
        dit = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(dit)
    settings = network_settings(name)
    peer = diffusion.Diffusion.__new__(diffusion.Diffusion)
    nn.Module.__init__(peer)
    peer.config = SimpleNamespace(model=settings)
    peer.backbone = dit.DIT(peer.config, vocab_size=vocab_size + 1)
    peer.noise = noise.LogLinearNoise()
    peer.mask_index, peer.vocab_size = vocab_size, vocab_size + 1
    peer.parameterization, peer.T = "subs", 0
    peer.antithetic_sampling, peer.sampling_eps = True, 1e-3
    peer.importance_sampling = peer.change_of_variables = peer.time_conditioning = False
    peer.neg_infinity = -1000000.0
    return peer


def sedd_network_and_loss(name: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Their network, absorbing, and their loss with the log-linear noise."""
    vocab_size = SHAPES[name][-1]
    with importing_from(checkout("sedd"), without=("utils", "models")):
        transformer = importlib.import_module("model.transformer")
        losses = importlib.import_module("losses")
        graph = importlib.import_module("graph_lib").Absorbing(vocab_size)
        noise = importlib.import_module("noise_lib").LogLinearNoise()
    config = SimpleNamespace(
        tokens=vocab_size, graph=SimpleNamespace(type="absorb"), model=network_settings(name)
    )
    return transformer.SEDD(config), losses.get_loss_fn(noise, graph, train=True)


# -- ours -----------------------------------------------------------------------------------------


def our_model(model: str, name: str) -> nn.Module:
    num_layers, num_heads, model_dim, seq_len, _, vocab_size = SHAPES[name]
    settings: dict[str, object] = {
        "num_layers": num_layers,
        "num_heads": num_heads,
        "model_dim": model_dim,
        **AS_PUBLISHED,
    }
    if model == "sedd":
        settings |= {"time_conditioning": True, "cond_dim": COND_DIM}  # as the released one
    config = model_config(model, settings, seq_len=seq_len, vocab_size=vocab_size)
    return load_adapter(model).model_class(config)


def our_loss(model: str, ours: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    """Every call is a step of its own, with its noise."""
    adapter, batch = load_adapter(model), batch_of(tokens)

    def loss() -> Tensor:
        number = int(torch.randint(2**31, ()))
        return adapter.training_loss(ours, batch, Step(number, 0.0, 0)).value

    return loss


# -- do they agree --------------------------------------------------------------------------------


def move_away(network: nn.Module) -> None:
    """From the zeros that a network starts with, which would hide a difference."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def same_weights(theirs: nn.Module, name: str) -> DiT:
    """Our backbone in the references' layout; their column of the mask is left out."""
    num_layers, num_heads, model_dim, seq_len, _, vocab_size = SHAPES[name]
    ours = DiT(
        vocab_size + 1, vocab_size, model_dim=model_dim, num_layers=num_layers,
        num_heads=num_heads, seq_len=seq_len, time_conditioning=True, cond_dim=COND_DIM,
    )  # fmt: skip
    names = {
        "vocab_embed.embedding": "embedding.weight",
        "output_layer.norm_final.weight": "norm.weight",
    }
    parts = {
        "norm1": "norm_attention",
        "attn_qkv": "qkv",
        "attn_out": "out",
        "norm2": "norm_mlp",
        "mlp.0": "up",
        "mlp.2": "down",
        "adaLN_modulation": "condition",
    }
    pairs = [(f"blocks.{i}.{a}", f"blocks.{i}.{b}") for i in range(num_layers) for a, b in
             parts.items()]  # fmt: skip
    pairs += [("sigma_map.mlp.0", "time_embedding.input"), ("output_layer.linear", "head")]
    pairs += [("sigma_map.mlp.2", "time_embedding.output")]
    pairs += [("output_layer.adaLN_modulation", "condition")]
    for old, new in pairs:
        names |= {f"{old}.{kind}": f"{new}.{kind}" for kind in ("weight", "bias")}
    state = {names[key]: value for key, value in theirs.state_dict().items() if key in names}
    for kind in ("weight", "bias"):
        state[f"head.{kind}"] = state[f"head.{kind}"][:vocab_size]
    ours.load_state_dict(state)
    return ours


@torch.no_grad()
def networks_differ_by(theirs: nn.Module, name: str, tokens: Tensor) -> float:
    """The largest difference of logits, where the reference has not overwritten any."""
    vocab_size = SHAPES[name][-1]
    ours = same_weights(theirs, name)
    sigma = torch.full((tokens.shape[0],), 0.7)
    scaled = getattr(theirs, "absorb", False)
    if scaled:  # SEDD's logits: the scaling by sigma is added, and those of the input are 0
        theirs.scale_by_sigma = False
    found, expected = ours(tokens, sigma), theirs(tokens, sigma)[..., :vocab_size]
    if scaled:
        theirs.scale_by_sigma = True
        places = torch.where(tokens < vocab_size, tokens, 0)[..., None]
        found, expected = found.scatter(-1, places, 0), expected.scatter(-1, places, 0)
    return float((found - expected).abs().max())


@torch.no_grad()
def losses_differ_by(peer: nn.Module, name: str, tokens: Tensor) -> float:
    """Of mdl, per token and relative, with the noise of one lent to the other."""
    vocab_size = SHAPES[name][-1]
    t = torch.linspace(0.2, 0.9, tokens.shape[0])
    masked = torch.rand(tokens.shape) < t[:, None]
    masked[:, 0] = False  # theirs has no context token: the first is that of ours
    net = same_weights(peer.backbone, name)
    net.time_conditioning = False  # a constant time, as theirs
    weight = peer.noise(t)[1] / torch.expm1(peer.noise(t)[0])
    draw = MaskDraw(masked[:, 1:], t.double(), weight.double())
    ours = network_draw_sum(net, tokens[:, :1], vocab_size, tokens[:, 1:], draw) / tokens.numel()
    peer._sample_t = lambda count, device: t
    peer.q_xt = lambda x, move_chance: torch.where(masked, vocab_size, x)
    theirs = peer._loss(tokens, torch.ones_like(tokens)).loss
    del peer._sample_t, peer.q_xt
    return float((ours - theirs).abs() / theirs)


# -- the race -------------------------------------------------------------------------------------


def contestants(model: str, name: str) -> tuple[Contestant, Contestant, Any, dict[str, float]]:
    """Theirs, ours, the settings of ours, and by how much the two differ."""
    _, _, _, seq_len, batch_size, vocab_size = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (batch_size, seq_len + 1), generator=generator)
    torch.manual_seed(0)
    with_masks = tokens[:, :-1].masked_fill(torch.rand(batch_size, seq_len) < 0.5, vocab_size)
    if model == "mdl":
        theirs = mdlm(name)
        network = theirs.backbone
        everything = torch.ones_like(tokens[:, 1:])

        def their_loss() -> Tensor:
            return theirs._loss(tokens[:, 1:], everything).loss
    else:
        network, loss = sedd_network_and_loss(name)
        theirs = network

        def their_loss() -> Tensor:
            return loss(network, tokens[:, 1:]).mean() / seq_len

    move_away(network)
    found = {"logits_differ_by": networks_differ_by(network, name, with_masks)}
    assert found["logits_differ_by"] <= 1e-4, found
    if model == "mdl":
        found["losses_differ_by"] = losses_differ_by(theirs, name, tokens[:, 1:])
        assert found["losses_differ_by"] <= 1e-4, found
    ours = our_model(model, name)
    move_away(ours)
    both = adamw(theirs, their_loss), adamw(ours, our_loss(model, ours, tokens))
    return *both, ours.config, found


def compare(model: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    theirs, ours, config, found = contestants(model, name)
    _, _, _, seq_len, batch_size, _ = SHAPES[name]
    row = race(
        "reference",
        theirs,
        ours,
        arguments,
        num_tokens=batch_size * seq_len,
        flops_per_token=load_adapter(model).flops_per_token(config, seq_len),
    )
    return row | found


def main() -> None:
    arguments = begin(__doc__, SHAPES, models=MODELS)
    installed = registry.model_summaries()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    # The references ask for autocast on CUDA, which is not there, and for a retired compiler.
    warnings.filterwarnings("ignore", message=".*(autocast|torch.jit.script).*")
    print(f"{'model':<6}{'shape':<10}{'theirs tok/s':>14}{'ours tok/s':>14}{'ratio':>8}  (range)")
    for model in arguments.models:
        if model not in installed:
            print(f"{model:<6}is not installed")
            continue
        for name in arguments.shapes:
            row = compare(model, name, arguments)
            results.setdefault(model, {})[name] = row
            print(
                f"{model:<6}{name:<10}{row['reference_tokens_per_second']:>14,.0f}"
                f"{row['nanozoo_tokens_per_second']:>14,.0f}{show_race(row)}"
            )
    end(arguments, results)


if __name__ == "__main__":
    main()
