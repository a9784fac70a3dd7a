"""Settings of a SEDD. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from nanozoo_core.errors import Problems, show_value

if TYPE_CHECKING:
    from nanozoo_core.config import TrainingConfig

LEAST_NOISE_EPS = 1e-3  # of what the network is told where noise_eps is 0 and sigma has no end


@dataclass(frozen=True)
class SEDDConfig:
    renamed: ClassVar[dict[str, str]] = {"num_timesteps": "sampling_steps"}

    vocab_size: int | None = None
    """Data tokens; null takes the tokenizer's. The mask is added after them by the model."""
    seq_len: int | None = None
    """Scored tokens per window; null takes data.seq_len. The network sees one more, the context."""
    model_dim: int = 128
    """Width of the residual stream."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 4
    """Attention heads; model_dim / num_heads must be even for rotary positions."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over model_dim."""
    dropout: float = 0.0
    """After attention and MLP; about 0.1 when the data is seen many times."""
    tie_embeddings: bool = False
    """Share input embedding and output head; the head then cannot start at zero."""
    time_conditioning: Literal["auto", True, False] = True
    """Tell the network sigma by adaLN; only absorbing can do without; auto: where it is needed."""
    cond_dim: int = 64
    """Width of the time embedding."""
    transition_type: Literal["absorbing", "uniform"] = "absorbing"
    """Where a corrupted token goes: the mask, or any token."""
    noise_schedule: Literal["auto", "loglinear", "geometric", "mutual_info"] = "auto"
    """sigma(t); auto: loglinear for absorbing, geometric for uniform. mutual_info: loglinear."""
    noise_eps: float = 1e-3
    """Share of tokens that loglinear leaves intact at t=1, in training; the score of absorbing
    always runs to 0."""
    sigma_min: float = 1e-4
    """sigma(0) of geometric."""
    sigma_max: float = 20.0
    """sigma(1) of geometric."""
    score_scaling: Literal["auto", True, False] = "auto"
    """Multiply the score by its known size, 1 / (V (e^sigma - 1)); auto: exactly for absorbing."""
    score_param: Literal["raw", "denoiser"] = "raw"
    """raw: the network's output is log s; denoiser: s follows from a softmax. Only for uniform."""
    absorbing_state_idx: int = -1
    """The mask: -1, an id appended after the data tokens. Nothing else is possible."""
    time_sampler: Literal["auto", "t", "k"] = "auto"
    """Training noise: t draws the time, k the number of masked tokens; auto: k for absorbing."""
    stratified: bool = True
    """Spread t or k evenly over the global batch; false draws them independently."""
    t_min: float = 1e-3
    """Least t in training, for time_sampler=t; the score always starts at 0."""
    lm_loss_weight: float = 0.0
    """There is no next-token loss: 0."""
    predictor: Literal["analytic", "euler", "first_hitting"] = "analytic"
    """How a step is drawn; first_hitting lifts one mask at a time, without any time."""
    sampling_steps: int = 64
    """Denoising steps of a generated window; they do not enter the score."""
    sar_chunk_size: int | None = None
    """New tokens per window when text goes on past one window; null is a quarter of the window."""

    def __post_init__(self) -> None:
        p = Problems()
        self._check_network(p)
        self._check_noise(p)
        self._check_graph(p)
        self._check_sampling(p)
        self._check_idle(p)
        p.raise_if_any()

    def _check_network(self, p: Problems) -> None:
        sizes = ("model_dim", "num_layers", "num_heads", "mlp_ratio", "cond_dim")
        p.require_at_least(self, dict.fromkeys(sizes, 1))
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 2}, or_null=True)
        p.require_rotary_heads(self.num_heads, self.model_dim)
        p.require(0 <= self.dropout < 1, f"model_cfg.dropout={self.dropout} must be in [0, 1)")

    def _check_noise(self, p: Problems) -> None:
        p.require(
            0 <= self.noise_eps < 0.1, f"model_cfg.noise_eps={self.noise_eps} must be in [0, 0.1)"
        )
        p.require(
            0 < self.sigma_min < self.sigma_max < math.inf,
            f"model_cfg.sigma_min={self.sigma_min} and model_cfg.sigma_max={self.sigma_max} must "
            "be positive, the first below the second",
        )
        p.require(0 <= self.t_min < 0.5, f"model_cfg.t_min={self.t_min} must be in [0, 0.5)")
        p.require(
            self.absorbing_state_idx == -1,
            f"model_cfg.absorbing_state_idx={self.absorbing_state_idx} would collide with a data "
            "token; leave it at -1, the mask id appended after the vocabulary",
        )
        p.require(
            self.lm_loss_weight == 0,
            f"model_cfg.lm_loss_weight={self.lm_loss_weight} must be 0: SEDD has no next-token "
            "loss; use vanilla for one",
        )

    def _check_graph(self, p: Problems) -> None:
        if self.is_absorbing:
            p.require(
                self.score_scaling is not False,
                "model_cfg.score_scaling=false would leave the network to learn a factor that is "
                "known and runs from 1e-3 to 1e3; use auto with transition_type=absorbing",
            )
            p.require(
                self.score_param == "raw",
                f"model_cfg.score_param={self.score_param} is only for "
                "model_cfg.transition_type=uniform; use raw",
            )
            return
        refusals = {
            "noise_schedule": (
                self.noise_schedule == "mutual_info",
                "is defined for a mask; use geometric or loglinear",
            ),
            "noise_eps": (
                self.schedule_name == "loglinear" and self.noise_eps == 0,
                "makes the bound infinite, as the rate of jumps grows without end; use 1e-3",
            ),
            "score_scaling": (
                self.score_scaling is True,
                "is the scale of a score at a mask; use auto",
            ),
            "time_sampler": (
                self.time_sampler == "k",
                "counts masked tokens; use t",
            ),
            "time_conditioning": (
                not self.knows_time,
                "would hide the level of noise, which cannot be seen from the tokens; use true",
            ),
            "predictor": (
                self.predictor == "first_hitting",
                "lifts masks; use analytic or euler",
            ),
        }
        for key, (refused, reason) in refusals.items():
            value = show_value(getattr(self, key))
            p.require(
                not refused,
                f"model_cfg.{key}={value} does not go with model_cfg.transition_type=uniform: "
                f"it {reason}",
            )

    def _check_sampling(self, p: Problems) -> None:
        p.require_at_least(self, {"sampling_steps": 1})
        p.require(
            self.predictor != "first_hitting" or not self.knows_time,
            "model_cfg.predictor=first_hitting needs model_cfg.time_conditioning=false: it has no "
            "time to tell the network; use analytic",
        )
        if self.sar_chunk_size is not None:
            p.require(
                1 <= self.sar_chunk_size < (self.seq_len or math.inf),
                f"model_cfg.sar_chunk_size={self.sar_chunk_size} must be at least 1 and below the "
                f"window of model_cfg.seq_len={self.seq_len} tokens, so that context is left",
            )

    def _check_idle(self, p: Problems) -> None:
        """Settings that were changed and that nothing would read."""
        defaults = {field.name: field.default for field in fields(self)}
        readers = {
            "noise_eps": ("noise_schedule=loglinear", self.schedule_name == "loglinear"),
            "sigma_min": ("noise_schedule=geometric", self.schedule_name == "geometric"),
            "sigma_max": ("noise_schedule=geometric", self.schedule_name == "geometric"),
            "t_min": ("time_sampler=t", not self.draws_counts),
        }
        for key, (reader, is_read) in readers.items():
            value = getattr(self, key)
            p.require(
                is_read or value == defaults[key],
                f"model_cfg.{key}={value} has no use without model_cfg.{reader}; leave it at "
                f"{defaults[key]}",
            )

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems that involve the data."""
        if self.seq_len is not None and training.data.seq_len > self.seq_len:
            return [
                f"data.seq_len={training.data.seq_len} is longer than the window of "
                f"model_cfg.seq_len={self.seq_len} that the model reads"
            ]
        return []

    @property
    def knows_time(self) -> bool:
        """Whether the network is told sigma."""
        if self.time_conditioning == "auto":
            return not self.is_absorbing
        return self.time_conditioning

    @property
    def is_absorbing(self) -> bool:
        return self.transition_type == "absorbing"

    @property
    def schedule_name(self) -> Literal["loglinear", "geometric"]:
        if self.noise_schedule == "auto":
            return "loglinear" if self.is_absorbing else "geometric"
        return "geometric" if self.noise_schedule == "geometric" else "loglinear"

    @property
    def draws_counts(self) -> bool:
        """Training draws the number of masked tokens and not the time."""
        if self.time_sampler == "auto":
            return self.is_absorbing
        return self.time_sampler == "k"

    @property
    def largest_sigma(self) -> float:
        """The most noise that training shows; the network is never told more."""
        if self.schedule_name == "geometric":
            return self.sigma_max
        return -math.log(self.noise_eps or LEAST_NOISE_EPS)

    @property
    def chunk_size(self) -> int:
        assert self.seq_len is not None
        return self.sar_chunk_size or max(1, self.seq_len // 4)


Config = SEDDConfig
