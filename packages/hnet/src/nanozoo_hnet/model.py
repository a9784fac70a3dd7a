"""H-Net: a hierarchy of networks over chunks that the model itself learns to draw.

A light encoder reads every byte, a router marks where chunks start, a large network runs once per
chunk, and its output is smoothed, spread over the bytes of each chunk and decoded. The large
network may be such a hierarchy again.

Shapes: B batch, L positions of a stage (T at stage 0), M its chunks (right-padded), D the stage's
model_dim, R rows of the batch, V vocabulary.
Reference: Hwang, Wang, Gu 2025, arXiv 2507.07955; section numbers below are the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.machine.uncompiled import uncompiled
from nanozoo_core.ops.backend import segment_starts
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.isotropic import Block, Isotropic
from nanozoo_hnet.kernels.dechunk import dechunk, smooth
from nanozoo_hnet.mixers import SSM, Attention
from nanozoo_hnet.routing import (
    FixedStride,
    Router,
    Routing,
    SpaceStarts,
    chunk_order,
    take_positions,
)
from nanozoo_hnet.state import HNetCache, StageState

# Chunks are padded to multiples of these, so that shapes come back: on a GPU; and on a CPU in half
# precision, whose matrix library compiles every new shape.
GPU_BUCKET, CPU_BUCKET = 128, 16
CHUNKS_PER_POSITION = 0.6  # room in the caches of an inner stage at first; it grows


class Widen(nn.Module):
    """Appends a learned vector to every position where a stage is wider than the one outside."""

    def __init__(self, outer_dim: int, model_dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(model_dim - outer_dim))

    def forward(self, x: Tensor) -> Tensor:
        vector = self.vector.to(x.dtype).expand(*x.shape[:-1], -1)
        return torch.cat([x, vector], dim=-1)


def widen(outer_dim: int, model_dim: int) -> nn.Module:
    return Widen(outer_dim, model_dim) if model_dim > outer_dim else nn.Identity()


class MainStage(nn.Module):
    """The innermost stage: one network."""

    def __init__(self, config: HNetConfig, stage: int, mixers: Mapping[str, Any]) -> None:
        super().__init__()
        dims = config.per_stage("model_dim")
        self.stage = stage
        self.widen = widen(dims[stage - 1], dims[stage])
        self.network = Isotropic(config, stage, config.stages[stage].main, mixers)

    def networks(self) -> list[Isotropic]:
        return [self.network]

    def empty_state(self, batch_size: int, max_length: int) -> list[Any]:
        return self.network.empty_states(batch_size, max_length)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        documents: Tensor | None = None,
        state: list[Any] | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        y = self.network(self.widen(x), state, None if state is None else lengths, documents)
        return y[..., : x.shape[-1]], []

    def route(
        self, x: Tensor, tokens: Tensor, lengths: Tensor, documents: Tensor | None = None
    ) -> list[Routing]:
        return []

    def step(
        self, x: Tensor, tokens: Tensor, state: list[Any], rows: Tensor | None = None
    ) -> Tensor:
        return self.network.step(self.widen(x), state, rows)[..., : x.shape[-1]]


class ChunkedStage(nn.Module):
    """Encoder, chunking, the stage inside, dechunking, decoder.

    A package that makes chunk vectors or spreads them otherwise overrides `pool` and `refine`, with
    `pool_step`, `refine_step`, `remember` and `empty_state` for decoding, and `per_chunk`. One that
    adds mixers extends `mixers`, and the letters of its config.
    """

    mixers: ClassVar[Mapping[str, Any]] = {"m": SSM, "t": Attention}

    def __init__(self, config: HNetConfig, stage: int) -> None:
        super().__init__()
        dims = config.per_stage("model_dim")
        layout = config.stages[stage]
        ratio = config.ratios[stage]
        self.stage = stage
        self.clamp = config.boundary_clamp
        self.capacity = config.capacity
        self.widen = widen(dims[max(stage - 1, 0)], dims[stage])
        self.encoder = Isotropic(config, stage, layout.encoder, self.mixers)
        self.chunker: Router | FixedStride | SpaceStarts = (
            Router(dims[stage])
            if config.chunking == "dynamic"
            else FixedStride(round(ratio))
            if config.chunking == "fixed"
            else SpaceStarts()
        )
        is_last = stage + 1 == config.num_chunkings
        self.inner: ChunkedStage | MainStage = (
            MainStage(config, stage + 1, self.mixers) if is_last else type(self)(config, stage + 1)
        )
        self.residual = nn.Linear(dims[stage], dims[stage])
        self.residual.weight.keeps_float32 = True  # type: ignore[attr-defined]
        self.decoder = Isotropic(config, stage, layout.decoder, self.mixers)

    def networks(self) -> list[Isotropic]:
        return [self.encoder, self.decoder]

    def per_chunk(self) -> list[nn.Module]:
        """Children that run once per chunk; all others run once per position."""
        return []

    # -- what a chunk's vector is, and what its positions get beside it ---------------------------

    def pool(self, h: Tensor, order: Tensor, documents: Tensor | None) -> Tensor:
        """What the stage inside reads of h (B, L, D): its vectors at the first position of each
        chunk, `order` (B, M) -> (B, M, D)."""
        return take_positions(h, order)

    def pool_step(self, h: Tensor, new: Tensor, state: StageState, rows: Tensor | None) -> Tensor:
        """The same of one position h (R, D), for those of its rows that start a chunk, `new`."""
        return h[new]

    def refine(self, y: Tensor, chunks: Tensor, index: Tensor, order: Tensor) -> Tensor:
        """What the decoder reads, (B, L, D), from the dechunked y, `chunks` (B, M, D), the chunk of
        each position `index` (B, L) and `order` (B, M)."""
        return y

    def refine_step(self, y: Tensor, state: StageState, rows: Tensor | None) -> Tensor:
        """The same of one position, (R, D) -> (R, D)."""
        return y

    def remember(self, h: Tensor, lengths: Tensor, state: StageState) -> None:
        """Puts into `state` what `pool_step` and `refine_step` need behind each row's end."""

    # -- running --------------------------------------------------------------------------------

    def empty_state(self, batch_size: int, max_length: int) -> StageState:
        weight = self.residual.weight
        inner_length = math.ceil(max_length * CHUNKS_PER_POSITION)
        return StageState(
            encoder=self.encoder.empty_states(batch_size, max_length),
            chunker=self.chunker.init_state(batch_size, weight.device),
            smoothed=torch.zeros(
                batch_size, weight.shape[0], device=weight.device, dtype=wide_dtype(weight)
            ),
            inner=self.inner.empty_state(batch_size, inner_length),
            decoder=self.decoder.empty_states(batch_size, max_length),
        )

    # The networks inside are worth compiling; the data-dependent shapes between them are not.
    @uncompiled(with_callees=False)
    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        lengths: Tensor | None = None,
        documents: Tensor | None = None,
        state: StageState | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Runs a whole sequence.

        Args:
            x: (B, L, D of the stage outside).
            tokens: (B, L), the first token of each position.
            lengths: (B,) positions that are not right-padding; None is all.
            documents: (B, L) document numbers, between which nothing passes; None is one document.
            state: an empty state, in which to leave what decoding needs; it needs `lengths`.

        Returns: x's shape, and the decisions of this and all inner stages, outermost first.
        """
        ends = None if state is None else lengths
        h = self.encoder(self.widen(x), state and state.encoder, ends, documents)  # (B, L, D)

        starts = None if documents is None else segment_starts(documents)
        routing = self._decide(h, tokens, lengths, starts)
        probs, boundaries = routing.probs, routing.boundaries  # (B, L)
        kept, order = self._pack(boundaries)  # (B, L), (B, M)

        chunks, routings = self.inner(
            self.pool(h, order, documents),
            tokens.gather(1, order),
            kept.sum(1),
            None if documents is None else documents.gather(1, order),
            state and state.inner,
        )
        chunk_probs = self._clamp(probs.gather(1, order))  # (B, M)
        chunk_starts = None if starts is None else starts.gather(1, order)
        y = dechunk(
            chunks,
            chunk_probs,
            kept.cumsum(1) - 1,
            torch.where(boundaries, probs, 1 - probs),
            self._residual(h),
            starts=chunk_starts,
        )
        if state is not None:
            assert lengths is not None
            rows = torch.arange(h.shape[0], device=h.device)
            state.chunker.put(None, self.chunker.state_after(h, tokens, lengths))
            smoothed = smooth(chunks, chunk_probs, starts=chunk_starts)
            state.smoothed = smoothed[rows, kept.sum(1) - 1]
            self.remember(h, lengths, state)
        y = self.refine(y, chunks, kept.cumsum(1) - 1, order)
        y = self.decoder(y, state and state.decoder, ends, documents)
        return y[..., : x.shape[-1]], [routing, *routings]

    @uncompiled(with_callees=False)
    def route(
        self,
        x: Tensor,
        tokens: Tensor,
        lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> list[Routing]:
        """The decisions of `forward` alone, which need no decoder and no main network."""
        h = self.encoder(self.widen(x), None, None, documents)
        starts = None if documents is None else segment_starts(documents)
        routing = self._decide(h, tokens, lengths, starts)
        kept, order = self._pack(routing.boundaries)
        inner = self.inner.route(
            self.pool(h, order, documents),
            tokens.gather(1, order),
            kept.sum(1),
            None if documents is None else documents.gather(1, order),
        )
        return [routing, *inner]

    def _decide(
        self, h: Tensor, tokens: Tensor, lengths: Tensor | None, starts: Tensor | None
    ) -> Routing:
        """Where chunks start, from h (B, L, D)."""
        probs = self.chunker(h, tokens, starts)  # (B, L)
        boundaries, valid = probs > 0.5, None
        if lengths is not None:
            valid = torch.arange(h.shape[1], device=h.device) < lengths[:, None]
            boundaries = boundaries & valid
        return Routing(probs, boundaries, valid)

    def step(
        self, x: Tensor, tokens: Tensor, state: StageState, rows: Tensor | None = None
    ) -> Tensor:
        """One position, (R, D outside) -> the same, of all rows or of `rows` (R,).

        Only rows at which a chunk starts advance the stage inside; the others hold its vector."""
        h = self.encoder.step(self.widen(x), state.encoder, rows)
        probs, remembered = self.chunker.step(h, tokens, state.chunker.take(rows))
        state.chunker.put(rows, remembered)
        new = (probs > 0.5).nonzero()[:, 0]
        pooled = self.pool_step(h, new, state, rows)
        if len(new):
            inner_rows = new if rows is None else rows[new]
            everyone = rows is None and len(new) == len(h)
            chunk = self.inner.step(
                pooled, tokens[new], state.inner, None if everyone else inner_rows
            )
            prob = self._clamp(probs[new])[:, None]
            mixed = prob * chunk + (1 - prob) * state.smoothed[inner_rows]
            state.smoothed = state.smoothed.index_copy(0, inner_rows, mixed)
        held = state.smoothed if rows is None else state.smoothed[rows]
        y = self.refine_step(held + self._residual(h), state, rows)
        return self.decoder.step(y, state.decoder, rows)[..., : x.shape[-1]]

    @uncompiled(with_callees=True)
    def _pack(self, boundaries: Tensor) -> tuple[Tensor, Tensor]:
        """The boundaries that become chunks (B, L), and their positions in order (B, M).

        With a capacity the first ones of each row stay, whatever their probability: choosing among
        all of them would look at the future. Evaluation has no cap."""
        length = boundaries.shape[1]
        if self.training and self.capacity is not None:
            num_chunks = math.ceil(length * self.capacity)
            boundaries = boundaries & (boundaries.cumsum(1) <= num_chunks)
        else:
            num_chunks = int(boundaries.sum(1).max())  # the only wait for the device
            is_half = torch.is_autocast_enabled("cpu") and not boundaries.is_cuda
            bucket = GPU_BUCKET if boundaries.is_cuda else CPU_BUCKET if is_half else 1
            num_chunks = min(-(-num_chunks // bucket) * bucket, length)
        return boundaries, chunk_order(boundaries, num_chunks)

    def _clamp(self, probs: Tensor) -> Tensor:
        return probs.clamp(self.clamp, 1 - self.clamp) if self.chunker.is_learned else probs

    def _residual(self, h: Tensor) -> Tensor:
        """W_res h + b in float32, also under autocast."""
        with torch.autocast(h.device.type, enabled=False):
            return self.residual(h.to(wide_dtype(h)))


class HNet(nn.Module):
    """Logits for the next token at every position; no position limit."""

    max_context = None
    stage_class: ClassVar[type[ChunkedStage]] = ChunkedStage

    def __init__(self, config: HNetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.per_stage("model_dim")[0]
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.stage = self.stage_class(config, 0)
        self.head = nn.Linear(dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """embedding        N(0, embed_std^2); initializer_range^2 when tied
        linear, head     N(0, initializer_range^2)
        to the residual  N(0, initializer_range^2 / n), n residual additions on the way: those of
                         the enclosing encoders and decoders and of this stage
        W_res, its bias  0;  router: identity;  gains: 1;  convolution, scan: their own
        """
        std = self.config.initializer_range
        self.embedding.weight.normal_(std=self.config.embed_std)
        self.head.weight.normal_(std=std)
        additions = 0
        for stage, layout in zip(self.stages(), self.config.stages, strict=True):
            additions += layout.height
            for network in stage.networks():
                network.init_weights(std, std / math.sqrt(additions))
            if isinstance(stage, ChunkedStage):
                stage.residual.weight.zero_()
                stage.residual.bias.zero_()

    def stages(self) -> list[ChunkedStage | MainStage]:
        """The stages, outermost first."""
        found: list[ChunkedStage | MainStage] = [self.stage]
        while isinstance(found[-1], ChunkedStage):
            found.append(found[-1].inner)
        return found

    def parameter_stages(self) -> dict[str, int]:
        """The stage of every parameter by name: embedding and head belong to stage 0, the vector
        that widens a stage to that stage."""
        numbers = {id(p): 0 for p in self.parameters()}
        for stage in self.stages():
            numbers |= {id(p): stage.stage for p in stage.parameters()}  # inner stages come last
        return {name: numbers[id(p)] for name, p in self.named_parameters()}

    def forward_flops(self, seq_len: int, shares: Tensor) -> Tensor:
        """FLOPs per token of a forward pass, when stage s has `shares[s]` positions per token."""
        total = torch.zeros_like(shares[0]) + 2.0 * self.head.weight.numel()
        for stage, share in zip(self.stages(), shares.unbind(), strict=True):
            inside: list[nn.Module] = []
            if isinstance(stage, ChunkedStage):
                inside = stage.per_chunk()
                total = total + shares[stage.stage + 1] * 2 * _linear_weights(inside)
                inside.append(stage.inner)
            own = [child for child in stage.children() if child not in inside]
            blocks = [m for child in own for m in child.modules() if isinstance(m, Block)]
            mixers = sum(block.mixer.flops(seq_len * share) for block in blocks)
            total = total + share * (2 * _linear_weights(own) + mixers)
        return total

    @property
    def output_weight(self) -> Tensor:
        return self.head.weight

    def encode(
        self, tokens: Tensor, documents: Tensor | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Features (B, T, D), whose product with output_weight is the logits, and the decisions of
        each chunking, outermost first. `documents` (B, T) counts only with reset_at_documents."""
        return self.stage(self.embedding(tokens), tokens, documents=self._boundaries_of(documents))

    def route(self, tokens: Tensor, documents: Tensor | None = None) -> list[Routing]:
        """The decisions of `encode` alone, at a part of its cost."""
        documents = self._boundaries_of(documents)
        return self.stage.route(self.embedding(tokens), tokens, documents=documents)

    def _boundaries_of(self, documents: Tensor | None) -> Tensor | None:
        """Documents between which nothing passes; None where the settings make them one."""
        if documents is None or not self.config.reset_at_documents:
            return None
        return documents.long()

    def features(self, tokens: Tensor, cache: HNetCache | None = None) -> Tensor:
        """(B, T, D); with a cache the tokens continue what it holds."""
        if cache is None:
            return self.encode(tokens)[0]
        if cache.is_empty:
            lengths = torch.full_like(cache.lengths, tokens.shape[1])
            return self.read(tokens, lengths, cache)
        steps = [
            self.stage.step(self.embedding(token), token, cache.state) for token in tokens.unbind(1)
        ]
        cache.lengths = cache.lengths + tokens.shape[1]
        return torch.stack(steps, dim=1)

    def forward(self, tokens: Tensor, cache: HNetCache | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T)."""
        return self.head(self.features(tokens, cache))

    # -- decoding -------------------------------------------------------------------------------

    def init_cache(self, batch_size: int, max_length: int) -> HNetCache:
        """An empty decoding state for `batch_size` rows of about `max_length` tokens."""
        device = self.embedding.weight.device
        return HNetCache(
            state=self.stage.empty_state(batch_size, max_length),
            lengths=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def read(self, tokens: Tensor, lengths: Tensor, cache: HNetCache) -> Tensor:
        """Reads right-padded rows (B, T) of `lengths` (B,) into an empty cache -> (B, T, D)."""
        assert cache.is_empty
        cache.is_empty = False
        cache.lengths = lengths.to(cache.lengths)
        return self.stage(self.embedding(tokens), tokens, cache.lengths, state=cache.state)[0]


def _linear_weights(modules: list[nn.Module]) -> int:
    found = [m for module in modules for m in module.modules()]
    return sum(m.weight.numel() for m in found if isinstance(m, nn.Linear))


Model = HNet
