"""H-Net's settings and their checks.

A stage is one level of the hierarchy: stage 0 reads bytes, the last one the coarsest chunks. Lists
have one value per stage; a single number stands for all of them; null is the preset's, or that of
a model that trains in minutes on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.config.ranges import Layers
from nanozoo_core.errors import Problems, divisors
from nanozoo_hnet.layout import StageLayout, parse_layout
from nanozoo_hnet.sizes import SIZES

if TYPE_CHECKING:
    from nanozoo_core.config import TrainingConfig


Preset = Literal[
    "hnet_small", "hnet_2stage", "hnet_attn",
    "hnet_1stage_L", "hnet_1stage_XL", "hnet_2stage_L", "hnet_2stage_XL",
]  # fmt: skip


@dataclass(frozen=True)
class SSMConfig:
    """Sizes of the Mamba-2 mixers; null is the preset's, or the tiny model's."""

    d_state: int | None
    """State size per channel of a head."""
    d_conv: int | None
    """Width of the causal convolution, in positions."""
    expand: int | None
    """Inner width relative to the stage's model_dim."""
    head_dim: int | None
    """Channels per head; must divide expand * model_dim."""
    chunk_size: int | None
    """Positions per block of the scan; changes speed, not results."""


@dataclass(frozen=True, kw_only=True)
class HNetConfig:
    # Of the mixers that a layout may name; a package that adds mixers adds their letters.
    LETTERS: ClassVar[tuple[str, ...]] = ("m", "t")
    # Preset, or none -> the values of keys that are null.
    SIZES: ClassVar[dict[str | None, dict[str, Any]]] = SIZES
    MAIN_LETTER: ClassVar[str] = "T"  # of the layers that num_main_layers counts
    MODEL: ClassVar[str] = "hnet"  # whose YAML has the values of these settings

    vocab_size: int
    """Symbols; null takes the tokenizer's (258: bytes, separator, pad)."""
    seq_len: int
    """Longest window in training, in tokens; null is data.seq_len."""
    preset: Preset | None
    """A released size, or one of about GPT-2 small: sets arch_layout, the five lists below it and
    ssm_cfg where these are null."""
    arch_layout: list[Any] | None
    """Nested [encoder, [main], decoder]; m Mamba-2, t attention, capitals with an MLP, e.g. T12."""
    num_compression_layers: Layers | None
    """Shorthand instead of arch_layout: layers of the encoder and of the decoder, all m."""
    num_main_layers: Layers | None
    """Shorthand instead of arch_layout: layers of the main network, all T."""
    model_dim: int | list[int] | None
    """Width of each stage, never falling inwards."""
    mlp_dim: int | list[int] | None
    """Hidden width of SwiGLU in each stage; 0 where no layer is a capital."""
    num_heads: int | list[int] | None
    """Attention heads in each stage."""
    rotary_emb_dim: int | list[int] | None
    """Channels of a head that are rotated, even; half the head is usual."""
    window_size: int | list[int] | None
    """Positions to the left that attention sees, in the stage's own steps; -1 is all."""
    ssm_cfg: SSMConfig
    """Sizes of the Mamba-2 mixers."""
    chunking: Literal["dynamic", "fixed", "space"]
    """dynamic learns the boundaries, fixed takes every N-th position, space the starts of words."""
    target_ratio: float | list[float] | None
    """Steps per chunk that each chunking aims at, > 1; null is 6 for one chunking, else 3 each."""
    compression_ratio: float | None
    """Instead of target_ratio: the share of positions left at the end, spread over the stages."""
    ratio_loss_coef: float
    """Weight of the ratio loss, which holds the chunk length near target_ratio."""
    boundary_clamp: float
    """Boundary probabilities stay this far from 0 and 1 in the smoothing."""
    capacity: float | None
    """Largest share of positions that may start a chunk in training; null is no cap."""
    lr_multipliers: Literal["auto"] | list[float]
    """Learning rate of each stage relative to optim.lr; auto from batch size and width."""
    bytes_per_token_ref: float
    """Bytes per token of the tokenizer for which optim.lr was tuned; for lr_multipliers=auto."""
    tie_embeddings: bool
    """Use the embedding as the output head too."""
    reset_at_documents: bool
    """Start a chunk at each document and let nothing pass between documents of a window."""
    norm_eps: float
    """Added to the mean square in every RMSNorm."""
    initializer_range: float
    """Standard deviation of the linear weights at the start."""
    embed_std: float
    """Standard deviation of the embedding at the start (initializer_range when tied)."""

    def __post_init__(self) -> None:
        p = Problems()
        self._fill_in(p)
        self._check_scalars(p)
        stages = self._check_layout(p)
        if stages is not None and self._check_lists(p, len(stages)):
            self._check_stages(p, stages)
            self._check_ratios(p, len(stages) - 1)
        refuse_unused(p, self.MODEL, self, self._unused())
        p.raise_if_any()

    # -- what the settings amount to ------------------------------------------------------------

    @property
    def stages(self) -> list[StageLayout]:
        """The networks of each stage, outermost first."""
        return parse_layout(self.arch_layout, self.LETTERS)

    @property
    def num_chunkings(self) -> int:
        return len(self.stages) - 1

    def per_stage(self, key: str) -> list[int]:
        """One value of setting `key` for each stage."""
        value = getattr(self, key)
        return value if isinstance(value, list) else [value] * len(self.stages)

    def ssm(self, key: str) -> int:
        """A size of the Mamba-2 mixers."""
        value = getattr(self.ssm_cfg, key)
        assert isinstance(value, int)
        return value

    @property
    def ratios(self) -> list[float]:
        """N_s: steps of stage s per chunk that are aimed at (a guess for chunking=space)."""
        count = self.num_chunkings
        if self.compression_ratio is not None:
            return [round(self.compression_ratio ** (-1 / count), 6)] * count
        if isinstance(self.target_ratio, list):
            return self.target_ratio
        default = 6.0 if count == 1 else 3.0
        return [default if self.target_ratio is None else self.target_ratio] * count

    def stage_lr_multipliers(self, *, by_width: bool = True) -> list[float]:
        """lambda_s. auto: a stage further in sees fewer positions per step, hence a smaller batch,
        sqrt(bytes_per_token_ref / (N_0 .. N_{s-1})); AdamW's rate also falls with the width,
        sqrt(D_S / D_s), while Muon's step already accounts for it (`by_width=False`)."""
        if isinstance(self.lr_multipliers, list):
            return self.lr_multipliers
        widths = self.per_stage("model_dim")
        multipliers, batch = [], self.bytes_per_token_ref
        for width, ratio in zip(widths, [*self.ratios, 1.0], strict=True):
            multipliers.append(math.sqrt(batch * (widths[-1] / width if by_width else 1.0)))
            batch /= ratio
        return multipliers

    # -- checks ---------------------------------------------------------------------------------

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and those of the data."""
        data = training.data
        problems = []
        if data.seq_len > self.seq_len:
            problems.append(
                f"data.seq_len={data.seq_len} must not exceed model_cfg.seq_len={self.seq_len}"
            )
        if data.tokenizer == "bytes" and self.vocab_size < 258:
            problems.append(
                f"model_cfg.vocab_size={self.vocab_size} must be at least 258 (256 bytes, "
                "separator, pad) with data.tokenizer=bytes; or leave it null"
            )
        if data.tokenizer != "bytes" and self.chunking == "space":
            problems.append(
                f"model_cfg.chunking=space reads bytes, not data.tokenizer={data.tokenizer}; set "
                "data.tokenizer=bytes"
            )
        return problems

    def _fill_in(self, p: Problems) -> None:
        """Replaces nulls: the layout by its shorthand, sizes by those of the preset."""
        sizes = self.SIZES[self.preset]
        ssm = {f.name: getattr(self.ssm_cfg, f.name) for f in fields(SSMConfig)}
        ssm = {key: sizes["ssm_cfg"][key] if value is None else value for key, value in ssm.items()}
        object.__setattr__(self, "ssm_cfg", SSMConfig(**ssm))
        given = {
            key: getattr(self, key)
            for key in ("num_compression_layers", "num_main_layers")
            if getattr(self, key) is not None
        }
        if given:
            named = " and ".join(f"model_cfg.{key}={value}" for key, value in given.items())
            outer = f"m{self.num_compression_layers}"
            main = f"{self.MAIN_LETTER}{self.num_main_layers}"
            layout = [outer, [main], outer]
            p.require(
                self.arch_layout is None or self.arch_layout == layout,
                f"{named} and model_cfg.arch_layout={self.arch_layout} both name the layers; set "
                "one of them to null",
            )
            if p.require(
                len(given) == 2 and min(given.values()) >= 1,
                f"{named}: model_cfg.num_compression_layers and model_cfg.num_main_layers go "
                "together and must be at least 1",
            ):
                object.__setattr__(self, "arch_layout", layout)
        for key, value in sizes.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)

    def _check_scalars(self, p: Problems) -> None:
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        p.require(
            self.ratio_loss_coef >= 0,
            f"model_cfg.ratio_loss_coef={self.ratio_loss_coef} must not be negative",
        )
        p.require(
            0 < self.boundary_clamp < 0.5,
            f"model_cfg.boundary_clamp={self.boundary_clamp} must be in (0, 0.5)",
        )
        p.require(
            self.capacity is None or 0 < self.capacity <= 1,
            f"model_cfg.capacity={self.capacity} must be in (0, 1] or null",
        )
        p.require(
            self.capacity is None or self.chunking == "dynamic",
            f"model_cfg.capacity={self.capacity} has no effect with model_cfg.chunking="
            f"{self.chunking}; set it to null",
        )
        for key in ("d_state", "d_conv", "expand", "head_dim", "chunk_size"):
            value = self.ssm(key)
            p.require(value >= 1, f"model_cfg.ssm_cfg.{key}={value} must be at least 1")
        for key in ("bytes_per_token_ref", "norm_eps", "initializer_range", "embed_std"):
            value = getattr(self, key)
            p.require(value > 0, f"model_cfg.{key}={value} must be positive")

    def _check_layout(self, p: Problems) -> list[StageLayout] | None:
        try:
            stages = self.stages
        except ValueError as error:
            p.add(f"model_cfg.arch_layout: {error}")
            return None
        if len(stages) == 1:
            p.add(
                f"model_cfg.arch_layout={self.arch_layout} has no chunking; put an encoder and a "
                "decoder around it, such as ['m4', ['T12'], 'm4']"
            )
            return None
        return stages

    def _listed(self, num_stages: int) -> dict[str, tuple[object, int, str]]:
        """The settings that may be lists: value, length, and what each entry is for."""
        keys = ("model_dim", "mlp_dim", "num_heads", "rotary_emb_dim", "window_size")
        return {key: (getattr(self, key), num_stages, "stage") for key in keys}

    def _check_lists(self, p: Problems, num_stages: int) -> bool:
        good = True
        for key, (value, count, what) in self._listed(num_stages).items():
            good &= p.require(
                not isinstance(value, list) or len(value) == count,
                f"model_cfg.{key}={value} must have {count} value(s), one for each {what} of "
                f"model_cfg.arch_layout={self.arch_layout}",
            )
        return good

    def _check_stages(self, p: Problems, stages: list[StageLayout]) -> None:
        keys = ("model_dim", "mlp_dim", "num_heads", "rotary_emb_dim", "window_size")
        dims = self.per_stage("model_dim")
        p.require(
            all(inner >= outer for outer, inner in pairwise(dims)),
            f"model_cfg.model_dim={self.model_dim} must not fall from one stage to the next",
        )
        columns = zip(*(self.per_stage(key) for key in keys), stages, strict=True)
        for s, (dim, mlp, heads, rotary, window, stage) in enumerate(columns):

            def name(key: str, value: int, s: int = s) -> str:
                at = f"[{s}]" if isinstance(getattr(self, key), list) else ""
                return f"model_cfg.{key}{at}={value}"

            if not p.require(dim >= 1, f"{name('model_dim', dim)} must be at least 1"):
                continue
            if p.require(
                heads >= 1 and dim % heads == 0,
                f"{name('num_heads', heads)} does not divide {name('model_dim', dim)}; use "
                f"{divisors(dim)}",
            ):
                p.require(
                    0 <= rotary <= dim // heads and rotary % 2 == 0,
                    f"{name('rotary_emb_dim', rotary)} must be even and at most the head's "
                    f"{dim // heads} channels",
                )
            p.require(
                window == -1 or window >= 1,
                f"{name('window_size', window)} must be -1 (all) or at least 1",
            )
            p.require(mlp >= 0, f"{name('mlp_dim', mlp)} must not be negative")
            p.require(
                mlp != 0 or not any(layer.has_mlp for layer in stage.layers),
                f"{name('mlp_dim', mlp)} leaves the capital letters of stage {s} of "
                f"model_cfg.arch_layout={self.arch_layout} without an MLP; give it a width",
            )
            inner, head_dim = self.ssm("expand") * dim, self.ssm("head_dim")
            p.require(
                head_dim < 1
                or inner % head_dim == 0
                or not any(layer.letter == "m" for layer in stage.layers),
                f"model_cfg.ssm_cfg.head_dim={head_dim} does not divide expand * "
                f"{name('model_dim', dim)} = {inner}; use {divisors(inner)}",
            )
        p.require(
            self.lr_multipliers == "auto"
            or (len(self.lr_multipliers) == len(stages) and min(self.lr_multipliers) > 0),
            f"model_cfg.lr_multipliers={self.lr_multipliers} must be auto or {len(stages)} "
            "positive values, one for each stage",
        )

    def _unused(self) -> dict[str, str]:
        """By key, the setting that leaves it without effect."""
        unused: dict[str, str] = {}
        if self.chunking != "dynamic":
            keys = ("ratio_loss_coef", "boundary_clamp")
            unused |= dict.fromkeys(keys, f"chunking={self.chunking}")
        if self.lr_multipliers != "auto":
            unused["bytes_per_token_ref"] = f"lr_multipliers={self.lr_multipliers}"
        if self.tie_embeddings:
            unused["embed_std"] = "tie_embeddings=true, which starts as model_cfg.initializer_range"
        return unused

    def _check_ratios(self, p: Problems, num_chunkings: int) -> None:
        target = self.target_ratio
        p.require(
            target is None or self.compression_ratio is None,
            f"model_cfg.target_ratio={target} and model_cfg.compression_ratio="
            f"{self.compression_ratio} say the same thing; set one of them to null",
        )
        p.require(
            self.compression_ratio is None or 0 < self.compression_ratio < 1,
            f"model_cfg.compression_ratio={self.compression_ratio} must be in (0, 1)",
        )
        if isinstance(target, list):
            p.require(
                len(target) == num_chunkings,
                f"model_cfg.target_ratio={target} must have {num_chunkings} value(s), one for each "
                "chunking",
            )
        given = target if isinstance(target, list) else [] if target is None else [target]
        p.require(
            all(ratio > 1 for ratio in given), f"model_cfg.target_ratio={target} must exceed 1"
        )
        if self.chunking == "space":
            p.require(
                target is None and self.compression_ratio is None,
                "model_cfg.chunking=space finds its chunks in the text; set "
                "model_cfg.target_ratio and model_cfg.compression_ratio to null",
            )
            p.require(
                num_chunkings == 1,
                f"model_cfg.chunking=space knows one level of chunks, but model_cfg.arch_layout="
                f"{self.arch_layout} has {num_chunkings}",
            )
        if self.chunking == "fixed":
            exact = all(float(ratio).is_integer() for ratio in given)
            share = self.compression_ratio
            if share is not None and 0 < share < 1:
                exact = all(float(ratio).is_integer() for ratio in self.ratios)
            p.require(
                exact,
                f"model_cfg.chunking=fixed needs whole numbers of steps per chunk, but "
                f"model_cfg.target_ratio={target}, model_cfg.compression_ratio={share}",
            )


Config = HNetConfig
