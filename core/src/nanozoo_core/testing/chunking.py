"""What the tests of models with learned chunks share: small sizes, texts, and laws that all keep.

Shapes: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.testing.starts import Check, between, constant, spread

SHAPE: dict[str, Any] = {
    "model_dim": [32, 48],
    "mlp_dim": [0, 64],
    "num_heads": [2, 3],
    "rotary_emb_dim": [8, 8],
    "window_size": [15, -1],
    "ssm_cfg": {"d_state": 8, "head_dim": 16, "chunk_size": 16},
}
"""Of one chunking."""
SMALL: dict[str, Any] = {"vocab_size": 258} | SHAPE
OWN_ROLES = {
    "stage.encoder.blocks.*.mixer.dt_proj.weight": "vector",
    "stage.decoder.blocks.*.mixer.dt_proj.weight": "vector",
    "stage.chunker.query.weight": "vector",
    "stage.chunker.key.weight": "vector",
    "stage.residual.weight": "head",
}
"""Of the parts that chunk, where core would give others."""
_OF_ATTENTION, _OF_MAMBA = "a list over stages, of t layers", "of m layers"
PART_KEYS = dict.fromkeys(("rotary_emb_dim", "window_size"), _OF_ATTENTION) | dict.fromkeys(
    (f"ssm_cfg.{name}" for name in ("d_state", "d_conv", "expand", "head_dim")), _OF_MAMBA
)
"""Sizes of layers that a layout may lack."""

TWO_STAGES: dict[str, Any] = SMALL | {
    "arch_layout": ["m1", ["T1m1", ["T1"], "m1t1"], "m1"],
    "model_dim": [32, 48, 64],
    "mlp_dim": [0, 64, 64],
    "num_heads": [2, 3, 4],
    "rotary_emb_dim": 8,
    "window_size": [15, 7, -1],
}


def build(
    kind: type[nn.Module], name: str, settings: Mapping[str, Any], *, seed: int = 0, noise: float
) -> Any:
    """A model of this kind with the settings of model `name`, whose parts that start at zero may be
    given noise, so that they matter."""
    torch.manual_seed(seed)
    model = kind(model_config(name, dict(settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def text(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random bytes, about one in five a space."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(97, 123, (batch, length), generator=generator)
    return tokens.masked_fill(torch.rand(batch, length, generator=generator) < 0.2, 32)


class Bytes:
    """Just enough of a byte tokenizer."""

    name, size, separator, token_bytes = "bytes", 258, 256, torch.ones(258)

    def encode(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return bytes(token for token in tokens if token < 256)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.decode_bytes(tokens).decode(errors="replace")


# -- laws -----------------------------------------------------------------------------------------


def moved_too_early(model: Any, tokens: Tensor, place: int) -> float:
    """How far the logits before `place` move when the byte there changes; those there must."""
    changed = tokens.clone()
    changed[:, place] = 300 - changed[:, place] - 97
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert (after[:, place] - before[:, place]).abs().max() > 1e-3
    return float((after[:, :place] - before[:, :place]).abs().max())


def assert_rows_are_as_alone(model: Any, tokens: Tensor) -> None:
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, rtol=1e-5, atol=1e-5)


def assert_documents_are_apart(model: Any, tokens: Tensor, cut: int) -> None:
    """A model that resets at documents reads two of them as if alone; one that does not, not."""
    documents = (torch.arange(tokens.shape[1]) >= cut).int().expand(tokens.shape[0], -1)
    together = model.encode(tokens, documents)[0]
    apart = torch.cat([model.features(tokens[:, :cut]), model.features(tokens[:, cut:])], dim=1)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    model.config = replace(model.config, reset_at_documents=False)
    assert (model.encode(tokens, documents)[0] - apart).abs().max() > 1e-3


@torch.no_grad()
def decode(model: Any, tokens: Tensor, lengths: Tensor, steps: int, room: int) -> Tensor:
    """Logits of prefilling ragged prompts and reading `steps` more tokens, (B, steps, V)."""
    cache = model.init_cache(len(tokens), room)
    model.read(tokens[:, : int(lengths.max())], lengths, cache)
    rows = torch.arange(len(tokens))
    return torch.cat(
        [model(tokens[rows, lengths + i][:, None], cache=cache) for i in range(steps)], dim=1
    )


def assert_decoding_is_the_forward_pass(
    model: Any, tokens: Tensor, lengths: Tensor, steps: int, room: int
) -> None:
    """Prefill of prompts of these `lengths` (B,) and then `steps` tokens, one at a time."""
    full = model(tokens).detach()
    found = decode(model, tokens, lengths, steps, room)
    for row, length in enumerate(lengths.tolist()):
        expected = full[row, length : length + steps]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-4)


def assert_main_network_runs_at_chunks_alone(
    model: Any, tokens: Tensor, prompt: int, steps: int
) -> None:
    """The innermost network of one chunking, while `steps` tokens are decoded behind a prompt."""
    calls = 0
    step = model.stage.inner.step

    def counted(*given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return step(*given)

    model.stage.inner.step = counted
    decode(model, tokens, torch.tensor([prompt]), steps, tokens.shape[1])
    boundaries = model.encode(tokens)[1][0].boundaries[0, prompt : prompt + steps]
    assert calls == int(boundaries.sum()) < steps / 2


# -- starts ---------------------------------------------------------------------------------------


def hierarchy_starts(additions: Mapping[str, int], *, with_mlp: Sequence[str]) -> dict[str, Check]:
    """Rules for `assert_starts`, of all that such models share but the router.

    Args:
        additions: residual additions on the way out of each stage, by the stage's name; the last is
            the innermost.
        with_mlp: stages that have MLPs.
    """
    convolution = spread(0.5 / math.sqrt(3))  # torch's own, uniform up to 1 / sqrt(4 taps)
    rules: dict[str, Check] = {
        "embedding.weight": spread(1.0),
        "head.weight": spread(0.02),
        "*norm.weight": constant(1.0),
        "*.residual.*": constant(0.0),
        "*.widen.vector": constant(0.0),
        "*.qkv.weight": spread(0.02),
        "*.gate_up.weight": spread(0.02),
        "*.in_proj.weight": spread(0.02),
        "*.dt_proj.weight": spread(0.02),
        "*.conv.weight": convolution,
        "*.conv.bias": convolution,
        "*.A_log": between(1.0, 16.0, torch.exp),
        "*.dt_bias": between(math.log(1e-3), math.log(1e-1), lambda x: F.softplus(x).log()),
        "*.skip": constant(1.0),
    }
    innermost = list(additions)[-1]
    for stage, count in additions.items():
        for network in ("network",) if stage == innermost else ("encoder", "decoder"):
            kinds = ("mixer.out_proj", "mlp.down") if stage in with_mlp else ("mixer.out_proj",)
            output = spread(0.02 / math.sqrt(count))
            rules |= {f"{stage}.{network}.*.{kind}.weight": output for kind in kinds}
    return rules


def assert_first_loss_is_that_of_a_small_head(model: Any, width: int) -> None:
    """Features of mean square 1 times `width` weights of deviation 0.02 are logits of variance
    width * 0.02^2, which cost half of that beyond a uniform guess."""
    size = model.config.vocab_size
    tokens = torch.randint(size, (2, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    variance = width * 0.02**2
    assert abs(loss - math.log(size) - variance / 2) < 0.05
    assert abs(float(logits.var()) / variance - 1) < 0.1
