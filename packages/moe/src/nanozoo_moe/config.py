"""The settings of the mixture of experts. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.control import ControlConfig
from nanozoo_core.errors import Problems

PRESETS: dict[str, dict[str, Any]] = {
    "moe_mixtral": {
        "first_k_dense": 0,
        "num_experts": 8,
        "top_k": 2,
        "num_shared_experts": 0,
        "score_func": "softmax",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "balance": "loss",
        "beta": 0.0,  # Mixtral has no z-loss
    },
    "moe_olmoe": {
        "first_k_dense": 0,
        "num_experts": 64,
        "top_k": 8,
        "num_shared_experts": 0,
        "score_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "balance": "loss",
        "beta": 1e-3,
    },
}
"""The routing of Mixtral (2401.04088) and of OLMoE (2409.02060), on the control's block."""

DEFAULTS: dict[str, Any] = {
    "first_k_dense": 1,
    "num_experts": 8,
    "top_k": 2,
    "num_shared_experts": 1,
    "score_func": "sigmoid",
    "norm_topk_prob": True,
    "balance": "bias",
}


@dataclass(frozen=True)
class MoEConfig(ControlConfig):
    not_of_the_weights: ClassVar[tuple[str, ...]] = (
        *("seq_len", "bias_update_rate", "bias_freeze_frac", "seq_aux_alpha", "alpha", "beta"),
        *("jitter_noise", "allow_untested"),
    )

    first_k_dense: int | None
    """Blocks at the bottom that keep the dense MLP; null is the preset's, or 1."""
    preset: Literal["moe_mixtral", "moe_olmoe"] | None
    """A published routing: sets first_k_dense, num_experts, top_k, num_shared_experts, score_func,
    norm_topk_prob, routed_scaling_factor, balance and beta."""
    num_experts: int | None
    """Routed experts per layer; null is the preset's, or 8. One makes a dense model."""
    top_k: int | None
    """Routed experts that a token uses; null is the preset's, or 2 (1 of 1)."""
    num_shared_experts: int | None
    """Experts that every token uses; null is the preset's, or 1 (none beside one expert)."""
    moe_hidden: int | None
    """Width of an expert; null is mlp_ratio * model_dim / (top_k + num_shared_experts), rounded to
    a multiple of 16: a token then computes as much as in the dense model."""
    score_func: Literal["sigmoid", "softmax"] | None
    """Scores of the router; null is the preset's, or sigmoid."""
    norm_topk_prob: bool | None
    """Divide a token's kept scores by their sum; null is the preset's, or true."""
    routed_scaling_factor: float | None
    """Factor on the routed experts' output; null is the preset's, or sqrt(top_k) with
    norm_topk_prob, else 1."""
    balance: Literal["bias", "loss", "none"] | None
    """Balance loads by a bias on the choice, by a loss or not at all; null is the preset's, or bias
    (none with one expert)."""
    bias_update_rate: float | None
    """Step of the bias; rate * steps must exceed the spread of the scores, about 0.5. Null is 0.01
    with balance=bias; 0.001 suits thousands of steps."""
    bias_freeze_frac: float | None
    """Last part of the run with the bias at rest; null is 0.05 with balance=bias."""
    seq_aux_alpha: float | None
    """Weight of the balance loss within a sequence; null is 1e-4 with balance=bias."""
    alpha: float | None
    """Weight of the balance loss; null is 0.01 with balance=loss."""
    beta: float | None
    """Weight of the router's z-loss; null is the preset's, or 0.001 with balance=loss and
    score_func=softmax."""
    jitter_noise: float
    """Training multiplies the router's input by U(1 - jitter_noise, 1 + jitter_noise)."""
    experts_impl: Literal["auto", "grouped_mm", "loop", "dense"]
    """How experts multiply: auto is torch's grouped_mm where it serves, else the loop over experts;
    dense puts all tokens through all experts, as a reference."""
    allow_untested: bool
    """Accept balance=bias with score_func=softmax and norm_topk_prob=false, which nobody tried."""

    def check(self, p: Problems) -> None:
        """Fills what is null, from the preset or as its help line says, and checks all."""
        single: dict[str, Any] = {}
        if self.num_experts == 1:
            single = {"top_k": 1, "num_shared_experts": 0, "balance": "none"}
        published = PRESETS.get(self.preset or "", {})
        p.take_preset(self, self.preset, published, DEFAULTS | single)
        super().check(p)
        self._check_shape(p)
        self._resolve_balance(p)
        self._check_routing(p)

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    def _check_shape(self, p: Problems) -> None:
        p.require_at_least(self, {"num_experts": 1, "top_k": 1})
        p.require(
            0 <= self.num_dense <= self.num_layers,
            f"model_cfg.first_k_dense={self.first_k_dense} must be between 0 and "
            f"model_cfg.num_layers={self.num_layers}",
        )
        p.require(
            self.shared >= 0,
            f"model_cfg.num_shared_experts={self.num_shared_experts} must not be negative",
        )
        p.require(
            self.moe_hidden is None or self.moe_hidden >= 1,
            f"model_cfg.moe_hidden={self.moe_hidden} must be at least 1 or null",
        )

    def _resolve_balance(self, p: Problems) -> None:
        """The weights that `balance` gives a meaning, 0 for those that it does not."""
        softmax_loss = self.balance == "loss" and self.score_func == "softmax"
        owners = {
            "bias_update_rate": ("balance=bias", self.balance == "bias", 1e-2),
            "bias_freeze_frac": ("balance=bias", self.balance == "bias", 0.05),
            "seq_aux_alpha": ("balance=bias", self.balance == "bias", 1e-4),
            "alpha": ("balance=loss", self.balance == "loss", 1e-2),
            "beta": ("balance=loss and model_cfg.score_func=softmax", softmax_loss, 1e-3),
        }
        for key, (owner, holds, default) in owners.items():
            value = getattr(self, key)
            if value is None:
                self._set(key, default if holds else 0.0)
                continue
            p.require(value >= 0, f"model_cfg.{key}={value} must not be negative")
            p.require(
                holds or value <= 0,
                f"model_cfg.{key}={value} has no effect without model_cfg.{owner}; leave it out",
            )
        p.require(
            self.balance != "bias" or self.bias_update_rate != 0,
            "model_cfg.bias_update_rate=0 balances nothing; use model_cfg.balance=none",
        )
        p.require(
            (self.bias_freeze_frac or 0) <= 1,
            f"model_cfg.bias_freeze_frac={self.bias_freeze_frac} must be at most 1",
        )

    def _check_routing(self, p: Problems) -> None:
        num_experts, top_k = self.routed
        p.require(
            top_k <= num_experts,
            f"model_cfg.top_k={top_k} exceeds model_cfg.num_experts={num_experts}",
        )
        if num_experts == 1:
            p.require(
                self.balance == "none",
                f"model_cfg.balance={self.balance} has nothing to balance with "
                f"model_cfg.num_experts=1; use none",
            )
            p.require(
                self.norm_topk_prob is True,
                "model_cfg.norm_topk_prob=false has no meaning with model_cfg.num_experts=1, whose "
                "expert takes every token whole",
            )
            for key, off in (("score_func", "sigmoid"), ("jitter_noise", 0.0)):
                value = getattr(self, key)
                p.require(
                    value == off,
                    f"model_cfg.{key}={value} has no effect with model_cfg.num_experts=1, which "
                    "leaves nothing to choose; leave it out",
                )
        else:
            p.require(
                top_k != 1 or not self.norm_topk_prob,
                "model_cfg.top_k=1 with model_cfg.norm_topk_prob=true makes every weight 1, from "
                "which the router learns nothing; use norm_topk_prob=false or top_k=2",
            )
        p.require(
            self.balance != "bias"
            or self.score_func != "softmax"
            or self.norm_topk_prob is True
            or self.allow_untested,
            "model_cfg.balance=bias with model_cfg.score_func=softmax and "
            "model_cfg.norm_topk_prob=false is untested; use score_func=sigmoid, or "
            "model_cfg.allow_untested=true to insist",
        )
        p.require(
            self.routed_scaling_factor is None or self.routed_scaling_factor >= 0,
            f"model_cfg.routed_scaling_factor={self.routed_scaling_factor} must not be negative",
        )
        p.require(
            0 <= self.jitter_noise < 0.5,
            f"model_cfg.jitter_noise={self.jitter_noise} must be in [0, 0.5)",
        )

    @property
    def routed(self) -> tuple[int, int]:
        """num_experts and top_k, which are never null once the config is made."""
        return self.num_experts, self.top_k  # type: ignore[return-value]

    @property
    def num_dense(self) -> int:
        """first_k_dense, which is never null once the config is made."""
        return self.first_k_dense  # type: ignore[return-value]

    @property
    def shared(self) -> int:
        """num_shared_experts, which is never null once the config is made."""
        return self.num_shared_experts  # type: ignore[return-value]

    @property
    def expert_dim(self) -> int:
        """Width of one expert."""
        if self.moe_hidden is not None:
            return self.moe_hidden
        num_experts, top_k = self.routed
        if num_experts == 1 and self.shared == 0:
            return self.mlp_dim
        return max(16, round(self.mlp_dim / (top_k + self.shared) / 16) * 16)

    @property
    def routed_scale(self) -> float:
        """Factor on the sum of the routed experts' outputs."""
        if self.routed_scaling_factor is not None:
            return self.routed_scaling_factor
        return self.routed[1] ** 0.5 if self.norm_topk_prob else 1.0

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        if self.experts_impl != "grouped_mm":
            return []
        # Rows must be multiples of 16 bytes; auto may turn out to be bfloat16.
        step = 4 if training.dtype == "float32" else 8
        return [
            f"model_cfg.{key}={value} is no multiple of {step}, which "
            f"model_cfg.experts_impl=grouped_mm needs with dtype={training.dtype}; use auto"
            for key, value in (("model_dim", self.model_dim), ("moe_hidden", self.expert_dim))
            if value % step != 0
        ]


Config = MoEConfig
