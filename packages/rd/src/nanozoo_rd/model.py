"""The latent recurrent-depth transformer (Geiping et al. 2025, arXiv 2502.05171).

B batch, R rows of it, T sequence, D model_dim, H heads, K head_dim, V vocabulary. States are s,
the prelude's output is e.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanozoo_core.machine.precision import cast_for_product, widened
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.nn.attention import attend
from nanozoo_core.nn.feed_forward import SwiGLU
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles, apply_rotary, rotary_angles
from nanozoo_rd.cache import Decoding, DepthCache, Place
from nanozoo_rd.config import RDConfig
from nanozoo_rd.decoding import decode
from nanozoo_rd.noise import truncated_normal

EVAL_KEY = 0  # of the initial states of scores and text


class Norm(nn.Module):
    """RMSNorm with gain: statistics in float32, output in the dtype of the weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        precise = widened(x)
        return rms_norm(precise).to(self.weight.dtype) * self.weight


class Attention(nn.Module):
    """Causal attention with biases on queries and keys, before rotary positions turn them."""

    def __init__(self, config: RDConfig) -> None:
        super().__init__()
        dim, self.head_dim = config.model_dim, config.head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.qkv.weight.muon_split = (dim, dim, dim)  # type: ignore[attr-defined]
        self.qk_bias = nn.Parameter(torch.zeros(2, dim)) if config.qk_bias else None
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, angles: Angles, place: Place | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.qk_bias is not None:
            bias = cast_for_product(self.qk_bias, q)
            q, k = q + bias[0], k + bias[1]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (q, k, v))
        q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)  # (B, H, T, K)
        if place is None:
            y = attend(q, k, v)
        else:
            y = place.cache.attend(place.layer, q, k, v, rows=place.rows)
        return self.out(y.transpose(1, 2).flatten(2))


