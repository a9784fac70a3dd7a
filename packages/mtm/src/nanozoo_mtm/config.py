"""The settings of the multi-token model. Nothing here imports torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.config.multi_token import MultiTokenConfig
from nanozoo_core.errors import Problems

MAX_MODULES = 4


@dataclass(frozen=True)
class MTMConfig(MultiTokenConfig):
    num_mtp_modules: int
    """Modules, each predicting one token more; 0 is the control."""
    mtp_lambda: float
    """Weight of the mean over modules of their losses."""
    mtp_lambda_final: float | None
    """What it becomes; needed unless the schedule is constant."""
    mtp_lambda_schedule: Literal["constant", "step", "linear"]
    """linear goes from mtp_lambda to mtp_lambda_final over the run; step changes at once."""
    mtp_lambda_switch: float | None
    """Where in the run the step is."""
    mtp_block: Literal["base", "mlp"]
    """base: a module's block is one of the main model's. mlp: an MLP of 3 model_dim alone, without
    attention, which is cheaper."""
    mtp_detach: Literal["none", "hidden"]
    """hidden lets no gradient from the modules into the main model's blocks: they only draft."""
    concat_order: Literal["hidden_first", "embed_first"]
    """Order of the pair that a module fuses: as the report writes it, or as its released weights
    have it."""
    share_final_norm: bool
    """Use the main model's final norm, which has no gain, behind every module."""
    spec_draft_tokens: int
    """Tokens drafted per pass in speculative decoding; beyond num_mtp_modules the last module is
    run again on its own output."""

    renamed: ClassVar[dict[str, str]] = {
        "num_nextn_predict_layers": "num_mtp_modules",
        "mtp_hidden": "nothing: a final norm without a gain changes nothing before another norm",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._warn_of_odd_ones()

    def check(self, p: Problems) -> None:
        super().check(p)
        refuse_unused(p, "mtm", self, self._unused())
        self._check_modules(p)
        self._check_lambda(p)

    def _check_modules(self, p: Problems) -> None:
        count = self.num_mtp_modules
        p.require(
            0 <= count <= MAX_MODULES,
            f"model_cfg.num_mtp_modules={count} must be between 0 and {MAX_MODULES}",
        )
        p.require(
            count < self.seq_len,
            f"model_cfg.num_mtp_modules={count} must be less than model_cfg.seq_len={self.seq_len}",
        )
        p.require(
            self.spec_draft_tokens >= 0,
            f"model_cfg.spec_draft_tokens={self.spec_draft_tokens} must not be negative",
        )
        p.require(
            count != 0 or self.spec_draft_tokens <= 0,
            f"model_cfg.spec_draft_tokens={self.spec_draft_tokens} needs a module to draft, and "
            f"model_cfg.num_mtp_modules=0 has none; use 0",
        )

    def _check_lambda(self, p: Problems) -> None:
        final = self.mtp_lambda_final
        p.require(
            self.mtp_lambda >= 0, f"model_cfg.mtp_lambda={self.mtp_lambda} must not be negative"
        )
        p.require(
            final is None or final >= 0,
            f"model_cfg.mtp_lambda_final={final} must not be negative",
        )
        p.require(
            self.mtp_lambda != 0 or self.num_mtp_modules == 0 or self.mtp_detach == "hidden",
            "model_cfg.mtp_lambda=0 trains no module; use model_cfg.num_mtp_modules=0",
        )
        p.require(
            final is not None or self.mtp_lambda_schedule == "constant",
            f"model_cfg.mtp_lambda_final=null leaves model_cfg.mtp_lambda_schedule="
            f"{self.mtp_lambda_schedule} without an end; use constant, or a number",
        )
        switch = self.mtp_lambda_switch
        p.require(
            switch is not None or self.mtp_lambda_schedule != "step",
            "model_cfg.mtp_lambda_schedule=step needs model_cfg.mtp_lambda_switch, between 0 and 1",
        )
        p.require(
            switch is None or 0 < switch < 1,
            f"model_cfg.mtp_lambda_switch={switch} must be between 0 and 1",
        )

    def _warn_of_odd_ones(self) -> None:
        count, final = self.num_mtp_modules, self.mtp_lambda_final
        moves = count > 0 and self.mtp_lambda_schedule != "constant"
        if moves and final is not None and final > self.mtp_lambda:
            _warn(
                f"model_cfg.mtp_lambda_final={final} exceeds model_cfg.mtp_lambda="
                f"{self.mtp_lambda}: modules come to matter more towards the end"
            )
        if self.spec_draft_tokens > count > 0:
            _warn(
                f"model_cfg.spec_draft_tokens={self.spec_draft_tokens} exceeds "
                f"model_cfg.num_mtp_modules={count}: the last module is run again on its own "
                f"output, for which it is not trained, and few of those drafts will stand"
            )

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        unused: dict[str, str] = {}
        if self.mtp_lambda_schedule == "constant":
            unused["mtp_lambda_final"] = "mtp_lambda_schedule=constant"
        if self.mtp_lambda_schedule != "step":
            unused["mtp_lambda_switch"] = f"mtp_lambda_schedule={self.mtp_lambda_schedule}"
        if self.num_mtp_modules == 0:
            unused |= {
                field.name: "num_mtp_modules=0"
                for field in fields(self)
                if field.name.startswith(("mtp_", "concat", "share", "cross"))
            }
        return unused

    @property
    def num_horizons(self) -> int:
        """The next token, and one for each module."""
        return self.num_mtp_modules + 1

    @property
    def num_extra_projections(self) -> int:
        """One for each module."""
        return self.num_mtp_modules

    def module_weight(self, progress: float) -> float:
        """lambda at a point of the run."""
        first, last = self.mtp_lambda, self.mtp_lambda_final
        if self.mtp_lambda_schedule == "constant" or last is None:
            return first
        if self.mtp_lambda_schedule == "step":
            assert self.mtp_lambda_switch is not None
            return first if progress < self.mtp_lambda_switch else last
        return first + (last - first) * progress


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)


Config = MTMConfig
