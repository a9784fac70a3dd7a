"""The speedrun record as one decoder.

B batch, T sequence, D model_dim, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.norms import rms_norm
from nanozoo_current_best_gpt import schedule
from nanozoo_current_best_gpt.attention import EPS, Angles, View
from nanozoo_current_best_gpt.blocks import Bigram, Block, MuddBlock, Streams
from nanozoo_current_best_gpt.cache import RingCache
from nanozoo_current_best_gpt.coefficients import Coefficients, Table, gate_entries, head_entries
from nanozoo_current_best_gpt.config import SMEAR_DIMS, CurrentBestConfig

EMBEDDING_STD = 0.005
TABLE_STD = 0.01


class CurrentBestGPT(nn.Module):
    """Embedding, bigrams and gates; blocks; a last mix of streams; a soft-capped head.

    `stage` says which windows hold: a stage of the schedule, or that training is over. It is a
    buffer, so that a checkpoint scores and decodes as the run did. `separator` is the token that
    begins a document, if the vocabulary has one.
    """

    stage: Tensor  # () int64
    output_bias: Tensor | None  # (V,): the B of softcap, in the units of the head

    def __init__(self, config: CurrentBestConfig) -> None:
        super().__init__()
        self.config = config
        self.separator: int | None = None
        dim, layers = config.model_dim, config.num_layers
        self.embedding = nn.Embedding(config.vocab_size, dim)
        if config.smear:
            self.smear_gate = nn.Parameter(torch.empty(1, SMEAR_DIMS))
            self.smear_scale = nn.Parameter(torch.empty(1))
        self.bigram = None
        if config.bigram_rows:
            self.bigram = Bigram(config.bigram_rows, config.bigram_sign_rows, dim)
        self.tables = nn.ModuleList(
            nn.Embedding(config.vocab_size, dim) for _ in config.value_embed_layers
        )
        early, late = gate_entries(config)
        self.early_gates = Coefficients(dim, config.gate_dim, early) if early else None
        self.late_gates = Coefficients(dim, config.gate_dim, late) if late else None
        if early or late:
            self.gate_scale = nn.Parameter(torch.empty(1))  # tau of both
        self.blocks = nn.ModuleList(
            MuddBlock(config, layer)
            if config.mudd and layer == layers - 1
            else Block(config, layer)
            for layer in range(layers)
        )
        self.mix = self.backout = None
        if config.mudd:
            self.mix = Coefficients(dim, config.mudd_dim, head_entries(config))
        elif config.backout:
            self.backout = nn.Parameter(torch.empty(1))
        self.head = None
        if config.untie_at is not None:
            self.head = nn.Linear(dim, config.vocab_size, bias=False)
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        # A sigmoid((z + B) / C) is c tanh((z + B) s / c) + c with c = A / 2, s = A / 4C, and the
        # last c drops out of the softmax: so the shared soft-capped loss serves.
        self.logit_softcap = self.feature_scale = None
        bias = None
        if config.softcap is not None:
            height, shift, width = config.softcap
            self.logit_softcap, self.feature_scale = height / 2, height / (4 * width)
            bias = torch.full((config.vocab_size,), shift * self.feature_scale)
        self.register_buffer("output_bias", bias, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """
        embedding     N(0, 0.005^2), the head equal to it
        tables        N(0, 0.01^2)
        bigram        Bigram.init_weights
        gates, mix    Coefficients.init_weights; gate_scale 0.1
        smear         0
        backout       -backout
        blocks        Block.init_weights
        """
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        if self.head is not None:
            with torch.no_grad():
                self.head.weight.copy_(self.embedding.weight)
        for table in self.tables.parameters():
            nn.init.normal_(table, std=TABLE_STD)
        if self.config.smear:
            nn.init.zeros_(self.smear_gate)
            nn.init.zeros_(self.smear_scale)
        if self.early_gates is not None or self.late_gates is not None:
            nn.init.constant_(self.gate_scale, 0.1)
        if self.backout is not None:
            nn.init.constant_(self.backout, -self.config.backout)

    @property
    def output_weight(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def max_context(self) -> int | None:
        """No limit where the windows keep every distance to what training has seen."""
        reach = schedule.windows(self.config, self.config.num_stages)[1]
        return None if reach <= self.config.seq_len else self.config.seq_len

    def set_stage(self, stage: int) -> None:
        self.stage.fill_(stage)

    # -- the forward pass, in the order of the data ------------------------------------------------

    def features(
        self, tokens: Tensor, cache: RingCache | None = None, *, stage: int | None = None
    ) -> Tensor:
        """What the head multiplies, (B, T, D), for tokens (B, T); `cache` continues a sequence.

        Args: stage: whose windows hold; None is the model's own.
        """
        if cache is not None and int(cache.lengths.max()) > 0 and tokens.shape[1] > cache.most_new:
            parts = tokens.split(cache.most_new, dim=1)
            return torch.cat([self.features(part, cache, stage=stage) for part in parts], dim=1)
        stage = int(self.stage) if stage is None else stage
        view, before = self._look(tokens, cache, stage)
        streams = self._enter(tokens, before, view.starts)
        x = self._run(streams, view)
        if cache is not None:
            cache.advance()
        x = rms_norm(x, EPS)
        return x if self.feature_scale is None else x * self.feature_scale

    def _look(self, tokens: Tensor, cache: RingCache | None, stage: int) -> tuple[View, Tensor]:
        """What all layers share, and the token before each."""
        config = self.config
        documents = None
        if cache is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            before = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
            starts = (positions == 0).expand(tokens.shape)
            if self.separator is not None:
                separators = tokens == self.separator
                if config.reset_at_document:
                    starts = starts | separators
                if config.document_mask:
                    documents = separators.cumsum(1)
        else:
            positions, before, starts = cache.begin(tokens)
            if cache.documents is not None:
                legal = positions.clamp(max=cache.max_length - 1)
                documents = cache.documents.gather(1, legal)
        frequencies = torch.tensor(schedule.rotary_frequencies(config, stage), device=tokens.device)

        def turn(places: Tensor) -> Angles:
            angles = places.float()[..., None] * frequencies
            return angles.cos(), angles.sin()

        short, long = schedule.windows(config, stage)
        view = View(
            angles=turn(positions),
            paired_angles=(turn(2 * positions), turn(2 * positions + 1)),
            windows={"S": short, "L": long},
            scale=schedule.attention_scale(config, stage),
            starts=starts,
            documents=documents,
            cache=cache,
        )
        return view, before

    def _enter(self, tokens: Tensor, before: Tensor, starts: Tensor) -> Streams:
        """The embedding, smeared and normalised, and all else that is looked up."""
        e = self.embedding(tokens)  # (B, T, D)
        if self.config.smear:
            gate = torch.sigmoid(F.linear(e[..., :SMEAR_DIMS], self.smear_gate))  # (B, T, 1)
            gate = (self.smear_scale * gate).masked_fill(starts[..., None], 0)
            e = e + gate * self.embedding(before)
        bigram = None if self.bigram is None else self.bigram(tokens, before, starts)
        layers = self.config.value_embed_layers
        tables = {n: table(tokens) for n, table in zip(layers, self.tables, strict=True)}
        return Streams(rms_norm(e, EPS), bigram, tables)

    def _run(self, streams: Streams, view: View) -> Tensor:
        config, gates, x = self.config, streams.gates, streams.x0
        if self.early_gates is not None:
            gates |= self.early_gates(streams.x0, self.gate_scale)
        if streams.bigram is not None:
            x = x + gates["bigram", 0] * streams.bigram
        streams.start = x
        for layer, block in enumerate(self.blocks):
            if layer == config.gate_split_layer and self.late_gates is not None:
                gates |= self.late_gates(x, self.gate_scale)
            if layer == config.num_layers - 1:
                streams.entry = x
            x = block(x, streams, view)
            if layer == config.snapshot_layer:
                streams.snapshot = x
            if config.skip is not None and layer == config.skip[0]:
                streams.skip = x
        return self._mix(x, streams)

    def _mix(self, x: Tensor, streams: Streams) -> Tensor:
        if self.backout is not None:
            assert streams.snapshot is not None
            return x + self.backout * streams.snapshot
        if self.mix is None:
            return x
        table = streams.tables.get(min(streams.tables)) if streams.tables else None
        sources = {
            "start": streams.start,
            "entry": streams.entry,
            "snapshot": streams.snapshot,
            "table": table,
            "skip": streams.skip,
        }
        for (name, _), weight in self.mix(x).items():
            source = sources[name]
            assert source is not None
            streams.gates[f"head_{name}", None] = weight
            x = x + weight * source
        return x

    @torch.no_grad()
    def coefficients(self, tokens: Tensor) -> Table:
        """All coefficients per token that a forward pass computes, for a look at them."""
        view, before = self._look(tokens, None, int(self.stage))
        streams = self._enter(tokens, before, view.starts)
        self._run(streams, view)
        return streams.gates

    # -- the head ---------------------------------------------------------------------------------

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D), in (0, A) with softcap."""
        z = F.linear(features, self.output_weight)
        if self.logit_softcap is None:
            return z
        assert self.output_bias is not None
        z = z.float() + self.output_bias
        return self.logit_softcap * (torch.tanh(z / self.logit_softcap) + 1)

    def forward(self, tokens: Tensor, cache: RingCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> RingCache:
        config = self.config
        # A model without values is only counted: as it is once trained.
        stage = config.num_stages if self.stage.is_meta else int(self.stage)
        short, long = schedule.windows(config, stage)
        reaches = {}
        for layer in filter(config.attends, range(config.num_layers)):
            reach = long if config.window_pattern[layer] == "L" else short
            is_paired = layer in config.paired_layers  # two rows are one token
            reaches[layer] = (reach + 1) // 2 if is_paired else reach
        return RingCache(
            reaches,
            batch_size,
            max_length,
            config.num_heads,
            config.head_dim,
            separator=self.separator,
            resets=config.reset_at_document,
            keeps_apart=config.document_mask,
            like=self.embedding.weight,
        )


Model = CurrentBestGPT
