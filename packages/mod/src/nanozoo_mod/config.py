"""The settings of Mixture of Depths. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.errors import Problems


@dataclass(frozen=True)
class MoDConfig(ControlConfig):
    every_other: bool
    """Route blocks 1, 3, 5, ... and leave the others full; false routes all, which is worse."""
    capacity: float
    """Share of a sequence's tokens that a routed block reads in training, in (0, 1]."""
    router_type: Literal["learned", "random"]
    """random scores tokens by noise: the control that learned routing must beat."""
    router_input: Literal["normed", "raw"]
    """Router and predictor read the RMS-normalised stream, or the bare one as the paper writes."""
    router_gate: Literal["linear", "sigmoid", "tanh", "one"]
    """What the score makes of a block's increment; one (no factor) cuts the router off the loss."""
    causal_router: Literal["predictor", "router"]
    """Who chooses tokens in evaluation and sampling: a side network, or the router's own score."""
    predictor_dim: int
    """Hidden width of the predictor."""
    predictor_coef: float
    """Weight of the predictor's loss, which reaches nothing but the predictor."""
    predictor_threshold: Literal["zero", "calibrated"]
    """Logit above which the predictor takes a token; calibrated: the quantile that meets capacity,
    set at the end of training."""
    router_aux_coef: float
    """Weight of the loss that pulls scores to either side of 0, for causal_router=router."""
    routed_impl: Literal["gather", "masked"]
    """gather computes the chosen tokens alone; masked computes all, as a reference for checks."""

    def check(self, p: Problems) -> None:
        super().check(p)
        refuse_unused(p, "mod", self, self._unused())
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

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
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
        return dict.fromkeys(unused, why)

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
