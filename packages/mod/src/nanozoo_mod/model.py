"""Mixture of Depths on the control block.

A routed block reads C tokens of each sequence and leaves the others as they are. In training they
are those with the highest router scores, which is a look at the whole sequence; in evaluation and
sampling each token is taken or left by a threshold, which looks at the past alone.

B batch, T sequence, N chosen tokens of a row (C in training, padded to the most in evaluation),
R rows that chose any, D model_dim, P predictor_dim, L routed blocks, K head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.machine.precision import widened
from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.control import ControlBlock, ControlModel, control_block
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles, rotary_angles
from nanozoo_core.randomness import seeded_generator
from nanozoo_mod.cache import MoDCache, SelectedCache, SelectedKeys
from nanozoo_mod.config import MoDConfig
from nanozoo_mod.rows import add_rows, take_rows

NOISE_SEED = 7_340_033  # of the random control in evaluation


class Routing(NamedTuple):
    """What one routed block chose."""

    chosen: Tensor  # (B, T) bool: the tokens it read
    logits: Tensor  # (B, T) float32: what the causal choice compares with its threshold
    above: Tensor  # (B, T) bool: the causal choice
    gate: Tensor  # scalar: mean factor on the increments, without gradient


class Places(NamedTuple):
    """Where the chosen tokens of R rows stand in the stream (B, T)."""

    rows: Tensor  # (R,)
    columns: Tensor  # (R, N): the chosen ones ascending, then padding
    valid: Tensor | None  # (R, N) bool: chosen, not padding; None where all are

    @property
    def counts(self) -> Tensor:
        """(R,): chosen tokens of each row."""
        assert self.valid is not None
        return self.valid.sum(1)

    def flat(self, length: int) -> Tensor:
        """(R * N,): the places in a flattened stream (B * T)."""
        return (self.rows[:, None] * length + self.columns).flatten()

    def of(self, values: Tensor) -> Tensor:
        """(R, N, ...) out of values (B, T, ...), or (1, T, ...) that all rows share."""
        rows = self.rows if values.shape[0] > 1 else torch.zeros_like(self.rows)
        return values[rows[:, None], self.columns]


class RoutedBlock(ControlBlock):
    """x + g(r) * delta(x), among chosen tokens alone and for them alone."""

    threshold: Tensor
    noise: Tensor

    def __init__(self, config: MoDConfig, layer: int) -> None:
        super().__init__(config.model_dim, config.num_heads, mlp_ratio=config.mlp_ratio)
        self.config = config
        if config.has_router:
            self.router = nn.Parameter(torch.empty(config.model_dim))
        if config.has_predictor:
            self.predictor_in = nn.Parameter(torch.empty(config.predictor_dim, config.model_dim))
            self.predictor_in_bias = nn.Parameter(torch.empty(config.predictor_dim))
            self.predictor_out = nn.Parameter(torch.empty(config.predictor_dim))
            self.predictor_out_bias = nn.Parameter(torch.empty(1))
        threshold = -math.inf if config.capacity == 1 else 0.0
        if config.router_type == "random":
            if config.capacity < 1:
                threshold = NormalDist().inv_cdf(1 - config.capacity)
            generator = seeded_generator(NOISE_SEED, layer)
            noise = torch.randn(config.seq_len, generator=generator, device="cpu")
            self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("threshold", torch.tensor(threshold))

    @torch.no_grad()
    def init_routing(self) -> None:
        """
        router               N(0, 0.55^2 / D), what the deviation 0.02 is at D = 768; 1 / D if raw
        predictor_in, _out   N(0, 1 / fan_in)
        predictor_in_bias    0
        predictor_out_bias   log-odds of capacity
        """
        if self.config.has_router:
            scale = 1.0 if self.config.router_input == "raw" else 0.55
            nn.init.normal_(self.router, std=scale / math.sqrt(self.config.model_dim))
        if self.config.has_predictor:
            capacity = self.config.capacity
            nn.init.normal_(self.predictor_in, std=1 / math.sqrt(self.config.model_dim))
            nn.init.zeros_(self.predictor_in_bias)
            nn.init.normal_(self.predictor_out, std=1 / math.sqrt(self.config.predictor_dim))
            nn.init.constant_(self.predictor_out_bias, math.log(capacity / (1 - capacity)))

    # -- scores and choices -----------------------------------------------------------------------

    def scores(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """r = u . w of tokens x (..., D), at least float32; the random control's are its noise."""
        if noise is not None:
            return noise
        x = widened(x)
        if not self.config.has_router:  # capacity 1 and no factor: there is nothing to score
            return x.new_ones(x.shape[:-1])
        with torch.autocast(x.device.type, enabled=False):
            scores = x @ self.router.to(x.dtype)
            return scores * _rms_scale(x) if self.config.router_input == "normed" else scores

    def causal_logits(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """(B, T), at least float32: the predictor's logits, or the scores where there is none.

        The predictor's gradient ends at its input: it must not train the stream.
        """
        if not self.config.has_predictor:
            return self.scores(x, noise)
        x = widened(x.detach())
        with torch.autocast(x.device.type, enabled=False):
            hidden = x @ self.predictor_in.to(x.dtype).mT  # (B, T, P)
            if self.config.router_input == "normed":
                hidden = hidden * _rms_scale(x)[..., None]
            hidden = F.silu(hidden + self.predictor_in_bias)
            return hidden @ self.predictor_out.to(x.dtype) + self.predictor_out_bias

    def gate(self, scores: Tensor) -> Tensor:
        """g(r), by which the loss reaches the router."""
        match self.config.router_gate:
            case "sigmoid":
                return scores.sigmoid()
            case "tanh":
                return scores.tanh()
            case "one":
                return torch.ones_like(scores)
            case _:
                return scores

    def highest(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C) ascending: the tokens with the highest scores of each row; of equals the first."""
        with torch.no_grad():
            scores = self.scores(x, noise)
            return _largest_first(scores, self.config.num_selected(x.shape[1])).sort(dim=1).values

    # -- the block --------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        angles: Angles,
        positions: Tensor,
        *,
        topk: bool = False,
        noise: Tensor | None = None,
        cache: SelectedCache | None = None,
    ) -> tuple[Tensor, Routing]:
        """The stream (B, T, D) after the block, and the choice.

        Args:
            angles: those of `positions`, (B, T) or (1, T): where the tokens stand in the text.
            topk: read the C highest scores, as in training, instead of what passes the threshold.
            noise: (B, T) scores of the random control; None is what each position has for good.
        """
        if noise is None and self.config.router_type == "random":
            noise = self.noise[positions % len(self.noise)].expand(x.shape[:2])
        logits = self.causal_logits(x, noise)
        above = logits > self.threshold
        takes_all = False
        if topk:
            columns = self.highest(x, noise)
            chosen = torch.zeros_like(above).scatter(1, columns, True)
            places = Places(torch.arange(x.shape[0], device=x.device), columns, None)
            takes_all = columns.shape[1] == x.shape[1]
        else:
            chosen, places = above, _places(above)
        if cache is None and (takes_all or self.config.routed_impl == "masked"):
            x, gate = self._read_dense(x, angles, noise, None if takes_all else chosen)
        else:
            x, gate = self._read(x, angles, positions, noise, places, cache)
        return x, Routing(chosen, logits, above, gate)

    def _read(
        self,
        x: Tensor,
        angles: Angles,
        positions: Tensor,
        noise: Tensor | None,
        places: Places,
        cache: SelectedCache | None,
    ) -> tuple[Tensor, Tensor]:
        """Takes the chosen tokens out, and adds what the block makes of them to their places."""
        if places.columns.numel() == 0:
            return x, x.new_zeros(())
        batch, length, _ = x.shape
        index = places.flat(length)
        stream, taken = take_rows(x.flatten(0, 1), index)
        taken = taken.unflatten(0, places.columns.shape)  # (R, N, D)
        turned = (places.of(angles[0]), places.of(angles[1]))
        if cache is None:
            increment = self.delta(taken, turned)
        else:
            rows = None if len(places.rows) == batch else places.rows
            entries = cache.make_room(places.of(positions), places.rows)
            increment = self.delta(taken, turned, cache=entries, rows=rows)
            entries.advance(places.counts, places.rows)
        gates = self.gate(self.scores(taken, None if noise is None else places.of(noise)))
        if places.valid is not None:
            increment = increment.masked_fill(~places.valid[..., None], 0)
        stream = add_rows(stream, index, gates.flatten(), increment.flatten(0, 1))
        return stream.unflatten(0, (batch, length)), _mean(gates, places.valid)

    def _read_dense(
        self, x: Tensor, angles: Angles, noise: Tensor | None, chosen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same over all tokens, hiding the keys and dropping the results of those not chosen;
        without `chosen` (B, T) all are."""
        keys = None if chosen is None else cast(KVCache, SelectedKeys(chosen))
        increment = self.delta(x, angles, cache=keys)
        gates = self.gate(self.scores(x, noise))
        update = gates[..., None] * increment
        if chosen is not None:
            update = torch.where(chosen[..., None], update, 0)
        return x + update.to(x.dtype), _mean(gates, chosen)


def _largest_first(values: Tensor, count: int) -> Tensor:
    """(B, count): places of the largest values of each row, of equals the first: topk promises no
    order among them."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _places(chosen: Tensor) -> Places:
    """The rows that chose anything, padded to the most that one of them chose."""
    counts = chosen.sum(1)
    rows = counts.nonzero()[:, 0]
    counts = counts[rows]
    most = int(counts.max()) if len(rows) else 0
    columns = _largest_first(chosen[rows].to(torch.uint8), most)
    return Places(rows, columns, torch.arange(most, device=chosen.device) < counts[:, None])


def _mean(gates: Tensor, chosen: Tensor | None) -> Tensor:
    """Over the chosen tokens, 0 without any; without gradient."""
    gates = gates.detach()
    if chosen is None:
        return gates.mean()
    return torch.where(chosen, gates, 0).sum() / chosen.sum().clamp(min=1)


def _rms_scale(x: Tensor) -> Tensor:
    """(...): the factor by which RMSNorm would multiply x (..., D)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1).square() / x.shape[-1]
    return (mean_square + 1e-6).rsqrt()


