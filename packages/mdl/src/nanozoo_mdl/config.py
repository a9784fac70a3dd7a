"""Settings of an MDLM. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.config.diffusion import DiffusionConfig
from nanozoo_core.errors import Problems


@dataclass(frozen=True)
class MDLMConfig(DiffusionConfig):
    renamed: ClassVar[dict[str, str]] = {"use_low_discrepancy_sampler": "stratified"}

    block_size: int | None
    """Cut the window into blocks of this many tokens, each denoised given all before it; null is
    one block, the whole window, and 1 a next-token model."""
    time_conditioning: bool
    """Tell the network the noise level by adaLN; the bound does not need it."""
    adaln_when_unconditioned: bool
    """Keep adaLN with a constant time, the layout of the released code."""
    alpha_type: Literal["linear", "cosine", "cosine_sq"]
    """How the share of clean tokens falls from 1 to 0; the bound is the same for all."""
    continuous_time: bool
    """Bound the limit of infinitely many steps; false bounds the model of num_timesteps."""
    num_timesteps: int | None
    """T, only with continuous_time=false."""
    time_sampler: Literal["k", "t"]
    """Draw the number of masked tokens (less variance), or the time as the paper does."""
    stratified: bool
    """Spread the draws of time_sampler evenly over the global batch; false is a control."""
    t_min: float
    """Least time in training with time_sampler=t, where the weight is 1/t; never in evaluation."""
    sampler: Literal["ancestral", "ancestral_cache", "first_hitting", "confidence", "remask"]
    """ancestral_cache skips the network where ancestral lifts no mask; first_hitting lifts one mask
    at a time, exactly; confidence lifts the surest, which is no longer the model's distribution;
    remask hides drawn tokens again, to draw them anew."""
    remask_cap: float
    """Most of the drawn tokens, as a share, that sampler=remask hides again in a step."""
    num_sampling_steps: int
    """Steps of a window, or of each of its blocks; first_hitting takes one per token instead."""

    def check(self, p: Problems) -> None:
        super().check(p)
        refuse_unused(p, "mdl", self, self._unused())
        p.require_at_least(self, {"num_sampling_steps": 1})
        p.require(
            self.block_size is None or 1 <= self.block_size <= self.seq_len,
            f"model_cfg.block_size={self.block_size} must be from 1 to the window of "
            f"model_cfg.seq_len={self.seq_len} tokens; use null for one block of all",
        )
        p.require(
            0 < self.remask_cap <= 1,
            f"model_cfg.remask_cap={self.remask_cap} must be in (0, 1]; to hide no token again use "
            "model_cfg.sampler=ancestral",
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

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        unused: dict[str, str] = {}
        if self.time_sampler == "k":
            unused["t_min"] = "time_sampler=k"
        if self.time_conditioning:
            unused["adaln_when_unconditioned"] = "time_conditioning=true"
        elif not self.adaln_when_unconditioned:
            unused["cond_dim"] = "time_conditioning=false"
        if self.sampler != "remask":
            unused["remask_cap"] = f"sampler={self.sampler}"
        if self.sampler == "first_hitting":
            unused["num_sampling_steps"] = "sampler=first_hitting"
        if not self.reads_schedule:
            unused["alpha_type"] = (
                "time_sampler=k and model_cfg.sampler=first_hitting, for which the noise is its "
                "own time"
            )
        return unused

    @property
    def reads_schedule(self) -> bool:
        """Whether alpha of the time enters training, score or sampling. By the number of masks it
        does not: the network is then told sigma of the noise itself."""
        draws_times = self.time_sampler == "t" or not self.continuous_time
        return draws_times or self.sampler != "first_hitting"


Config = MDLMConfig