class SandwichBlock(nn.Module):
    """y = n2(x + Attention(n1(x))), then n4(y + MLP(n3(y))): the outer norms n2 and n4 sit on the
    stream itself, so that no number of iterations makes it grow."""

    def __init__(self, config: RDConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (
            Norm(config.model_dim) for _ in range(4)
        )
        self.attention = Attention(config)
        self.mlp = SwiGLU(config.model_dim, config.hidden_dim)

    def forward(self, x: Tensor, angles: Angles, place: Place | None = None) -> Tensor:
        x = self.norm_2(x + self.attention(self.norm_1(x), angles, place))
        return self.norm_4(x + self.mlp(self.norm_3(x)))


class Thought(NamedTuple):
    """The last state of the recurrence and the one before it, (B, T, D) each."""

    state: Tensor
    previous: Tensor


class RecurrentDepth(nn.Module):
    """Prelude, a core iterated on a random state, coda.

    e = P(sqrt(D) E[x]);  s_i = R(A [s_{i-1}; e]), i = 1 .. r;  logits = E n(C(n(s_r))).

    `features` and `forward` score and decode, as `decoding` says; training uses `read`, `iterate`
    and `finish`.
    """

    def __init__(self, config: RDConfig) -> None:
        super().__init__()
        self.config = config
        self.decoding = Decoding.of(config)
        self.max_context = config.seq_len
        dim = config.model_dim

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(SandwichBlock(config) for _ in range(count))

        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.prelude = blocks(config.num_prelude_layers)
        self.adapter = (
            nn.Linear(2 * dim, dim, bias=False) if config.adapter_mode == "concat" else None
        )
        self.core = blocks(config.num_core_layers)
        self.coda = blocks(config.num_coda_layers)
        self.norm = Norm(dim)  # the same one after the recurrence and before the head
        if not config.tie_embeddings:
            self.head = nn.Linear(dim, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal, cut at 3 standard deviations, with l layers at the mean depth:

        embedding, head, adapter, qkv, gate    std^2 = 2 / 5D
        attention.out, mlp.down, value half    std^2 = 2 / 5D / 2l
        gains 1, biases 0
        """
        std = math.sqrt(2 / (5 * self.config.model_dim))
        output_std = std / math.sqrt(2 * self.config.effective_layers)

        def draw(weight: Tensor, std: float) -> None:
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)

        for name, parameter in self.named_parameters():
            if name.endswith("qk_bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1)
            elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                draw(parameter, output_std)
            elif name.endswith("gate_up.weight"):
                gate, value = parameter.chunk(2)
                draw(gate, std)
                draw(value, output_std)
            else:
                draw(parameter, std)

    # -- the equations, in the paper's order ----------------------------------------------------

    def angles(self, positions: Tensor) -> Angles:
        return rotary_angles(positions, self.config.head_dim, base=self.config.rope_base)

    def read(self, tokens: Tensor, angles: Angles, cache: DepthCache | None = None) -> Tensor:
        """A_e e (B, T, D), what each iteration adds to its own A_s s; e in adapter_mode=add."""
        x = math.sqrt(self.config.model_dim) * self.embedding(tokens)
        for layer, block in enumerate(self.prelude):
            x = block(x, angles, None if cache is None else Place(cache, layer))
        if self.adapter is None:
            return x
        return F.linear(x, cast_for_product(self.adapter.weight, x)[:, self.config.model_dim :])

    def initial_state(
        self, key: Tensor | int, positions: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """s_0, (T, D) or (B, T, D): noise of position and channel and, with `rows`, of the row."""
        weight = self.embedding.weight
        dim, std = self.config.model_dim, self.config.state_std
        if std == 0:
            return weight.new_zeros(*positions.shape, dim)
        key = torch.as_tensor(key, device=positions.device)
        return (std * truncated_normal(key, positions, dim, rows)).to(weight.dtype)

    def step(
        self,
        state: Tensor,
        injected: Tensor,
        angles: Angles,
        place: Place | None = None,
    ) -> Tensor:
        """One iteration: s_i = R(A_s s_{i-1} + A_e e), (B, T, D)."""
        if self.adapter is not None:
            weight = cast_for_product(self.adapter.weight, state)
            state = F.linear(state, weight[:, : self.config.model_dim])
        x = state + injected
        for layer, block in enumerate(self.core):
            there = None if place is None else place._replace(layer=place.layer + layer)
            x = block(x, angles, there)
        return x

    # A graph of the loop would be built anew for every depth: only its step is compiled.
    @uncompiled(with_callees=False)
    def iterate(
        self,
        state: Tensor,
        injected: Tensor,
        angles: Angles,
        num_iterations: int,
        num_backprop: int | None = None,
        cache: DepthCache | None = None,
    ) -> Thought:
        """The recurrence from s_0; gradients reach the last `num_backprop` iterations alone, and
        through them e (None: all)."""
        first_backprop = 0 if num_backprop is None else num_iterations - num_backprop
        recompute = self.config.checkpoint_core and torch.is_grad_enabled()
        previous = state
        for i in range(num_iterations):
            previous = state
            place = None if cache is None else Place(cache, cache.core_layer(i))
            with torch.no_grad() if i < first_backprop else nullcontext():
                if recompute and i >= first_backprop:
                    state = checkpoint(
                        self.step, state, injected, angles, place, use_reentrant=False
                    )
                else:
                    state = self.step(state, injected, angles, place)
        return Thought(state, previous)

    def finish(
        self,
        state: Tensor,
        angles: Angles,
        cache: DepthCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Features (B, T, D) from the last state: n(C(n(s)))."""
        x = self.norm(state)
        for layer, block in enumerate(self.coda):
            place = None if cache is None else Place(cache, cache.first_coda + layer, rows)
            x = block(x, angles, place)
        return self.norm(x)

    # -- scoring and decoding -------------------------------------------------------------------

    @property
    def output_weight(self) -> Tensor:
        """(V, D): the rows that score each token."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D)."""
        return F.linear(features, self.output_weight)

    def forward(self, tokens: Tensor, cache: DepthCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> DepthCache:
        return DepthCache(self.config, self.decoding, batch_size, max_length, self.embedding.weight)

    def features(self, tokens: Tensor, cache: DepthCache | None = None) -> Tensor:
        """Final normalised stream (B, T, D) as `decoding` says; `cache` continues a sequence."""
        decoding = self.decoding if cache is None else cache.decoding
        is_prompt = cache is not None and tokens.shape[1] > 1
        in_parallel = is_prompt and decoding.prefill == "parallel"
        if decoding.is_sequential and not in_parallel:
            if cache is None:
                cache = self.init_cache(*tokens.shape)
            return decode(self, tokens, cache)[0]
        positions = self._positions(tokens, cache)
        angles = self.angles(positions)
        injected = self.read(tokens, angles, cache)
        state = self.evaluation_state(positions).expand_as(injected)
        state, _ = self.iterate(state, injected, angles, decoding.num_iterations, cache=cache)
        features = self.finish(state, angles, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return features

    def evaluation_state(self, positions: Tensor) -> Tensor:
        """s_0 of scores and text, (T, D) or (B, T, D)."""
        if self.config.s0_mode_eval == "zero":
            dim = self.config.model_dim
            return self.embedding.weight.new_zeros(*positions.shape, dim)
        return self.initial_state(EVAL_KEY, positions)

    def _positions(self, tokens: Tensor, cache: DepthCache | None) -> Tensor:
        length = tokens.shape[1]
        if cache is not None:
            return cache.positions(length)  # (B, T)
        return torch.arange(length, device=tokens.device)


Model = RecurrentDepth
