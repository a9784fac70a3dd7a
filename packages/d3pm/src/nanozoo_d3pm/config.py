"""Settings of a D3PM. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.config.diffusion import DiffusionConfig
from nanozoo_core.errors import Problems

MAX_EXACT_VOCAB = 8192  # one eigenbasis of 0.5 GB in float64
MAX_AUTO_EXACT_VOCAB = 4096
MAX_ORDINAL_VOCAB = 1024
MAX_ORDINAL_BYTES = 1 << 30

ORDINAL = ("gaussian", "band")
"""Processes over the order of the ids, whose matrices are stored."""
GRAPH = ("nearest_neighbors", "nn_mode", "nn_embeddings", "nn_uniform_rate")
"""Settings of the graph of neighbours."""


@dataclass(frozen=True)
class D3PMConfig(DiffusionConfig):
    transition_type: Literal["uniform", "absorbing", "gaussian", "band", "nearest_neighbor"]
    """Where a corrupted token goes: any token, the mask, a near id (the nearer the likelier, or any
    in a band), or a near embedding."""
    noise_schedule: Literal["cosine", "linear", "mutual_info"]
    """How fast: cosine suits uniform, linear is the only one for gaussian; band has no
    mutual_info."""
    num_timesteps: int
    """T, the steps of the diffusion whose likelihood is bounded."""
    auxiliary_loss_weight: float
    """lambda, the weight of the cross-entropy of x_0 beside the bound; best 0 for uniform."""
    auxiliary_loss_scale: Literal["per_step", "total"]
    """per_step: lambda beside the KL of one step (reference code); total: beside their sum."""
    gaussian_beta_min: float
    """First beta of the gaussian at T=1000, rescaled by 1000/T; only for gaussian."""
    gaussian_beta_max: float
    """Last beta of the gaussian at T=1000, rescaled by 1000/T; only for gaussian."""
    band_width: int
    """Ids above, and as many below, that a token reaches in a step; only for band."""
    nearest_neighbors: int
    """Neighbours of a token in the graph; clusters hold one more. Only for nearest_neighbor."""
    nn_mode: Literal["auto", "exact", "clusters"]
    """exact: the kNN graph's spectrum; clusters: blocks of neighbours; auto: exact up to V=4096."""
    nn_embeddings: str
    """ppmi (vectors from co-occurrence in the training data) or the path of a (V, d) .npy file."""
    nn_uniform_rate: float
    """Rate of jumps to any token, over that of jumps to neighbours."""
    terminal_mask: Literal["auto", True, False]
    """Step T masks everything, so the prior term is 0; auto: for gaussian, band and
    nearest_neighbor."""
    time_conditioning: Literal["auto", True, False]
    """Tell the network t by adaLN; only absorbing can do without. auto: not to absorbing."""
    sampling_timesteps: int
    """Denoising steps of a generated window; fewer than T skips steps exactly."""

    def check(self, p: Problems) -> None:
        super().check(p)
        self._check_diffusion(p)
        refuse_unused(p, "d3pm", self, self._unused())
        if self.transition_type in ORDINAL:
            self._check_matrices(p)
        if self.transition_type == "gaussian":
            self._check_gaussian(p)
        if self.transition_type == "band":
            self._check_band(p)
        if self.transition_type == "nearest_neighbor":
            self._check_neighbors(p)

    def _check_diffusion(self, p: Problems) -> None:
        p.require(
            self.num_timesteps >= 1,
            f"model_cfg.num_timesteps={self.num_timesteps} must be at least 1",
        )
        p.require(
            self.auxiliary_loss_weight >= 0,
            f"model_cfg.auxiliary_loss_weight={self.auxiliary_loss_weight} must not be negative",
        )
        p.require(
            1 <= self.sampling_timesteps <= max(self.num_timesteps, 1),
            f"model_cfg.sampling_timesteps={self.sampling_timesteps} must be between 1 and "
            f"model_cfg.num_timesteps={self.num_timesteps}",
        )
        p.require(
            self.knows_time or self.transition_type == "absorbing",
            f"model_cfg.time_conditioning=false needs model_cfg.transition_type=absorbing: with "
            f"{self.transition_type} the level of noise cannot be seen from the tokens; use true",
        )

    def _check_gaussian(self, p: Problems) -> None:
        low, high = self.gaussian_beta_min, self.gaussian_beta_max
        p.require(
            0 < low < high < 1,
            f"model_cfg.gaussian_beta_min={low} and model_cfg.gaussian_beta_max={high} must be in "
            "(0, 1), the first below the second",
        )
        p.require(
            self.noise_schedule == "linear",
            f"model_cfg.noise_schedule={self.noise_schedule} is not defined for "
            "model_cfg.transition_type=gaussian; use linear",
        )

    def _check_band(self, p: Problems) -> None:
        p.require(
            1 <= self.band_width <= self.vocab_size - 1,
            f"model_cfg.band_width={self.band_width} must be between 1 and {self.vocab_size - 1}, "
            "one less than the vocabulary",
        )
        p.require(
            self.noise_schedule != "mutual_info",
            f"model_cfg.noise_schedule={self.noise_schedule} is not defined for "
            "model_cfg.transition_type=band; use linear or cosine",
        )

    def _check_matrices(self, p: Problems) -> None:
        kind = self.transition_type
        size = self.num_timesteps * self.vocab_size**2 * 4
        p.require(
            self.vocab_size <= MAX_ORDINAL_VOCAB,
            f"model_cfg.transition_type={kind} needs ids in a meaningful order and at most "
            f"{MAX_ORDINAL_VOCAB} of them, not model_cfg.vocab_size={self.vocab_size}; use "
            "data.tokenizer=bytes or another transition_type",
        )
        p.require(
            size <= MAX_ORDINAL_BYTES,
            f"model_cfg.num_timesteps={self.num_timesteps} {kind} matrices of "
            f"{self.vocab_size} x {self.vocab_size} take {size / 2**30:.1f} GiB; at most 1 GiB is "
            f"allowed: use at most {MAX_ORDINAL_BYTES // (4 * self.vocab_size**2)}",
        )

    def _check_neighbors(self, p: Problems) -> None:
        p.require(
            self.nn_uniform_rate >= 0,
            f"model_cfg.nn_uniform_rate={self.nn_uniform_rate} must not be negative",
        )
        p.require(
            self.nearest_neighbors >= 1,
            f"model_cfg.nearest_neighbors={self.nearest_neighbors} must be at least 1",
        )
        p.require(
            self.nearest_neighbors <= self.vocab_size - 1,
            f"model_cfg.nearest_neighbors={self.nearest_neighbors} must be at most "
            f"{self.vocab_size - 1}, one less than the vocabulary",
        )
        p.require(
            self.nn_mode != "exact" or self.vocab_size <= MAX_EXACT_VOCAB,
            f"model_cfg.nn_mode=exact handles at most {MAX_EXACT_VOCAB} tokens, not "
            f"model_cfg.vocab_size={self.vocab_size}; use clusters",
        )

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        kind = f"transition_type={self.transition_type}"
        owners = {
            "gaussian": ("gaussian_beta_min", "gaussian_beta_max"),
            "band": ("band_width",),
            "nearest_neighbor": GRAPH,
        }
        unused = {
            key: kind
            for owner, keys in owners.items()
            for key in keys
            if owner != self.transition_type
        }
        if self.transition_type in ("uniform", "absorbing"):
            unused["terminal_mask"] = kind
        if not self.knows_time:
            unused["cond_dim"] = "time_conditioning=false"
        if self.auxiliary_loss_weight == 0:
            unused["auxiliary_loss_scale"] = "auxiliary_loss_weight=0"
        return unused

    @property
    def knows_time(self) -> bool:
        """Whether the network is told t."""
        if self.time_conditioning == "auto":
            return self.transition_type != "absorbing"
        return self.time_conditioning

    @property
    def has_terminal_mask(self) -> bool:
        if self.terminal_mask == "auto":
            return self.transition_type in (*ORDINAL, "nearest_neighbor")
        return self.terminal_mask

    @property
    def uses_clusters(self) -> bool:
        if self.nn_mode == "auto":
            return self.vocab_size > MAX_AUTO_EXACT_VOCAB
        return self.nn_mode == "clusters"

    @property
    def cross_entropy_factor(self) -> float:
        """The weight of the mean cross-entropy of x_0 beside the summed bound."""
        scale = self.num_timesteps if self.auxiliary_loss_scale == "per_step" else 1
        return self.auxiliary_loss_weight * scale


Config = D3PMConfig
