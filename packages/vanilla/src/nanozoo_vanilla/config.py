"""The settings of the plain decoder. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.errors import Problems, show_value

Position = Literal["sinusoidal", "learned", "rope"]
NormPosition = Literal["post", "pre"]
Norm = Literal["layer", "rms"]
Activation = Literal["relu", "gelu_tanh", "relu2", "swiglu"]
Init = Literal["xavier", "gpt2", "unit_embedding", "zero_outputs", "small_head", "zero_out"]

ROPE_BASE = 1e4

UNIT_EMBEDDING = ("unit_embedding", "zero_outputs", "small_head", "zero_out")
"""The start values with embeddings of unit variance."""


@dataclass(frozen=True)
class Switches:
    """What tells one form of the decoder from another."""

    position: Position
    norm_position: NormPosition
    norm: Norm
    qk_norm: bool
    activation: Activation
    bias: bool
    attn_bias: bool
    scale_embedding: bool
    norm_embedding: bool
    tie_embeddings: bool
    init: Init


V0 = Switches(
    position="sinusoidal",
    norm_position="post",
    norm="layer",
    qk_norm=False,
    activation="relu",
    bias=True,
    attn_bias=False,
    scale_embedding=True,
    norm_embedding=False,
    tie_embeddings=True,
    init="xavier",
)
"""The decoder of arXiv 1706.03762 without its cross-attention."""

WALK: dict[str, dict[str, Any]] = {
    "v0": {},
    "v1": {"attn_bias": True},
    "v2": {"activation": "gelu_tanh"},
    "v3": {"position": "learned"},
    "v4": {"norm_position": "pre"},
    "v5": {"scale_embedding": False},
    "v6": {"init": "gpt2"},
    "v7": {"bias": False, "attn_bias": False},
    "v8": {"norm": "rms"},
    "v9": {"position": "rope"},
    "v10": {"qk_norm": True},
    "v11": {"activation": "relu2"},
    "v12": {"tie_embeddings": False},
    "v13": {"norm_embedding": True},
    "v14": {"init": "unit_embedding"},
    "v15": {"init": "zero_outputs"},
    "v16": {"init": "small_head"},
    "control": {"init": "zero_out"},
}
"""What each preset changes of the one before, one thing at a time; v6 is GPT-2."""


def _presets() -> dict[str, Switches]:
    forms, form = {}, V0
    for name, change in WALK.items():
        forms[name] = form = replace(form, **change)
    return forms


PRESETS = _presets()

Preset = Literal[
    "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12",
    "v13", "v14", "v15", "v16", "control", "custom",
]  # fmt: skip


@dataclass(frozen=True)
class VanillaConfig(ControlConfig):
    preset: Preset
    """The form: v0 (2017) .. v16, control, or custom, the control changed by the switches below."""
    position: Position | None
    """With preset=custom: sinusoidal (2017), learned (GPT-2) or rope; null is the control's."""
    norm_position: NormPosition | None
    """With preset=custom: post (2017, norm after the sum) or pre; null is the control's."""
    norm: Norm | None
    """With preset=custom: layer, or rms without gain; null is the control's."""
    qk_norm: bool | None
    """With preset=custom: RMSNorm of queries and keys; null is the control's."""
    activation: Activation | None
    """With preset=custom: relu (2017), gelu_tanh (GPT-2), relu2 or swiglu (Llama), whose MLP has a
    third matrix; null is the control's."""
    bias: bool | None
    """With preset=custom: biases in MLP and LayerNorm; null is the control's."""
    attn_bias: bool | None
    """With preset=custom: biases in attention; null is the control's."""
    scale_embedding: bool | None
    """With preset=custom: multiply embeddings by sqrt(model_dim); null is the control's."""
    norm_embedding: bool | None
    """With preset=custom: RMSNorm of embeddings on the way in; null is the control's."""
    tie_embeddings: bool | None
    """With preset=custom: use the input embedding as the output head; null is the control's."""
    init: Init | None
    """With preset=custom, the start values: xavier (2017), gpt2, and on the way to zero_out, which
    is the control's and what null is, unit_embedding, zero_outputs and small_head."""
    rope_base: float
    """With preset=custom: base of the rotary wavelengths; others have 10000."""
    norm_eps: float | None
    """Added to a norm's variance; null is 1e-5 for LayerNorm and 1e-6 for RMSNorm."""
    dropout: float
    """Probability of dropping embeddings and layer outputs, v0 .. v16; 0.1 suits several epochs."""
    pad_vocab_to: int
    """Round the embedding's rows up to a multiple of this, for speed; logits never see the rest."""
    allow_no_warmup: bool
    """Train post-norm layers with optim.warmup=0 all the same."""

    def check(self, p: Problems) -> None:
        """In place of the control's own checks: without rotary positions heads may be odd."""
        self._check_sizes(p)
        self._check_preset(p)
        self._check_combinations(p)

    def _check_sizes(self, p: Problems) -> None:
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        p.require_at_least(
            self, dict.fromkeys(("num_layers", "model_dim", "num_heads", "pad_vocab_to"), 1)
        )
        p.require_heads(self.num_heads, self.model_dim)
        p.require_mlp(self)
        p.require(
            self.norm_eps is None or self.norm_eps > 0,
            f"model_cfg.norm_eps={self.norm_eps} must be positive or null",
        )
        p.require(0 <= self.dropout < 1, f"model_cfg.dropout={self.dropout} must be in [0, 1)")

    def _check_preset(self, p: Problems) -> None:
        if self.preset != "custom":
            for key in self._set_by_hand():
                value = getattr(self, key)
                p.add(
                    f"model_cfg.{key}={show_value(value)} is decided by "
                    f"model_cfg.preset={self.preset}; leave it null, or use model_cfg.preset=custom"
                )
        p.require(self.rope_base > 0, f"model_cfg.rope_base={self.rope_base} must be positive")
        p.require(
            self.rope_base == ROPE_BASE or self.preset == "custom",
            f"model_cfg.rope_base={self.rope_base} does not reach model_cfg.preset={self.preset}; "
            f"leave it at {ROPE_BASE:g}, or use model_cfg.preset=custom",
        )
        if self.preset == "control":
            p.require(
                self.norm_eps is None,
                f"model_cfg.norm_eps={self.norm_eps} does not reach model_cfg.preset=control, "
                "which has 1e-6; leave it null, or use model_cfg.preset=custom",
            )
            p.require(
                self.dropout == 0,
                f"model_cfg.dropout={self.dropout} does not reach model_cfg.preset=control, which "
                "has none; leave it at 0, or use model_cfg.preset=custom",
            )

    def _check_combinations(self, p: Problems) -> None:
        switches = self.switches
        if switches.position == "sinusoidal":
            p.require(
                self.model_dim % 2 == 0,
                f"model_cfg.model_dim={self.model_dim} is odd, and sinusoidal positions need pairs "
                f"of channels; use {self.model_dim + 1}",
            )
        divides = self.num_heads >= 1 and self.model_dim % self.num_heads == 0
        if switches.position == "rope" and divides:
            head_dim = self.model_dim // self.num_heads
            p.require(
                head_dim % 2 == 0,
                f"model_cfg.model_dim={self.model_dim} over model_cfg.num_heads={self.num_heads} "
                f"makes heads of width {head_dim}, and rotary positions need pairs of channels; "
                "use an even width",
            )
        p.require(
            self.rope_base == ROPE_BASE or switches.position == "rope",
            f"model_cfg.rope_base={self.rope_base} has no effect with model_cfg.position="
            f"{switches.position}; leave it at {ROPE_BASE:g}",
        )
        p.require(
            switches.init not in UNIT_EMBEDDING or not switches.tie_embeddings,
            f"model_cfg.init={switches.init} draws embeddings of unit variance, too large for a "
            "head; use model_cfg.tie_embeddings=false",
        )
        p.require(
            not (switches.norm_embedding and switches.scale_embedding),
            "model_cfg.scale_embedding=true has no effect with model_cfg.norm_embedding=true; use "
            "false",
        )

    def _set_by_hand(self) -> list[str]:
        return [key for key in SWITCH_KEYS if getattr(self, key) is not None]

    @property
    def switches(self) -> Switches:
        """The preset's switches; custom has those set by hand on top of the control's."""
        if self.preset != "custom":
            return PRESETS[self.preset]
        return replace(
            PRESETS["control"], **{key: getattr(self, key) for key in self._set_by_hand()}
        )

    @property
    def num_rows(self) -> int:
        """P: rows of the embedding and the head, the vocabulary among them."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def eps(self) -> float:
        """What the norms add to the variance."""
        if self.norm_eps is not None:
            return self.norm_eps
        return 1e-6 if self.switches.norm == "rms" else 1e-5

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        problems = []
        switches, seq_len = self.switches, self.seq_len
        form = f"model_cfg.preset={self.preset}"
        if switches.position == "learned" and training.data.seq_len > seq_len:
            problems.append(
                f"data.seq_len={training.data.seq_len} is longer than the position table of "
                f"{form}, model_cfg.seq_len={seq_len}; use model_cfg.seq_len=null to follow "
                "data.seq_len"
            )
        no_warmup = training.optim.warmup == 0 and not self.allow_no_warmup
        if switches.norm_position == "post" and no_warmup:
            problems.append(
                f"optim.warmup=0 with {form}, whose norm_position=post stalls without a warm-up; "
                "use optim.warmup=0.05, or insist with model_cfg.allow_no_warmup=true"
            )
        return problems


SWITCH_KEYS = tuple(field.name for field in fields(Switches))


Config = VanillaConfig
