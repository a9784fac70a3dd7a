"""The settings of multi-token prediction. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.config.multi_token import MultiTokenConfig
from nanozoo_core.errors import Problems

MAX_TOKENS = 8


@dataclass(frozen=True)
class MTPConfig(MultiTokenConfig):
    num_mtp_tokens: int
    """Tokens predicted from every position, the next one among them; 1 is the control."""
    mtp_loss_weights: tuple[float, ...] | None
    """Weight of each horizon's loss; null is 1 for all, and 1, 1/2, 1/4, ... for
    head_type=shared."""
    mtp_weight_schedule: Literal["constant", "linear_to_next"]
    """linear_to_next lets the weights of all horizons but the first fall to 0 in the end."""
    mtp_anneal_frac: float
    """The last part of the run, in which they fall."""
    head_type: Literal["block", "linear", "shared"]
    """block: each head is a block, the first being the last of the control. linear: heads behind
    the first are a model_dim x model_dim map. shared: one head, scored against every horizon."""
    head_backward: Literal["joint", "checkpoint", "sequential"]
    """joint keeps what all heads need for their gradients. checkpoint makes it again in the
    backward pass; sequential makes each head's gradients before the next head runs. Both save
    memory where the vocabulary is large."""

    renamed: ClassVar[dict[str, str]] = {"n_future_tokens": "num_mtp_tokens"}

    def check(self, p: Problems) -> None:
        super().check(p)
        refuse_unused(p, "mtp", self, self._unused())
        self._check_horizons(p)
        self._check_weights(p)

    def _check_horizons(self, p: Problems) -> None:
        count = self.num_mtp_tokens
        p.require(
            1 <= count <= MAX_TOKENS,
            f"model_cfg.num_mtp_tokens={count} must be between 1 and {MAX_TOKENS}",
        )
        p.require(
            self.head_type != "block" or count < self.num_layers,
            f"model_cfg.num_mtp_tokens={count} leaves no trunk below the heads, which are "
            f"{count} of model_cfg.num_layers={self.num_layers}; use more layers or "
            f"model_cfg.head_type=linear",
        )
        p.require(
            self.seq_len > count,
            f"model_cfg.seq_len={self.seq_len} must exceed model_cfg.num_mtp_tokens={count}",
        )
        p.require(
            0 < self.mtp_anneal_frac <= 1,
            f"model_cfg.mtp_anneal_frac={self.mtp_anneal_frac} must be in (0, 1]",
        )
        p.require(
            self.head_type != "shared" or self.mtp_weight_schedule != "constant" or count == 1,
            "model_cfg.head_type=shared with model_cfg.mtp_weight_schedule=constant ends with "
            "logits that mix horizons and predict no token; use linear_to_next",
        )

    def _check_weights(self, p: Problems) -> None:
        weights = self.mtp_loss_weights
        if weights is None:
            return
        p.require(
            len(weights) == self.num_mtp_tokens,
            f"model_cfg.mtp_loss_weights={list(weights)} has {len(weights)} entries and must have "
            f"one for each of model_cfg.num_mtp_tokens={self.num_mtp_tokens}",
        )
        p.require(
            all(weight >= 0 for weight in weights),
            f"model_cfg.mtp_loss_weights={list(weights)} must not be negative",
        )
        p.require(
            not weights or weights[0] > 0,
            f"model_cfg.mtp_loss_weights={list(weights)} must begin above 0: the first horizon is "
            f"the next token, which is what is scored",
        )

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        unused: dict[str, str] = {}
        if self.num_mtp_tokens == 1:
            keys = ("cross_document_targets", "mtp_weight_schedule", "mtp_anneal_frac")
            unused |= dict.fromkeys(keys, "num_mtp_tokens=1")
        if not self.has_own_heads:
            single = "num_mtp_tokens=1" if self.num_mtp_tokens == 1 else "head_type=shared"
            unused["head_backward"] = single
        if self.mtp_weight_schedule == "constant":
            unused["mtp_anneal_frac"] = "mtp_weight_schedule=constant"
        return unused

    @property
    def num_trunk_layers(self) -> int:
        """Blocks that all heads share."""
        return self.num_layers - (self.num_mtp_tokens if self.head_type == "block" else 0)

    @property
    def num_horizons(self) -> int:
        """n, the tokens predicted from every position."""
        return self.num_mtp_tokens

    @property
    def num_extra_projections(self) -> int:
        """One for each further head; a shared head needs none."""
        return self.num_mtp_tokens - 1 if self.has_own_heads else 0

    @property
    def has_own_heads(self) -> bool:
        """Whether horizons have heads of their own, which can draft."""
        return self.head_type != "shared" and self.num_mtp_tokens > 1

    def loss_weights(self, progress: float) -> list[float]:
        """lambda_1 .. lambda_n at a point of the run."""
        count = self.num_mtp_tokens
        weights = list(self.mtp_loss_weights or [1.0] * count)
        if self.mtp_loss_weights is None and self.head_type == "shared":
            weights = [0.5**number for number in range(count)]
        if self.mtp_weight_schedule == "linear_to_next":
            left = min(1.0, (1 - progress) / self.mtp_anneal_frac)
            weights[1:] = [left * weight for weight in weights[1:]]
        return weights

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's."""
        problems = []
        if self.head_backward == "sequential" and training.distributed.strategy == "fsdp":
            problems.append(
                "model_cfg.head_backward=sequential makes gradients in the forward pass, where "
                "distributed.strategy=fsdp does not look for them; use checkpoint, or ddp"
            )
        if self.head_backward == "sequential" and training.dtype == "float16":
            problems.append(
                "model_cfg.head_backward=sequential makes gradients in the forward pass, where "
                "dtype=float16 has not scaled the loss yet and would lose them; use checkpoint"
            )
        return problems


Config = MTPConfig
