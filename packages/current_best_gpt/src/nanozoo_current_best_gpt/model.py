"""The speedrun record as one decoder.

B batch, T sequence, D model_dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import wide_dtype, widened
from nanozoo_core.nn.norms import rms_norm
from nanozoo_current_best_gpt import schedule
from nanozoo_current_best_gpt.attention import EPS, Angles, View
from nanozoo_current_best_gpt.blocks import Bigram, Block, MuddBlock
from nanozoo_current_best_gpt.cache import RingCache
from nanozoo_current_best_gpt.coefficients import (
    Coefficients,
    Gates,
    Mix,
    Named,
    add_gain,
    gate_entries,
    head_entries,
    hidden_width,
)
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
    gate_scale: Tensor  # (1,)
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
        gate_width = hidden_width(config, config.gate_dim)
        self.early_gates = Gates(dim, gate_width, early) if early else None
        self.late_gates = Gates(dim, gate_width, late) if late else None
        if early or late:
            add_gain(self, "gate_scale", 1, learned=config.learned_gains)  # tau of both
        self.blocks = nn.ModuleList(
            MuddBlock(config, layer)
            if config.mudd and layer == layers - 1
            else Block(config, layer)
            for layer in range(layers)
        )
        self.mix = self.backout = None
        if config.mudd:
            self.mix = Mix(dim, hidden_width(config, config.mudd_dim), head_entries(config))
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

    # -- the forward pass -------------------------------------------------------------------------

    def features(
        self, tokens: Tensor, cache: RingCache | None = None, *, stage: int | None = None
    ) -> Tensor:
        """What the head multiplies, (B, T, D), for tokens (B, T); `cache` continues a sequence.

        Args: stage: whose windows hold; None is the model's own.
        """
        if cache is not None and int(cache.lengths.max()) > 0 and tokens.shape[1] > cache.most_new:
            parts = tokens.split(cache.most_new, dim=1)
            return torch.cat([self.features(part, cache, stage=stage) for part in parts], dim=1)
        view = self._look(tokens, cache, int(self.stage) if stage is None else stage)
        x = rms_norm(self._streams(tokens, view), EPS)
        if cache is not None:
            cache.advance()
        return x if self.feature_scale is None else x * self.feature_scale

    def _streams(self, tokens: Tensor, view: View) -> Tensor:
        """The stream (B, T, D) that the head reads: the README's equations, in its order."""
        config = self.config
        # x0 = rms(E[t] + smear E[t-1])
        e = self.embedding(tokens)  # (B, T, D)
        if config.smear:
            smear = torch.sigmoid(F.linear(e[..., :SMEAR_DIMS], self.smear_gate))  # (B, T, 1)
            smear = (self.smear_scale * smear).masked_fill(view.starts[..., None], 0)
            e = e + smear * self.embedding(view.before)
        x0 = rms_norm(e, EPS)

        # b = bigram table[hash(t, t-1)] * signs, and the other tables that a token is looked up in
        b = None if self.bigram is None else self.bigram(tokens, view.before, view.starts)
        layers = config.value_embed_layers
        values = {n: table(tokens) for n, table in zip(layers, self.tables, strict=True)}

        # x = x0 + beta b
        gates = {} if self.early_gates is None else self.early_gates(x0, self.gate_scale)
        start = x0 if b is None else x0 + gates[0]["bigram"] * b

        # the blocks, of which some read what earlier ones left behind
        x, entry = start, start
        snapshot: Tensor | None = None
        skipped: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            entry = x
            if layer == config.gate_split_layer and self.late_gates is not None:
                gates = gates | self.late_gates(x, self.gate_scale)
            own, table = gates.get(layer, {}), values.get(layer)
            shared = snapshot if config.shared_attention_input else None
            if isinstance(block, MuddBlock):  # the last
                x = block(
                    x, view, own, start=start, snapshot=snapshot, bigram=b, table=table,
                    shared=shared,
                )  # fmt: skip
            else:
                x = block(
                    x, view, own, x0=x0, bigram=b, table=table, shared=shared, skipped=skipped
                )
            if layer == config.snapshot_layer:
                snapshot = x
            if config.skip is not None and layer == config.skip[0]:
                skipped = x

        # x - c7 / 2 + mix, where c7 is the snapshot
        if self.backout is not None:
            assert snapshot is not None
            return x + self.backout * snapshot
        if self.mix is None:
            return x
        earlier = {"start": start, "entry": entry, "snapshot": snapshot, "skip": skipped}
        earlier["table"] = values[min(values)] if values else None
        for name, weight in self.mix(x).items():
            source = earlier[name]
            assert source is not None
            x = x + weight * source
        return x

    def _look(self, tokens: Tensor, cache: RingCache | None, stage: int) -> View:
        """What all layers share."""
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
        # Low precision cannot hold the angle of a late position.
        precision = wide_dtype(self.embedding.weight)
        frequencies = torch.tensor(
            schedule.rotary_frequencies(config, stage), dtype=precision, device=tokens.device
        )

        def turn(places: Tensor) -> Angles:
            angles = places.to(precision)[..., None] * frequencies
            return angles.cos(), angles.sin()

        short, long = schedule.windows(config, stage)
        return View(
            before=before,
            angles=turn(positions),
            paired_angles=(turn(2 * positions), turn(2 * positions + 1)),
            windows={"S": short, "L": long},
            scale=schedule.attention_scale(config, stage),
            starts=starts,
            documents=documents,
            cache=cache,
        )

    @torch.no_grad()
    def coefficients(self, tokens: Tensor) -> tuple[dict[int, Named], Named]:
        """What a forward pass computes per token, for a look at it: gates by layer, and mixes."""
        gates: dict[int, Named] = {}
        mixes: Named = {}

        def note(module: nn.Module, inputs: object, found: Any) -> None:
            if isinstance(module, Gates):
                gates.update(found)
            else:
                prefix = "head" if module is self.mix else "mudd"
                mixes.update({f"{prefix}_{name}": value for name, value in found.items()})

        modules = [module for module in self.modules() if isinstance(module, Coefficients)]
        handles = [module.register_forward_hook(note) for module in modules]
        try:
            self.features(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return gates, mixes

    # -- the head ---------------------------------------------------------------------------------

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., D), in (0, A) with softcap."""
        z = F.linear(features, self.output_weight)
        if self.logit_softcap is None:
            return z
        assert self.output_bias is not None
        z = widened(z) + self.output_bias
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
