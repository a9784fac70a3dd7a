"""The settings of the speedrun model. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.errors import Problems

if TYPE_CHECKING:
    from nanozoo_core.config import TrainingConfig

SMEAR_DIMS = 12  # channels of the embedding that decide how much of its predecessor it takes
VALUE_GATE_DIMS = 6  # channels of the stream, and as many of the table, that gate a value embedding
NO_GATES = "bigram_rows=0, model_cfg.x0_injection=false and no layer or skip that is gated"
PER_STAGE = ("windows", "mtp_weights", "prefix_weight", "lr_peaks", "batch_scale", "seq_lens")


@dataclass(frozen=True)
class CurrentBestConfig(ControlConfig):
    seq_len: int
    """Tokens of a training window; null is data.seq_len."""
    smear: bool
    """Add a gated share of the embedding before to each embedding."""
    bigram_rows: int
    """Rows of the hashed table of token pairs; 0 leaves it out."""
    bigram_sign_rows: int
    """Rows of random signs that tell pairs apart which share a row of the table."""
    x0_injection: bool
    """Add the embedding to the stream again in every block, by a coefficient per token."""
    reset_at_document: bool
    """Smear, bigrams and key offset look one token back; not across the start of a document."""
    document_mask: bool
    """Attend within a document only."""

    window_pattern: str
    """One letter per layer: S short window, L long window, - no attention."""
    paired_layers: tuple[int, ...]
    """Layers whose heads attend in pairs over an interleaved sequence of twice the length."""
    value_embed_layers: tuple[int, ...]
    """Layers that add an embedding of the token to their values, each of its own table."""
    value_gates: bool
    """Weigh these embeddings, by head, by what stream and embedding say; false adds them as they
    are."""
    xsa_layers: tuple[int, ...]
    """Layers that take from a head's output its component along the token's own value."""
    attn_gate_layers: tuple[int, ...]
    """Layers whose heads are scaled by a coefficient per token."""
    dc_layers: tuple[int, ...]
    """Layers whose heads also read by a mix of all heads' attention."""
    dc_window: int
    """Keys that this mix reaches, the token's own among them."""
    key_offset: bool
    """In long-window layers, take the unrotated half of each key from the token before."""
    shared_attention_input: bool
    """Layers after snapshot_layer attend from its output, while their stream moves on."""
    snapshot_layer: int | None
    """The layer whose output is kept for the shared input, for MUDD and for the backout."""
    skip: tuple[int, ...] | None
    """[from, to]: add the output of one layer in place of the attention of another."""
    mudd: bool
    """Mix earlier streams into the last block's values and stream, and into the head's input."""
    mudd_dim: int
    """Hidden width of what computes MUDD's coefficients."""
    backout: float
    """Share of the snapshot that is first taken out of the head's input; 0 leaves it to MUDD."""
    gate_dim: int
    """Hidden width of what computes all other coefficients."""
    gate_split_layer: int | None
    """From this layer on they come from the stream entering it; null: all from the embedding."""
    gates_per_token: bool
    """Compute MUDD's and all other coefficients for every token; false learns one number for
    each."""
    learned_gains: bool
    """Learn the gains of streams, attention and skip and the scale of the gates; false leaves them
    as they start."""

    qk_norm: bool
    """Normalise queries and keys."""
    rope_fraction: float
    """Share of a head's channels that turn with position."""
    rope_base: float
    """Ratio of the fastest to the slowest rotation."""
    attn_scale: float | None
    """Factor on the scores; null is 1 / sqrt(head_dim)."""
    activation: Literal["relu_squared", "gelu"]
    """Of the MLP."""
    residual_scale: float
    """What a block multiplies the stream by at first, half of it before the MLP."""
    attn_out_init: float
    """Deviation of the attention's output weights at first, times sqrt(model_dim); 0 is zeros."""
    softcap: tuple[float, ...] | None
    """[A, B, C]: logits are A sigmoid((z + B) / C); null leaves them."""
    untie_at: float | None
    """Progress at which the output head parts from the embedding; null never, 0 at once."""

    stage_starts: tuple[float, ...]
    """Progress at which each stage of the schedule begins."""
    windows: tuple[tuple[int, ...], ...]
    """[short, long] of each stage: earlier positions a token sees, in paired layers half as many.
    This and the lists below have one entry per stage, or one for all."""
    eval_window_long: int | None
    """Long window after training; null keeps the last."""
    yarn: bool
    """Slow the rotations down as the long window grows."""
    mtp_weights: tuple[tuple[tuple[float, ...], ...], ...]
    """[start, end] of each stage: weights of the next token, the one after it, and so on."""
    prefix_weight: tuple[tuple[float, ...], ...]
    """[start, end] of each stage: weight of the longest token that begins the next one."""
    lr_peaks: tuple[float, ...]
    """Top of the learning-rate schedule in each stage, relative to the rates."""
    batch_scale: tuple[float, ...]
    """Batch of each stage, relative to train.batch_tokens."""
    seq_lens: tuple[int, ...]
    """Window length of each stage; empty: data.seq_len."""
    qk_head_group: int
    """Heads whose query, or key, weights Muon takes as one matrix; 0 takes all."""

    renamed: ClassVar[dict[str, str]] = {
        "shared_attn_input_after": "snapshot_layer (and shared_attention_input)",
        "use_fp8": "nothing: float8 is left out",
        "align_to_documents": "nothing: use data.packing=documents",
    }

    def check(self, p: Problems) -> None:
        self._check_shape(p)
        if len(self.window_pattern) == self.num_layers:
            self._check_layers(p)
        self._check_stages(p)
        refuse_unused(p, "current_best_gpt", self, self._unused())

    def _check_shape(self, p: Problems) -> None:
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        smallest = {"num_layers": 1, "model_dim": SMEAR_DIMS, "num_heads": 1, "gate_dim": 1}
        smallest |= {"mudd_dim": 1, "dc_window": 1, "bigram_sign_rows": 1, "bigram_rows": 0}
        p.require_at_least(self, smallest | {"qk_head_group": 0})
        p.require(
            self.bigram_rows != 1,
            "model_cfg.bigram_rows=1 has no room beside the row of document starts; use 0 or more "
            "than 1",
        )
        p.require(
            int(self.mlp_ratio * self.model_dim) >= 1,
            f"model_cfg.mlp_ratio={self.mlp_ratio} leaves no width",
        )
        if p.require_heads(self.num_heads, self.model_dim):
            turning = self.rope_fraction * self.head_dim
            p.require(
                0 < self.rope_fraction <= 1 and turning % 2 == 0,
                f"model_cfg.rope_fraction={self.rope_fraction} of heads of width {self.head_dim} "
                f"is not an even number of channels",
            )
            p.require(
                not self.key_offset or self.head_dim % 4 == 0,
                f"model_cfg.num_heads={self.num_heads} makes heads of width {self.head_dim}, which "
                f"model_cfg.key_offset cannot halve; use a multiple of 4",
            )
            group = self.qk_head_group
            p.require(
                group <= 0 or self.num_heads % group == 0,
                f"model_cfg.qk_head_group={group} does not divide model_cfg.num_heads="
                f"{self.num_heads}",
            )
        p.require(self.rope_base > 1, f"model_cfg.rope_base={self.rope_base} must be above 1")
        for key, value in {
            "attn_scale": self.attn_scale,
            "residual_scale": self.residual_scale,
        }.items():
            p.require(value is None or value > 0, f"model_cfg.{key}={value} must be positive")
        p.require(
            self.softcap is None or (len(self.softcap) == 3 and min(self.softcap[0::2]) > 0),
            f"model_cfg.softcap={self.softcap} must be [A, B, C] with A and C positive, or null",
        )
        p.require(
            self.untie_at is None or 0 <= self.untie_at < 1,
            f"model_cfg.untie_at={self.untie_at} must be in [0, 1), or null to stay tied",
        )

    def _check_layers(self, p: Problems) -> None:
        pattern, last = self.window_pattern, self.num_layers - 1
        p.require(
            set(pattern) <= set("SL-"),
            f"model_cfg.window_pattern={pattern} may hold S, L and - only",
        )
        for key in (
            "paired_layers",
            "value_embed_layers",
            "xsa_layers",
            "attn_gate_layers",
            "dc_layers",
        ):
            for layer in getattr(self, key):
                if p.require(
                    0 <= layer <= last,
                    f"model_cfg.{key} names layer {layer}; there are 0 .. {last}",
                ):
                    p.require(
                        pattern[layer] != "-",
                        f"model_cfg.{key} names layer {layer}, which model_cfg.window_pattern="
                        f"{pattern} leaves without attention",
                    )
        for layer in self.paired_layers:
            others = [key for key in ("xsa_layers", "dc_layers") if layer in getattr(self, key)]
            if 0 <= layer <= last and pattern[layer] == "L" and self.key_offset:
                others.append("window_pattern as L, whose keys model_cfg.key_offset shifts")
            p.require(
                not others,
                f"model_cfg.paired_layers names layer {layer}, which is also in model_cfg."
                f"{', model_cfg.'.join(others)}; interleaved heads allow none of these",
            )
        p.require(
            not self.paired_layers or self.num_heads % 2 == 0,
            f"model_cfg.num_heads={self.num_heads} is odd; model_cfg.paired_layers needs pairs",
        )
        snapshot = self.snapshot_layer
        p.require(
            snapshot is None or 0 <= snapshot < last,
            f"model_cfg.snapshot_layer={snapshot} must be one of 0 .. {last - 1}, before the last "
            f"layer, or null",
        )
        needs = [key for key in ("shared_attention_input", "backout") if getattr(self, key)]
        p.require(
            snapshot is not None or not needs,
            f"model_cfg.snapshot_layer=null leaves model_cfg.{' and model_cfg.'.join(needs)} "
            f"without effect; switch off what needs it too",
        )
        p.require(
            not self.mudd or pattern[last] != "-",
            f"model_cfg.mudd needs attention in the last layer, which model_cfg.window_pattern="
            f"{pattern} leaves without",
        )
        if self.skip is not None:
            legal = len(self.skip) == 2 and 0 <= self.skip[0] < self.skip[1] <= last
            p.require(
                legal and pattern[self.skip[1]] == "-",
                f"model_cfg.skip={self.skip} must be [from, to], from before to, and to a layer "
                f"without attention in model_cfg.window_pattern={pattern}",
            )
        split = self.gate_split_layer
        p.require(
            split is None or 1 <= split <= last,
            f"model_cfg.gate_split_layer={split} must be one of 1 .. {last}, or null",
        )

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        unused: dict[str, str] = {}
        if not self.bigram_rows:
            unused["bigram_sign_rows"] = "bigram_rows=0"
            if not self.smear and not self.key_offset:
                unused["reset_at_document"] = (
                    "smear=false, model_cfg.bigram_rows=0 and model_cfg.key_offset=false"
                )
        if not self.value_embed_layers:
            unused["value_gates"] = "value_embed_layers=[]"
        if not self.dc_layers:
            unused["dc_window"] = "dc_layers=[]"
        if not (self.mudd or self.shared_attention_input or self.backout):
            unused["snapshot_layer"] = (
                "mudd=false, model_cfg.shared_attention_input=false and model_cfg.backout=0"
            )
        if not self.mudd:
            unused["mudd_dim"] = "mudd=false"
        if not self.has_gates:
            unused |= dict.fromkeys(("gate_dim", "gate_split_layer"), NO_GATES)
            if not self.mudd:
                unused["gates_per_token"] = f"{NO_GATES} and model_cfg.mudd=false"
        if not self.gates_per_token:
            keys = ("mudd_dim", "gate_dim", "gate_split_layer")
            unused |= dict.fromkeys(keys, "gates_per_token=false")
        if len({long for _, long in self._window_pairs}) <= 1 and self.eval_window_long is None:
            unused["yarn"] = "windows that do not grow"
        return unused

    @property
    def _window_pairs(self) -> list[tuple[int, ...]]:
        """[short, long] of each stage, those of a wrong length left out."""
        return [pair for pair in self.windows if len(pair) == 2]

    @property
    def has_gates(self) -> bool:
        """Whether anything is scaled by a coefficient of the gates."""
        layers = (self.xsa_layers, self.attn_gate_layers, self.dc_layers)
        return bool(self.bigram_rows or self.x0_injection or self.skip or any(layers))

    def _check_stages(self, p: Problems) -> None:
        p.require(
            len(self.window_pattern) == self.num_layers,
            f"model_cfg.window_pattern={self.window_pattern} has {len(self.window_pattern)} "
            f"layers, model_cfg.num_layers={self.num_layers}",
        )
        starts = list(self.stage_starts)
        p.require(
            bool(starts) and starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] < 1,
            f"model_cfg.stage_starts={starts} must rise from 0 to below 1",
        )
        for key in PER_STAGE:
            values = getattr(self, key)
            p.require(
                len(values) in (1, len(starts)) or (key == "seq_lens" and not values),
                f"model_cfg.{key} has {len(values)} entries; use one for each of the "
                f"{len(starts)} stages in model_cfg.stage_starts, or one for all",
            )
        for key, length in {"windows": 2, "mtp_weights": 2, "prefix_weight": 2}.items():
            p.require(
                all(len(entry) == length for entry in getattr(self, key)),
                f"model_cfg.{key}={getattr(self, key)} must hold {length} values per stage",
            )
        for short, long in self._window_pairs:
            p.require(
                1 <= short <= long,
                f"model_cfg.windows has [{short}, {long}]; use 1 <= short <= long",
            )
            p.require(
                not self.dc_layers or self.dc_window <= long + 1,
                f"model_cfg.dc_window={self.dc_window} is more than the {long + 1} keys of "
                f"model_cfg.windows",
            )
        last = self.windows[-1][-1] if self.windows and self.windows[-1] else 0
        p.require(
            self.eval_window_long is None or self.eval_window_long >= last,
            f"model_cfg.eval_window_long={self.eval_window_long} is below the last long window, "
            f"{last}",
        )
        pairs = [pair for pair in self.mtp_weights if len(pair) == 2]
        p.require(
            all(len(a) == len(b) >= 1 and a[0] > 0 and b[0] > 0 for a, b in pairs),
            f"model_cfg.mtp_weights={self.mtp_weights} must hold, per stage, two equally long "
            f"lists whose first weights are positive",
        )
        weights = [w for pair in pairs for side in pair for w in side]
        weights += [w for pair in self.prefix_weight for w in pair]
        p.require(
            all(w >= 0 for w in weights),
            "model_cfg.mtp_weights and model_cfg.prefix_weight must not be negative",
        )
        for key in ("lr_peaks", "batch_scale", "seq_lens"):
            p.require(
                all(value > 0 for value in getattr(self, key)),
                f"model_cfg.{key}={getattr(self, key)} must be positive",
            )

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        problems = []
        if self.has_prefix_loss and training.data.tokenizer == "bytes":
            problems.append(
                f"model_cfg.prefix_weight={self.prefix_weight} needs tokens of several bytes, and "
                f"data.tokenizer=bytes has none; use model_cfg.prefix_weight=[[0,0]]"
            )
        if self.seq_lens and max(self.seq_lens) > training.data.seq_len:
            problems.append(
                f"model_cfg.seq_lens={self.seq_lens} exceeds data.seq_len={training.data.seq_len}, "
                f"the length that scores are made at"
            )
        return problems

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that turn."""
        return int(self.rope_fraction * self.head_dim)

    @property
    def num_stages(self) -> int:
        return len(self.stage_starts)

    @property
    def num_targets(self) -> int:
        """Next tokens that the loss looks at."""
        return max(len(side) for pair in self.mtp_weights for side in pair)

    @property
    def has_prefix_loss(self) -> bool:
        return any(weight > 0 for pair in self.prefix_weight for weight in pair)

    def attends(self, layer: int) -> bool:
        return self.window_pattern[layer] != "-"

    def shifts_keys(self, layer: int) -> bool:
        return self.key_offset and self.window_pattern[layer] == "L"


Config = CurrentBestConfig
