"""What the speedrun decoder is made of: hashed bigrams, and blocks that read earlier streams.

B batch, T sequence, D model_dim, R bigram rows, S sign rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.control import init_input_matrix
from nanozoo_core.nn.feed_forward import ReluSquared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_current_best_gpt.attention import EPS, Attention, View
from nanozoo_current_best_gpt.coefficients import Coefficients, Table, mudd_entries
from nanozoo_current_best_gpt.config import CurrentBestConfig

SKIP_INIT = -1.5  # sigmoid(-1.5) = 0.18


@dataclass
class Streams:
    """What later layers read beside the stream itself, each (B, T, D)."""

    x0: Tensor  # the normalised embedding
    bigram: Tensor | None
    tables: dict[int, Tensor]  # value embeddings by layer
    start: Tensor | None = None  # the stream entering layer 0
    snapshot: Tensor | None = None  # after snapshot_layer
    skip: Tensor | None = None  # after skip[0]
    entry: Tensor | None = None  # the stream entering the last layer
    gates: Table = field(default_factory=dict)


class Bigram(nn.Module):
    """A table of hashed token pairs, whose rows random signs keep apart.

    Row (36313 x_t XOR 27191 x_{t-1}) mod (R - 1) times sign row (x_t XOR x_{t-1}) mod S, in 64-bit
    integers; the first token of a row or document has row R - 1 and sign row 0.
    """

    def __init__(self, num_rows: int, num_signs: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_rows, dim)
        self.register_buffer("signs", torch.empty(num_signs, dim, dtype=torch.int8))
        self.init_weights()

    signs: Tensor  # (S, D) of -1 and 1, part of every checkpoint

    def init_weights(self) -> None:
        """
        table   0
        signs   -1 or 1
        """
        nn.init.zeros_(self.table.weight)
        self.signs.copy_(2 * torch.randint(2, self.signs.shape) - 1)

    def rows(self, tokens: Tensor, before: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table and of the signs, (B, T) each."""
        last = self.table.num_embeddings - 1
        row = ((36313 * tokens) ^ (27191 * before)) % last
        sign = (tokens ^ before) % len(self.signs)
        return torch.where(starts, last, row), torch.where(starts, 0, sign)

    def forward(self, tokens: Tensor, before: Tensor, starts: Tensor) -> Tensor:
        row, sign = self.rows(tokens, before, starts)
        looked_up = self.table(row)  # (B, T, D)
        return looked_up * self.signs[sign].to(looked_up.dtype)


class Gelu(ReluSquared):
    """The same MLP with another activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """x <- keep x + add Attention(a) + xi x0 + beta b;  x <- keep' x + add' MLP(rms(x))."""

    def __init__(self, config: CurrentBestConfig, layer: int, *, gates_table: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.residual = math.sqrt(config.residual_scale)
        shares = config.shared_attention_input and config.snapshot_layer is not None
        self.reads_snapshot = shares and layer > (config.snapshot_layer or 0)
        has_table = layer in config.value_embed_layers
        self.attention = None
        if config.attends(layer):
            self.attention = Attention(config, layer, gates_table=has_table and gates_table)
        make_mlp = ReluSquared if config.activation == "relu_squared" else Gelu
        self.mlp = make_mlp(config.model_dim, config.mlp_dim)
        self.skips = config.skip is not None and config.skip[1] == layer
        if self.skips:
            self.skip = nn.Parameter(torch.empty(1))
        self._make_lambdas()
        self.init_weights()

    def _make_lambdas(self) -> None:
        self.keep = nn.Parameter(torch.empty(2))  # of attention and MLP
        self.add = nn.Parameter(torch.empty(2))

    def init_weights(self) -> None:
        """
        attention    Attention.init_weights
        mlp.up       U(+-sqrt(3) * 0.5 / sqrt(fan_in))
        mlp.down     0
        keep, add    sqrt(residual_scale), 1
        skip         -1.5
        """
        init_input_matrix(self.mlp.up.weight)
        nn.init.zeros_(self.mlp.down.weight)
        if hasattr(self, "keep"):
            nn.init.constant_(self.keep, self.residual)
            nn.init.ones_(self.add)
        if self.skips:
            nn.init.constant_(self.skip, SKIP_INIT)

    def forward(self, x: Tensor, streams: Streams, view: View) -> Tensor:
        keep, keep_mlp = self.keep.unbind()
        add, add_mlp = self.add.unbind()
        gates = streams.gates
        if self.skips:
            assert streams.skip is not None
            x = x + (torch.sigmoid(self.skip) * gates["skip", self.layer]) * streams.skip
        if self.attention is not None:
            a = self._attention_input(x, streams)
            table = streams.tables.get(self.layer)
            x = keep * x + add * self.attention(a, view, gates, table=table)
            if ("x0", self.layer) in gates:
                x = x + gates["x0", self.layer] * streams.x0
            if self.layer > 0 and streams.bigram is not None:
                x = x + gates["bigram", self.layer] * streams.bigram
        return keep_mlp * x + add_mlp * self.mlp(rms_norm(x, EPS))

    def _attention_input(self, x: Tensor, streams: Streams) -> Tensor:
        if self.reads_snapshot:
            assert streams.snapshot is not None
            x = streams.snapshot
        return rms_norm(x, EPS)


class MuddBlock(Block):
    """The last block, whose lambdas are coefficients per token, and which mixes earlier streams
    into its values and its stream (MUDD, arXiv 2502.12170, cut down to two places)."""

    def __init__(self, config: CurrentBestConfig, layer: int) -> None:
        super().__init__(config, layer, gates_table=False)
        self.mix = Coefficients(config.model_dim, config.mudd_dim, mudd_entries(config))

    def _make_lambdas(self) -> None:
        pass

    def forward(self, x: Tensor, streams: Streams, view: View) -> Tensor:
        m = {name: value for (name, _), value in self.mix(x).items()}
        streams.gates |= {(f"mudd_{name}", None): value for name, value in m.items()}
        assert self.attention is not None
        assert streams.start is not None
        a = self._attention_input(x, streams)
        sources = {"start": streams.start, "snapshot": streams.snapshot, "stream": x}
        value = _weighed(m, "value", sources)
        x = x + _weighed(m, "stream", sources)
        if "table" in m:
            value = value + _by_halves(m["table"], streams.tables[self.layer])
        x = m["keep"] * x + m["add"] * self.attention(a, view, streams.gates, extra_value=value)
        if "x0" in m:
            x = x + m["x0"] * streams.start
        if streams.bigram is not None:
            x = x + m["bigram"] * streams.bigram
        return m["mlp_keep"] * x + m["mlp_add"] * self.mlp(rms_norm(x, EPS))


def _weighed(m: dict[str, Tensor], what: str, sources: dict[str, Tensor | None]) -> Tensor:
    """The sum of the sources that are there, each times its coefficient."""
    present = {name: source for name, source in sources.items() if source is not None}
    terms = [m[f"{what}_{name}"] * source for name, source in present.items()]
    return sum(terms[1:], terms[0])


def _by_halves(weights: Tensor, table: Tensor) -> Tensor:
    """A value embedding (B, T, D), each part of it by one of the weights (B, T, 1 or 2)."""
    parts = table.unflatten(-1, (weights.shape[-1], -1))
    return (weights[..., None] * parts).flatten(2)
