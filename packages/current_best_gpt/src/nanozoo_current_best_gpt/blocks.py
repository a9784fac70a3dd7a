"""What the speedrun decoder is made of: hashed bigrams, and blocks that read earlier streams.

B batch, T sequence, D model_dim, R bigram rows, S sign rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.nn.control import init_input_matrix
from nanozoo_core.nn.feed_forward import ReluSquared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_current_best_gpt.attention import EPS, Attention, View
from nanozoo_current_best_gpt.coefficients import Mix, Named, add_gain, hidden_width, mudd_entries
from nanozoo_current_best_gpt.config import CurrentBestConfig

SKIP_INIT = -1.5  # sigmoid(-1.5) = 0.18


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


class Layer(nn.Module):
    """The attention and the MLP of a block. `gates_table`: the attention has a gate of its own for
    the value embedding."""

    def __init__(self, config: CurrentBestConfig, layer: int, *, gates_table: bool) -> None:
        super().__init__()
        self.attention = None
        if config.attends(layer):
            self.attention = Attention(config, layer, gates_table=gates_table)
        make_mlp = ReluSquared if config.activation == "relu_squared" else Gelu
        self.mlp = make_mlp(config.model_dim, config.mlp_dim)
        init_input_matrix(self.mlp.up.weight)
        nn.init.zeros_(self.mlp.down.weight)


class Block(Layer):
    """x <- rA x + pA Attention(a) + xi x0 + beta b;  x <- rM x + pM MLP(rms(x)).

    r is `keep`, p is `add`; xi and beta are gates. A layer without attention may take in the output
    of an earlier one instead.
    """

    def __init__(self, config: CurrentBestConfig, layer: int) -> None:
        gates_table = config.value_gates and layer in config.value_embed_layers
        super().__init__(config, layer, gates_table=gates_table)
        self.injects = layer > 0  # the bigram is part of what enters layer 0
        self.residual = math.sqrt(config.residual_scale)
        if config.skip is not None and config.skip[1] == layer:
            add_gain(self, "skip", 1, learned=config.learned_gains)
        add_gain(self, "keep", 2, learned=config.learned_gains)  # of attention and MLP
        add_gain(self, "add", 2, learned=config.learned_gains)
        self.init_weights()

    skip: Tensor  # (1,)
    keep: Tensor  # (2,)
    add: Tensor  # (2,)

    def init_weights(self) -> None:
        """
        attention    Attention.init_weights
        mlp.up       U(+-sqrt(3) * 0.5 / sqrt(fan_in))
        mlp.down     0
        keep, add    sqrt(residual_scale), 1
        skip         -1.5
        """
        nn.init.constant_(self.keep, self.residual)
        nn.init.ones_(self.add)
        if hasattr(self, "skip"):
            nn.init.constant_(self.skip, SKIP_INIT)

    def forward(
        self,
        x: Tensor,
        view: View,
        gates: Named,
        *,
        x0: Tensor,
        bigram: Tensor | None,
        table: Tensor | None,
        shared: Tensor | None,
        skipped: Tensor | None,
    ) -> Tensor:
        """The stream after this block, all (B, T, D).

        Args:
        gates: those of this layer.
        table: the token's value embedding, where this layer has one.
        shared: the stream to attend from; None is x itself.
        skipped: the output of the layer that a skip leaves from, once it is there.
        """
        keep, keep_mlp = self.keep.unbind()
        add, add_mlp = self.add.unbind()
        if "skip" in gates:
            assert skipped is not None
            x = x + (torch.sigmoid(self.skip) * gates["skip"]) * skipped
        if self.attention is not None:
            a = rms_norm(x if shared is None else shared, EPS)
            x = keep * x + add * self.attention(a, view, gates, table=table)
            if "x0" in gates:
                x = x + gates["x0"] * x0
            if self.injects and bigram is not None:
                x = x + gates["bigram"] * bigram
        return keep_mlp * x + add_mlp * self.mlp(rms_norm(x, EPS))


class MuddBlock(Layer):
    """The last block, whose r, p, xi and beta are coefficients per token, and which mixes earlier
    streams into its values and its stream (MUDD, arXiv 2502.12170, cut down to two places)."""

    def __init__(self, config: CurrentBestConfig, layer: int) -> None:
        super().__init__(config, layer, gates_table=False)
        width = hidden_width(config, config.mudd_dim)
        self.mix = Mix(config.model_dim, width, mudd_entries(config))

    def forward(
        self,
        x: Tensor,
        view: View,
        gates: Named,
        *,
        start: Tensor,
        snapshot: Tensor | None,
        bigram: Tensor | None,
        table: Tensor | None,
        shared: Tensor | None,
    ) -> Tensor:
        """As `Block.forward`. Args: start, snapshot: the streams to mix in, before layer 0 and
        after snapshot_layer."""
        assert self.attention is not None
        m = self.mix(x)
        a = rms_norm(x if shared is None else shared, EPS)
        sources = {"start": start, "snapshot": snapshot, "stream": x}
        value = _weighed(m, "value", sources)
        x = x + _weighed(m, "stream", sources)
        if table is not None:
            value = value + (_by_halves(m["table"], table) if "table" in m else table)
        x = m["keep"] * x + m["add"] * self.attention(a, view, gates, extra_value=value)
        if "x0" in m:
            x = x + m["x0"] * start
        if bigram is not None:
            x = x + m["bigram"] * bigram
        return m["mlp_keep"] * x + m["mlp_add"] * self.mlp(rms_norm(x, EPS))


def _weighed(m: Named, what: str, sources: dict[str, Tensor | None]) -> Tensor:
    """The sum of the sources that are there, each times its coefficient."""
    present = {name: source for name, source in sources.items() if source is not None}
    terms = [m[f"{what}_{name}"] * source for name, source in present.items()]
    return sum(terms[1:], terms[0])


def _by_halves(weights: Tensor, table: Tensor) -> Tensor:
    """A value embedding (B, T, D), each part of it by one of the weights (B, T, 1 or 2)."""
    parts = table.unflatten(-1, (weights.shape[-1], -1))
    return (weights[..., None] * parts).flatten(2)
