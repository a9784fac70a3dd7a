"""The settings of Mixture of Depths. Nothing here imports torch."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from typing import Literal

from nanozoo_core.errors import Problems


@dataclass(frozen=True)
class MoDConfig:
    vocab_size: int | None = None
    """Tokens in the vocabulary; null is the tokenizer's."""
    seq_len: int | None = None
    """Trained length, past which generation drops the older half of the text; null is
    data.seq_len."""
    num_layers: int = 4
    """Blocks, full and routed; more of them at equal FLOPs is where the idea pays."""
    model_dim: int = 128
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads, a divisor of model_dim."""
    mlp_ratio: float = 4.0
    """Width of the MLP relative to model_dim."""
    every_other: bool = True
    """Route blocks 1, 3, 5, ... and leave the others full; false routes all, which is worse."""
    capacity: float = 0.25
    """Share of a sequence's tokens that a routed block reads in training, in (0, 1]."""
    router_type: Literal["learned", "random"] = "learned"
    """random scores tokens by noise: the control that learned routing must beat."""
    router_input: Literal["normed", "raw"] = "normed"
    """Router and predictor read the RMS-normalised stream, or the bare one as the paper writes."""
    router_gate: Literal["linear", "sigmoid", "tanh", "one"] = "linear"
    """What the score makes of a block's increment; one (no factor) cuts the router off the loss."""
    causal_router: Literal["predictor", "router"] = "predictor"
    """Who chooses tokens in evaluation and sampling: a side network, or the router's own score."""
    predictor_dim: int = 32
    """Hidden width of the predictor."""
    predictor_coef: float = 0.1
    """Weight of the predictor's loss, which reaches nothing but the predictor."""
    predictor_threshold: Literal["zero", "calibrated"] = "zero"
    """Logit above which the predictor takes a token; calibrated: the quantile that meets capacity,
    set at the end of training."""
    router_aux_coef: float = 0.01
    """Weight of the loss that pulls scores to either side of 0, for causal_router=router."""
    routed_impl: Literal["gather", "masked"] = "gather"
    """gather computes the chosen tokens alone; masked computes all, as a reference for checks."""

    def __post_init__(self) -> None:
        p = Problems()
        p.require_stack(self)
        self._check_routing(p)
        p.raise_if_any()
        self._warn_of_unused()

    def _check_routing(self, p: Problems) -> None:
        p.require(
            not self.every_other or self.num_layers != 1,
            "model_cfg.every_other=true routes block 1, which model_cfg.num_layers=1 lacks; use at "
            "least 2 layers",
        )
        p.require(0 < self.capacity <= 1, f"model_cfg.capacity={self.capacity} must be in (0, 1]")
        p.require(
            self.router_gate != "one" or self.router_type == "random" or self.capacity == 1,
            "model_cfg.router_gate=one leaves a learned router without gradient; use linear, "
            "sigmoid or tanh, or model_cfg.router_type=random, or model_cfg.capacity=1",
        )
        p.require(
            self.causal_router == "predictor" or self.predictor_threshold == "zero",
            "model_cfg.predictor_threshold=calibrated needs a predictor, which "
            "model_cfg.causal_router=router has not; use zero",
        )
        p.require(
            self.causal_router == "router" or self.predictor_dim >= 1,
            f"model_cfg.predictor_dim={self.predictor_dim} must be at least 1",
        )
        for key in ("predictor_coef", "router_aux_coef"):
            value = getattr(self, key)
            p.require(value >= 0, f"model_cfg.{key}={value} must not be negative")

    def _warn_of_unused(self) -> None:
        """Settings that change nothing beside the others."""
        predictor = {"predictor_dim", "predictor_coef", "predictor_threshold"}
        if self.router_type == "random":
            unused, why = predictor | {"causal_router", "router_aux_coef"}, "router_type=random"
            unused |= {"router_input"}
        elif self.capacity == 1:
            unused, why = predictor | {"causal_router", "router_aux_coef"}, "capacity=1"
        elif self.causal_router == "router":
            unused, why = predictor, "causal_router=router"
        else:
            unused, why = {"router_aux_coef"}, "causal_router=predictor"
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                warnings.warn(
                    f"model_cfg.{field.name}={value} has no effect with model_cfg.{why}",
                    stacklevel=4,
                )

    @property
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return int(self.mlp_ratio * self.model_dim)

    @property
    def routed_layers(self) -> range:
        """The blocks that read only some tokens."""
        return range(1, self.num_layers, 2) if self.every_other else range(self.num_layers)

    @property
    def has_router(self) -> bool:
        """Scores are learned; without a factor on the increment (capacity 1) none are needed."""
        return self.router_type == "learned" and self.router_gate != "one"

    @property
    def has_predictor(self) -> bool:
        """A side network chooses in evaluation; at capacity 1 there is nothing to choose."""
        learned = self.router_type == "learned" and self.capacity < 1
        return learned and self.causal_router == "predictor"

    def num_selected(self, length: int) -> int:
        """C: how many of `length` tokens a routed block reads in training."""
        # 0.7 * 10 is 7.000000000000001, which must not round up to 8.
        return max(1, math.ceil(self.capacity * length - 1e-9))


Config = MoDConfig
