"""The settings of Mamba-1 and Mamba-2. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.ranges import Layers
from nanozoo_core.errors import Problems, divisors


class Shape(NamedTuple):
    num_layers: int
    model_dim: int


PRESETS = {
    "130m": Shape(24, 768),
    "370m": Shape(48, 1024),
    "790m": Shape(48, 1536),
    "1.4b": Shape(48, 2048),
    "2.8b": Shape(64, 2560),
}
"""The released sizes; both variants have the same shapes."""

TINY = Shape(8, 128)

# What each variant alone reads: its value in a preset, and in the tiny model.
OWN: dict[str, dict[str, tuple[Any, Any]]] = {
    "mamba1": {
        "time_step_rank": (None, None),  # made of model_dim
        "time_step_init_scheme": ("random", "random"),
        "time_step_scale": (1.0, 1.0),
    },
    "mamba2": {
        "head_dim": (64, 32),
        "num_groups": (1, 1),
        "A_init_range": ([1.0, 16.0], [1.0, 16.0]),
        "chunk_size": (256, 32),
    },
}
STATES = {"mamba1": (16, 16), "mamba2": (128, 64)}


@dataclass(frozen=True)
class MambaConfig:
    renamed: ClassVar[dict[str, str]] = {
        "headdim": "head_dim",
        "ngroups": "num_groups",
        "n_groups": "num_groups",
        "d_intermediate": "mlp_dim",
        "state_size": "d_state",
        "conv_kernel": "d_conv",
        "dt_rank": "time_step_rank",
        "dt_min": "time_step_min",
        "dt_max": "time_step_max",
        "layer_norm_epsilon": "norm_eps",
    }

    not_of_the_weights: ClassVar[tuple[str, ...]] = ("seq_len", "chunk_size", "reset_at_documents")

    vocab_size: int
    """Tokens in the vocabulary; null is the tokenizer's."""
    seq_len: int
    """Length trained on; null is data.seq_len. There is no longest text."""
    variant: Literal["mamba1", "mamba2"]
    """mamba1: a decay per channel and state; mamba2: one per head, as matrix products."""
    preset: Literal["130m", "370m", "790m", "1.4b", "2.8b"] | None
    """A released size: sets num_layers and model_dim, and the defaults below that say so."""
    num_layers: Layers | None
    """Blocks, each about half a transformer's; null is the preset's, or 8."""
    model_dim: int | None
    """Width of the residual stream; null is the preset's, or 128."""
    tie_embeddings: bool
    """Use the input embedding as the output head."""
    initializer_range: float
    """Standard deviation of the embedding at the start."""
    residual_in_fp32: bool
    """Keep the residual stream in float32 under bfloat16."""
    norm_eps: float
    """Added to the mean square in every RMSNorm."""
    expand: int
    """Inner width over model_dim."""
    use_bias: bool
    """Biases in the projections into and out of a mixer."""
    d_conv: int
    """Width of the causal convolution, in positions: 2, 3 or 4."""
    use_conv_bias: bool
    """Biases of the convolution."""
    d_state: int | None
    """States of a channel, at most 256; null is 16, with mamba2 64 (128 in a preset)."""
    time_step_rank: int | Literal["auto"] | None
    """mamba1: rank of the projection to the step sizes; null or auto is model_dim / 16, rounded
    up."""
    time_step_init_scheme: Literal["random", "uniform", "constant"] | None
    """mamba1: the projection to the step sizes starts uniform (random, uniform) or constant; null
    is random."""
    time_step_scale: float | None
    """mamba1: factor on that start; null is 1."""
    time_step_min: float
    """Least step size at the start."""
    time_step_max: float
    """Largest step size at the start."""
    time_step_floor: float
    """Step sizes at the start are not below this."""
    head_dim: int | None
    """mamba2: channels of a head, a divisor of expand * model_dim; null is 32 (64 in a preset)."""
    num_groups: int | None
    """mamba2: groups of heads with their own b and c; null is 1."""
    A_init_range: list[float] | None
    """mamba2: range of the decay rates at the start; null is [1, 16]."""
    chunk_size: int | None
    """mamba2: positions per block of the scan, a power of 2; changes speed, not results; null is 32
    (256 in a preset)."""
    scan_backend: Literal["auto", "torch", "triton"]
    """How the scan runs: auto is triton on a GPU and torch elsewhere."""
    rescale_prenorm_residual: bool
    """Divide the weights that write to the stream by the root of the number of those at the
    start."""
    mlp_dim: int
    """Hidden width of a SwiGLU behind each mixer; 0 is none, as published."""
    reset_at_documents: bool
    """Let nothing pass between the documents of a window."""

    def __post_init__(self) -> None:
        p = Problems()
        released = PRESETS.get(self.preset or "")
        published = {} if released is None else released._asdict()
        p.take_preset(self, self.preset, published, TINY._asdict())
        self._resolve_variant(p)
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        p.require_at_least(
            self, {"num_layers": 1, "model_dim": 1, "expand": 1, "d_state": 1, "mlp_dim": 0}
        )
        p.require(self.states <= 256, f"model_cfg.d_state={self.d_state} must be at most 256")
        p.require(2 <= self.d_conv <= 4, f"model_cfg.d_conv={self.d_conv} must be 2, 3 or 4")
        for key in ("norm_eps", "initializer_range", "time_step_floor"):
            value = getattr(self, key)
            p.require(value > 0, f"model_cfg.{key}={value} must be positive")
        p.require(
            0 < self.time_step_min < self.time_step_max,
            f"model_cfg.time_step_min={self.time_step_min} must be positive and less than "
            f"model_cfg.time_step_max={self.time_step_max}",
        )
        p.require(
            self.time_step_floor <= self.time_step_max,
            f"model_cfg.time_step_floor={self.time_step_floor} must not exceed "
            f"model_cfg.time_step_max={self.time_step_max}",
        )
        if self.variant == "mamba1":
            self._check_mamba1(p)
        elif self.expand >= 1 and self.shape.model_dim >= 1:
            self._check_mamba2(p)
        p.raise_if_any()

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    def _resolve_variant(self, p: Problems) -> None:
        """Fills in what the variant reads; what only the other reads must be null."""
        place = 0 if self.preset else 1
        if self.d_state is None:
            self._set("d_state", STATES[self.variant][place])
        for variant, keys in OWN.items():
            for key, defaults in keys.items():
                value = getattr(self, key)
                if variant == self.variant:
                    self._set(key, defaults[place] if value is None else value)
                else:
                    p.require(
                        value is None,
                        f"model_cfg.{key}={value} has no effect with model_cfg.variant="
                        f"{self.variant}; leave it out",
                    )
        if self.variant == "mamba1":
            if self.time_step_rank in (None, "auto"):
                self._set("time_step_rank", -(-self.shape.model_dim // 16))
            if self.time_step_init_scheme == "uniform":
                self._set("time_step_init_scheme", "random")

    def _check_mamba1(self, p: Problems) -> None:
        p.require_at_least(self, {"time_step_rank": 1})
        scale = self.time_step_scale
        p.require(
            scale is not None and scale > 0, f"model_cfg.time_step_scale={scale} must be positive"
        )

    def _check_mamba2(self, p: Problems) -> None:
        inner, head_dim = self.inner_dim, self.heads.head_dim
        if p.require(
            head_dim >= 1 and inner % head_dim == 0,
            f"model_cfg.head_dim={head_dim} does not divide model_cfg.expand * model_cfg.model_dim"
            f"={inner}; use {divisors(inner)}",
        ):
            num_heads, groups = inner // head_dim, self.heads.num_groups
            p.require(
                groups >= 1 and num_heads % groups == 0,
                f"model_cfg.num_groups={groups} does not divide the {num_heads} heads; use "
                f"{divisors(num_heads)}",
            )
        decays = self.A_init_range or []
        p.require(
            len(decays) == 2 and 0 < decays[0] <= decays[1],
            f"model_cfg.A_init_range={self.A_init_range} must be two positive numbers, the least "
            "first",
        )
        size = self.heads.chunk_size
        p.require(
            size >= 16 and size & (size - 1) == 0,
            f"model_cfg.chunk_size={size} must be a power of 2 and at least 16",
        )

    # -- what the settings amount to ------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """num_layers and model_dim, which are never null once the config is made."""
        return Shape(self.num_layers, self.model_dim)  # type: ignore[arg-type]

    @property
    def inner_dim(self) -> int:
        """Channels of a mixer."""
        return self.expand * self.shape.model_dim

    @property
    def states(self) -> int:
        """d_state, which is never null once the config is made."""
        return self.d_state  # type: ignore[return-value]

    @property
    def steps(self) -> StepSettings:
        """What only mamba1 reads."""
        given = (self.time_step_rank, self.time_step_init_scheme, self.time_step_scale)
        return StepSettings(*given)  # type: ignore[arg-type]

    @property
    def heads(self) -> HeadSettings:
        """What only mamba2 reads."""
        given = (self.head_dim, self.num_groups, self.A_init_range, self.chunk_size)
        return HeadSettings(*given)  # type: ignore[arg-type]

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        problems = []
        if training.data.seq_len != self.seq_len:
            problems.append(
                f"model_cfg.seq_len={self.seq_len} is the length trained on, but data.seq_len="
                f"{training.data.seq_len}; use model_cfg.seq_len=null to follow it"
            )
        return problems


class StepSettings(NamedTuple):
    rank: int
    init_scheme: str
    scale: float


class HeadSettings(NamedTuple):
    head_dim: int
    num_groups: int
    decay_range: list[float]
    chunk_size: int


Config = MambaConfig