class MoD(ControlModel):
    """The control, in which some blocks are routed."""

    config: MoDConfig

    def __init__(self, config: MoDConfig) -> None:
        def block(layer: int) -> ControlBlock:
            if layer in config.routed_layers:
                return RoutedBlock(config, layer)
            return control_block(config)

        super().__init__(config, block=block)

    def init_weights(self) -> None:
        """Routing is drawn last: with one seed all that the control has starts as the control's."""
        super().init_weights()
        for block in self.routed_blocks:
            block.init_routing()

    @property
    def routed_blocks(self) -> list[RoutedBlock]:
        return [block for block in self.blocks if isinstance(block, RoutedBlock)]

    def encode(
        self,
        tokens: Tensor,
        *,
        cache: MoDCache | None = None,
        topk: bool = False,
        noise: Tensor | None = None,
        diagnostic: bool = False,
    ) -> tuple[Tensor, list[Routing]]:
        """The final normalised stream (B, T, D) for tokens (B, T), and the routed blocks' choices.

        Args:
            cache: continues a sequence.
            topk: choose by the highest scores of the whole sequence: for training.
            noise: (L, B, T) scores of the random control in training.
            diagnostic: allow topk outside training, where what it gives is no likelihood.

        Raises: ValueError for topk in eval mode that is not marked as diagnostic, or with a cache.
        """
        if topk and (cache is not None or not (self.training or diagnostic)):
            raise ValueError(
                "routing by top-k looks at later tokens, so it can neither score nor sample; "
                "diagnostic=True allows it for comparison, without a cache"
            )
        length = tokens.shape[1]
        if cache is None:
            positions = torch.arange(length, device=tokens.device)[None]  # (1, T)
        else:
            positions = cache.positions(length)  # (B, T)
        angles = rotary_angles(positions, self.head_dim)
        x = rms_norm(self.embedding(tokens))  # (B, T, D)
        num_full, routings = 0, list[Routing]()
        for block in self.blocks:
            if isinstance(block, RoutedBlock):
                number = len(routings)
                x, routing = block(
                    x,
                    angles,
                    positions,
                    topk=topk,
                    noise=None if noise is None else noise[number],
                    cache=None if cache is None else cache.routed[number],
                )
                routings.append(routing)
            else:
                full = None if cache is None else cache.full
                x = block(x, angles, cache=full, layer=num_full)
                num_full += 1
        if cache is not None:
            cache.advance(length)
        return rms_norm(x), routings

    def features(  # type: ignore[override]
        self, tokens: Tensor, cache: MoDCache | None = None
    ) -> Tensor:
        """The final normalised stream (B, T, D) under the causal choice."""
        return self.encode(tokens, cache=cache)[0]

    def init_cache(  # type: ignore[override]
        self, batch_size: int, max_length: int
    ) -> MoDCache:
        """Room for `max_length` tokens in full blocks and, to begin with, for twice the capacity's
        share of them in routed ones."""
        num_routed = len(self.config.routed_layers)
        full = self.new_cache(len(self.blocks) - num_routed, batch_size, max_length)
        room = min(max_length, 2 * self.config.num_selected(max_length))
        return MoDCache(full, num_routed, room)


Model = MoD
