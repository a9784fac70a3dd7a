"""Settings of an MDLM. Nothing here imports torch."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from nanozoo_core.errors import Problems

if TYPE_CHECKING:
    from nanozoo_core.config import TrainingConfig


@dataclass(frozen=True)
class MDLMConfig:
    renamed: ClassVar[dict[str, str]] = {"use_low_discrepancy_sampler": "stratified"}

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
    time_conditioning: bool = False
    """Tell the network the noise level by adaLN; the bound does not need it."""
    cond_dim: int = 64
    """Width of the time embedding, where there is one."""
    adaln_when_unconditioned: bool = False
    """Keep adaLN with a constant time, the layout of the released code."""
    use_subs_parameterization: bool = True
    """No mass on the mask, clean tokens carried over: what makes this model. Always true."""
    alpha_type: Literal["linear", "cosine", "cosine_sq"] = "linear"
    """How the share of clean tokens falls from 1 to 0; the bound is the same for all."""
    alpha_min: float = 0.0
    """Share of clean tokens at the end: 0, or the bound would lack its prior term."""
    alpha_max: float = 1.0
    """Share of clean tokens at the start: 1, or the bound would lack its reconstruction term."""
    continuous_time: bool = True
    """Bound the limit of infinitely many steps; false bounds the model of num_timesteps."""
    num_timesteps: int | None = None
    """T, only with continuous_time=false."""
    time_sampler: Literal["k", "t"] = "k"
    """Draw the number of masked tokens (less variance), or the time as the paper does."""
    stratified: bool = True
    """Spread the draws of time_sampler evenly over the global batch; false is a control."""
    t_min: float = 1e-3
    """Least time in training with time_sampler=t, where the weight is 1/t; never in evaluation."""
    sampler: Literal["ancestral", "ancestral_cache", "first_hitting", "confidence"] = (
        "first_hitting"
    )
    """ancestral_cache skips the network where ancestral lifts no mask; first_hitting lifts one mask
    at a time, exactly; confidence lifts the surest, which is no longer the model's distribution."""
    num_sampling_steps: int = 64
    """Steps of a window; first_hitting takes one per token instead."""
    sar_chunk_size: int | None = None
    """New tokens per window when text goes on past one window; null is a quarter of the window."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 2}, or_null=True)
        p.require_at_least(
            self,
            dict.fromkeys(("model_dim", "num_layers", "num_heads", "mlp_ratio", "cond_dim"), 1)
            | {"num_sampling_steps": 1},
        )
        p.require_rotary_heads(self.num_heads, self.model_dim)
        p.require(0 <= self.dropout < 1, f"model_cfg.dropout={self.dropout} must be in [0, 1)")
        self._check_bound(p)
        if self.sar_chunk_size is not None:
            p.require(
                1 <= self.sar_chunk_size < (self.seq_len or math.inf),
                f"model_cfg.sar_chunk_size={self.sar_chunk_size} must be at least 1 and below the "
                f"window of model_cfg.seq_len={self.seq_len} tokens, so that context is left",
            )
        p.raise_if_any()
        self._warn_of_unused()

    def _check_bound(self, p: Problems) -> None:
        p.require(
            self.use_subs_parameterization,
            "model_cfg.use_subs_parameterization=false is another model; train d3pm, or use true",
        )
        for key, end in (("alpha_max", 1), ("alpha_min", 0)):
            value = getattr(self, key)
            p.require(
                value == end,
                f"model_cfg.{key}={value} must be {end}: alpha must run from 1 to 0, else the "
                "bound is not a bound",
            )
        p.require(0 <= self.t_min < 0.5, f"model_cfg.t_min={self.t_min} must be in [0, 0.5)")
        if self.continuous_time:
            p.require(
                self.num_timesteps is None,
                f"model_cfg.num_timesteps={self.num_timesteps} needs "
                "model_cfg.continuous_time=false; use null",
            )
            return
        p.require(
            self.num_timesteps is not None and self.num_timesteps >= 1,
            f"model_cfg.continuous_time=false needs model_cfg.num_timesteps of at least 1, not "
            f"{self.num_timesteps}",
        )
        p.require(
            self.time_sampler == "k",
            "model_cfg.time_sampler=t draws from continuous time; with "
            "model_cfg.continuous_time=false use k",
        )

    def _warn_of_unused(self) -> None:
        """Settings that change nothing beside the others."""
        unused: dict[str, str] = {}
        if self.time_sampler == "k":
            unused["t_min"] = "time_sampler=k"
        if not self.time_conditioning and not self.adaln_when_unconditioned:
            unused["cond_dim"] = "time_conditioning=false"
        if self.time_conditioning:
            unused["adaln_when_unconditioned"] = "time_conditioning=true"
        if self.sampler == "first_hitting":
            unused["num_sampling_steps"] = "sampler=first_hitting"
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                warnings.warn(
                    f"model_cfg.{field.name}={value} has no effect with "
                    f"model_cfg.{unused[field.name]}",
                    stacklevel=4,
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
    def chunk_size(self) -> int:
        assert self.seq_len is not None
        return self.sar_chunk_size or max(1, self.seq_len // 4)


Config = MDLMConfig
