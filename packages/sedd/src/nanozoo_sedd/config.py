"""Settings of a SEDD. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.config.diffusion import DiffusionConfig
from nanozoo_core.errors import Problems, show_value

LEAST_NOISE_EPS = 1e-3  # of what the network is told where noise_eps is 0 and sigma has no end


@dataclass(frozen=True)
class SEDDConfig(DiffusionConfig):
    renamed: ClassVar[dict[str, str]] = {"num_timesteps": "sampling_steps"}

    time_conditioning: Literal["auto", True, False]
    """Tell the network sigma by adaLN; only absorbing can do without; auto: where it is needed."""
    transition_type: Literal["absorbing", "uniform"]
    """Where a corrupted token goes: the mask, or any token."""
    noise_schedule: Literal["auto", "loglinear", "geometric", "mutual_info"]
    """sigma(t); auto: loglinear for absorbing, geometric for uniform. mutual_info: loglinear."""
    noise_eps: float
    """Share of tokens that loglinear leaves intact at t=1, in training; the score of absorbing
    always runs to 0."""
    sigma_min: float
    """sigma(0) of geometric."""
    sigma_max: float
    """sigma(1) of geometric."""
    score_scaling: Literal["auto", True, False]
    """Multiply the score by its known size, 1 / (V (e^sigma - 1)); auto: exactly for absorbing."""
    score_param: Literal["raw", "denoiser"]
    """raw: the network's output is log s; denoiser: s follows from a softmax. Only for uniform."""
    time_sampler: Literal["auto", "t", "k"]
    """Training noise: t draws the time, k the number of masked tokens; auto: k for absorbing."""
    stratified: bool
    """Spread t or k evenly over the global batch; false draws them independently."""
    t_min: float
    """Least t in training, for time_sampler=t; the score always starts at 0."""
    predictor: Literal["analytic", "euler", "first_hitting"]
    """How a step is drawn; first_hitting lifts one mask at a time, without any time."""
    sampling_steps: int
    """Denoising steps of a generated window; they do not enter the score."""

    def check(self, p: Problems) -> None:
        super().check(p)
        self._check_noise(p)
        self._check_graph(p)
        self._check_sampling(p)
        refuse_unused(p, "sedd", self, self._unused())

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

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        unused: dict[str, str] = {}
        if self.schedule_name == "loglinear":
            unused |= dict.fromkeys(("sigma_min", "sigma_max"), "noise_schedule=loglinear")
        else:
            unused["noise_eps"] = "noise_schedule=geometric"
        if self.draws_counts:
            unused["t_min"] = "time_sampler=k"
            if not self.knows_time:
                unused["noise_eps"] = (
                    "time_sampler=k and model_cfg.time_conditioning=false, which read no time in "
                    "training"
                )
        if not self.knows_time:
            unused["cond_dim"] = "time_conditioning=false"
        if self.predictor == "first_hitting":
            unused["sampling_steps"] = "predictor=first_hitting"
            if self.draws_counts:
                keys = ("noise_schedule", "sigma_min", "sigma_max")
                why = "time_sampler=k and model_cfg.predictor=first_hitting, which read no time"
                unused |= dict.fromkeys(keys, why)
        return unused

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


Config = SEDDConfig
