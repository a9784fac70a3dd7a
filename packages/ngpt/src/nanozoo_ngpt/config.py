"""The settings of nGPT. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.errors import Problems

MLP_MULTIPLE = 64  # a round width for the matrix product


@dataclass(frozen=True)
class NGPTConfig(ControlConfig):
    mlp_ratio: float
    """Width of the MLP relative to model_dim, rounded to a multiple of 64; the paper has 4."""
    alpha_init: float | None
    """Fraction of the way to a sublayer's proposal at the start; null is 1/num_layers."""
    alpha_scale: float | None
    """Size at which alpha is stored: its rate is alpha_init/alpha_scale; null is 1/sqrt(model_dim).
    """
    sqk_scale: float | None
    """Size at which the scale of queries and keys is stored; null is 1/sqrt(model_dim)."""
    sz_scale: float | None
    """Size at which the scale of the logits is stored; null is 1/sqrt(model_dim)."""
    qk_scale: Literal["after_rope", "before_rope", "none"]
    """Where queries and keys are scaled: after_rope as published; before_rope keeps scores a
    function of distance alone; none leaves them unit vectors."""
    rope_base: float
    """Base of the rotary wavelengths; raise it for long windows."""
    weight_norm: Literal["project", "reparam"]
    """project puts the weights back on the sphere after every step; reparam divides by their norms
    in the forward pass instead."""
    tie_embeddings: bool
    """Use the input embedding as the output head."""
    pad_vocab_to: int
    """Round the embedding's rows up to a multiple of this, for speed; logits never see the rest."""

    def check(self, p: Problems) -> None:
        super().check(p)
        p.require_at_least(self, {"pad_vocab_to": 1})
        alpha = self.alpha_init
        p.require(
            alpha is None or 0 < alpha <= 1,
            f"model_cfg.alpha_init={alpha} must be in (0, 1] or null: it is a share of the way to "
            "a sublayer's proposal",
        )
        for key in ("alpha_scale", "sqk_scale", "sz_scale"):
            value = getattr(self, key)
            p.require(
                value is None or value > 0, f"model_cfg.{key}={value} must be positive or null"
            )
        p.require(
            self.qk_scale != "none" or self.sqk_scale is None,
            f"model_cfg.sqk_scale={self.sqk_scale} has no effect with model_cfg.qk_scale=none; "
            "use null",
        )
        p.require(self.rope_base > 0, f"model_cfg.rope_base={self.rope_base} must be positive")

    @property
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        multiples = round(self.mlp_ratio * self.model_dim / MLP_MULTIPLE)
        return MLP_MULTIPLE * max(1, multiples)

    @property
    def first_alpha(self) -> float:
        """alpha_init, never null."""
        return 1 / self.num_layers if self.alpha_init is None else self.alpha_init

    def stored_size(self, scale: float | None) -> float:
        """A `..._scale`, never null."""
        return 1 / math.sqrt(self.model_dim) if scale is None else scale

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        form = f"model_cfg.weight_norm={self.weight_norm}"
        optim = training.optim
        decays = {
            "optim.weight_decay": optim.weight_decay,
            "optim.muon.weight_decay": optim.muon.weight_decay,
        }
        problems = [
            f"{key}={decay} has no use with {form}, which fixes the length of every weight vector; "
            f"use {key}=0"
            for key, decay in decays.items()
            if decay > 0
        ]
        if training.train.ema > 0 and self.weight_norm == "project":
            problems.append(
                f"train.ema={training.train.ema} averages weights to inside the sphere, where "
                f"{form} does not hold; use train.ema=0 or model_cfg.weight_norm=reparam"
            )
        return problems


Config = NGPTConfig
