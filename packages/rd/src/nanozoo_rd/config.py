"""The settings of recurrent depth. Nothing here imports torch."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from nanozoo_core.config.ranges import Layers
from nanozoo_core.errors import Problems
from nanozoo_rd.depth import DepthLaw

if TYPE_CHECKING:
    from nanozoo_core.config import TrainingConfig


class Depths(NamedTuple):
    mean_recurrence: float
    k_trunc: int | Literal["full"]
    eval_recurrence: int


TINY = Depths(4, 2, 4)
PRESETS = {"rd_paper": Depths(32, 8, 32)}
"""How deep the paper's model is trained and run; the tiny default is what a CPU can afford."""

EXIT_THRESHOLDS = {"kl": 5e-4, "latent": 0.03}
CURRICULUM_POINTS = 8  # at which the mean depth of a run with a curriculum is averaged


@dataclass(frozen=True)
class RDConfig:
    vocab_size: int
    """Tokens in the vocabulary; null is the tokenizer's."""
    seq_len: int
    """Longest text worth reading, the trained length; null is data.seq_len."""
    preset: Literal["rd_paper"] | None
    """rd_paper fills mean_recurrence, k_trunc and eval_recurrence with 32, 8 and 32."""
    num_prelude_layers: Layers
    """Layers that read the tokens, once."""
    num_core_layers: Layers
    """Layers of the core, iterated."""
    num_coda_layers: Layers
    """Layers that decode the last state, once."""
    num_layers: Layers | None
    """Prelude, core and coda together; only to check that they add up."""
    model_dim: int
    """Width of the stream and of the latent state."""
    num_heads: int
    """Attention heads, a divisor of model_dim."""
    mlp_dim: int | None
    """Width of the SwiGLU; null is 8/3 model_dim, rounded to 64."""
    mean_recurrence: float | None
    """Mean rate of the sampled depth (iterations per training step); null is the preset's, or 4."""
    sampling: Literal["lognormal_poisson", "fixed", "uniform"]
    """Law of the depth: the paper's, always round(mean), or uniform up to twice the mean."""
    lognorm_sigma: float | None
    """Standard deviation of the log of the Poisson rate; null is 0.5, and 0 a plain Poisson."""
    r_max: int | None
    """Largest depth of a training step; null is no limit."""
    k_trunc: int | Literal["full"] | None
    """Last iterations that gradients pass through, or full for all; null is the preset's, or 2."""
    recurrence_curriculum: Literal["none", "linear"]
    """linear raises the mean from 1 to mean_recurrence over the first curriculum_fraction."""
    curriculum_fraction: float | None
    """Share of the run over which the curriculum rises; null is 0.5."""
    checkpoint_core: bool
    """Recompute each iteration in the backward pass: less memory, a third more time."""
    eval_recurrence: int | None
    """Iterations for scores and text, or the most under early exit; null is the preset's, or 4."""
    s0_std: float | None
    """Deviation of the initial state before its cut at 3 of them; null is sqrt(2/5), 0 is zeros."""
    s0_mode_eval: Literal["seeded", "zero"]
    """Initial state of scores and text: noise that depends on position and channel alone, or 0."""
    adapter_mode: Literal["concat", "add"]
    """How the core reads state and input: A [s; e], or s + e (no weights, fine when small)."""
    qk_bias: bool
    """Learned biases of queries and keys."""
    tie_embeddings: bool
    """Use the input embedding as the output head."""
    rope_base: float
    """Base of the rotary angles; the paper has 50000 at length 4096."""
    exit_criterion: Literal["none", "kl", "latent"]
    """When a decoded token stops early: its prediction (kl) or state (latent) has settled."""
    exit_threshold: float | None
    """What counts as settled; null is 5e-4 nats (kl) or 0.03 (latent)."""
    kv_budget: int | None
    """Iterations whose keys and values the cache holds; null is all of them."""
    prefill: Literal["sequential", "parallel"]
    """How a prompt is read under early exit or a kv_budget: token by token, as it would have been
    written, or at full depth all at once, as published. Scores are always sequential."""

    renamed: ClassVar[dict[str, str]] = {
        "l_p": "num_prelude_layers",
        "l_core": "num_core_layers",
        "l_c": "num_coda_layers",
        "mlp_hidden": "mlp_dim",
        "lognorm_var": "lognorm_sigma (a standard deviation, the paper's is 0.5)",
        "curriculum_frac": "curriculum_fraction",
    }

    def __post_init__(self) -> None:
        p = Problems()
        self._check_shape(p)
        self._check_depth(p)
        self._check_decoding(p)
        p.raise_if_any()
        self._warn()

    def _check_shape(self, p: Problems) -> None:
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1, "mlp_dim": 1}, or_null=True)
        smallest = {"num_prelude_layers": 0, "num_core_layers": 1, "num_coda_layers": 0}
        p.require_at_least(self, smallest | {"model_dim": 2, "num_heads": 1})
        total = self.num_prelude_layers + self.num_core_layers + self.num_coda_layers
        p.require(
            self.num_layers in (None, total),
            f"model_cfg.num_layers={self.num_layers} is not the sum of num_prelude_layers, "
            f"num_core_layers and num_coda_layers, {total}; leave it null and set those",
        )
        if self.model_dim >= 2:
            p.require_rotary_heads(self.num_heads, self.model_dim)
        p.require(self.rope_base > 1, f"model_cfg.rope_base={self.rope_base} must be above 1")

    def _check_depth(self, p: Problems) -> None:
        mean, k_trunc, evaluation = self.depths
        p.require(mean >= 1, f"model_cfg.mean_recurrence={mean} must be at least 1")
        p.require(
            k_trunc == "full" or k_trunc >= 1,
            f"model_cfg.k_trunc={k_trunc} must be at least 1, or full to backpropagate through "
            "every iteration",
        )
        p.require(evaluation >= 1, f"model_cfg.eval_recurrence={evaluation} must be at least 1")
        p.require(
            self.r_max is None or self.r_max >= mean,
            f"model_cfg.r_max={self.r_max} is below model_cfg.mean_recurrence={mean}; raise it, or "
            "null for no limit",
        )
        p.require(
            self.r_max is None or self.sampling != "fixed",
            f"model_cfg.r_max={self.r_max} has no effect with model_cfg.sampling=fixed, which "
            "draws nothing; leave it null",
        )
        sigma = self.lognorm_sigma
        p.require(
            sigma is None or sigma >= 0, f"model_cfg.lognorm_sigma={sigma} must not be negative"
        )
        p.require(
            sigma is None or self.sampling == "lognormal_poisson",
            f"model_cfg.lognorm_sigma={sigma} has no effect with model_cfg.sampling="
            f"{self.sampling}; leave it null",
        )
        fraction = self.curriculum_fraction
        p.require(
            fraction is None or 0 < fraction <= 1,
            f"model_cfg.curriculum_fraction={fraction} must be in (0, 1]",
        )
        p.require(
            fraction is None or self.recurrence_curriculum != "none",
            f"model_cfg.curriculum_fraction={fraction} has no effect with "
            "model_cfg.recurrence_curriculum=none; leave it null, or use linear",
        )
        p.require(
            self.s0_std is None or self.s0_std >= 0,
            f"model_cfg.s0_std={self.s0_std} must not be negative",
        )

    def _check_decoding(self, p: Problems) -> None:
        p.require(
            self.kv_budget is None or self.kv_budget >= 1,
            f"model_cfg.kv_budget={self.kv_budget} must be at least 1 or null",
        )
        p.require(
            self.prefill == "sequential"
            or self.kv_budget is not None
            or self.exit_criterion != "none",
            "model_cfg.prefill=parallel has no effect without model_cfg.exit_criterion or "
            "model_cfg.kv_budget; use sequential",
        )
        threshold = self.exit_threshold
        p.require(
            threshold is None or threshold > 0,
            f"model_cfg.exit_threshold={threshold} must be positive",
        )
        p.require(
            threshold is None or self.exit_criterion != "none",
            f"model_cfg.exit_threshold={threshold} has no effect with "
            "model_cfg.exit_criterion=none; choose kl or latent",
        )

    def _warn(self) -> None:
        if self.r_max is None:
            return
        beyond = 1 - self.law().at_most(self.r_max)
        if beyond > 0.01:
            warnings.warn(
                f"model_cfg.r_max={self.r_max} cuts {beyond:.0%} of the depths that "
                f"model_cfg.mean_recurrence={self.depths.mean_recurrence:g} draws, which lowers "
                f"their mean to {self.law().expected():.1f}",
                stacklevel=4,
            )
        if self.depths.eval_recurrence > self.r_max:
            warnings.warn(
                f"model_cfg.eval_recurrence={self.depths.eval_recurrence} is above "
                f"model_cfg.r_max={self.r_max}: deeper than any training step",
                stacklevel=4,
            )

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """mlp_dim, or its default."""
        return self.mlp_dim or max(64, round(self.model_dim * 8 / 3 / 64) * 64)

    @property
    def depths(self) -> Depths:
        """mean_recurrence, k_trunc and eval_recurrence, nulls filled in."""
        defaults = PRESETS[self.preset] if self.preset else TINY
        mean, k_trunc, evaluation = self.mean_recurrence, self.k_trunc, self.eval_recurrence
        return Depths(
            defaults.mean_recurrence if mean is None else mean,
            defaults.k_trunc if k_trunc is None else k_trunc,
            defaults.eval_recurrence if evaluation is None else evaluation,
        )

    @property
    def num_backprop(self) -> int | None:
        """k_trunc as a number of iterations; None is all of them."""
        k_trunc = self.depths.k_trunc
        return None if k_trunc == "full" else k_trunc

    @property
    def state_std(self) -> float:
        return math.sqrt(2 / 5) if self.s0_std is None else self.s0_std

    @property
    def effective_layers(self) -> float:
        """Layers that a token passes at the mean recurrence, by which outputs are scaled."""
        outside = self.num_prelude_layers + self.num_coda_layers
        return outside + self.num_core_layers * self.depths.mean_recurrence

    def law(self, progress: float = 1.0) -> DepthLaw:
        """The law of the depth at a point of the run."""
        mean = self.depths.mean_recurrence
        if self.recurrence_curriculum == "linear":
            fraction = 0.5 if self.curriculum_fraction is None else self.curriculum_fraction
            mean = 1 + (mean - 1) * min(1.0, progress / fraction)
        sigma = 0.5 if self.lognorm_sigma is None else self.lognorm_sigma
        return DepthLaw(self.sampling, mean, sigma, self.r_max)

    def expected_depths(self) -> tuple[float, float]:
        """Mean over a run of the iterations of a step, and of those that gradients pass through."""
        if self.recurrence_curriculum == "none":
            laws = [self.law()]
        else:
            laws = [self.law((i + 0.5) / CURRICULUM_POINTS) for i in range(CURRICULUM_POINTS)]
        cap = self.num_backprop
        forward = sum(law.expected() for law in laws) / len(laws)
        return forward, sum(law.expected(cap) for law in laws) / len(laws)

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and the run's: what belongs to decoding alone."""
        problems = []
        if self.exit_criterion != "none":
            problems.append(
                f"model_cfg.exit_criterion={self.exit_criterion} is for decoding a trained model; "
                "train with none"
            )
        if self.kv_budget is not None:
            problems.append(
                f"model_cfg.kv_budget={self.kv_budget} is for decoding a trained model; train with "
                "null"
            )
        return problems


Config = RDConfig
