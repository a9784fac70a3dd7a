"""The settings of H-Net with sparse attention: those of H-Net, and what they do not have.

Lists have one value per stage; a single number stands for all of them. Nothing here imports torch.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from nanozoo_core.config import TrainingConfig, model_config
from nanozoo_core.config.ranges import Layers
from nanozoo_core.errors import ConfigError, Problems
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.layout import StageLayout
from nanozoo_hnet_x_nsa.sizes import LADDER, LADDER_KEYS, LADDER_OF, SIZES
from nanozoo_nsa.config import NSAConfig

Preset = Literal["hnet_x_nsa_small", "hnet_x_nsa_2stage", "hnet_x_nsa_fixed"]

LETTER = "n"
"""An NSA mixer; the capital adds an MLP."""


@dataclass(frozen=True)
class StageNSA:
    """Sizes of the NSA mixers, in steps of their stage; null is the preset's, or the tiny
    model's."""

    compress_block_size: int | list[int] | None
    """l: positions that become one compressed key."""
    compress_stride: int | list[int] | None
    """d: positions from one compressed key to the next, a divisor of l and l'."""
    selection_block_size: int | list[int] | None
    """l': positions of a block that is read as a whole."""
    num_selected_blocks: int | list[int] | None
    """n: blocks that a query reads, those it must read among them."""
    sliding_window_size: int | list[int] | None
    """w: nearest positions, the query's own among them."""
    init_blocks: int | list[int] | None
    """Blocks at the start that every query reads."""
    local_blocks: int | list[int] | None
    """Blocks up to and with its own that every query reads."""
    compress_mode: Literal["mlp", "linear", "mean"]
    """How l positions become one: an MLP, one matrix, or their mean."""
    cmp_rope: Literal["block_start", "none", "post"]
    """Positions of compressed keys: that of the block's first, none, or turned before they join."""
    shared_kv: bool
    """One pair of keys and values for all three branches, instead of one each."""
    gate_bias_init: tuple[float, ...]
    """Biases of the gates at the start: compressed, selected, window; 0 is half open."""


@dataclass(frozen=True, kw_only=True)
class HNetXNSAConfig(HNetConfig):
    LETTERS: ClassVar[tuple[str, ...]] = (*HNetConfig.LETTERS, LETTER)
    SIZES: ClassVar[dict[str | None, dict[str, Any]]] = SIZES
    MAIN_LETTER: ClassVar[str] = "N"
    MODEL: ClassVar[str] = "hnet_x_nsa"
    renamed: ClassVar[dict[str, str]] = {
        "n_inner_layers": "num_inner_layers",
        "n_compress_decompress_layers": "num_ladder_levels",
        "compression_decompress_size": "ladder_size",
        "d_intermediate": "mlp_dim",
    }

    preset: Preset | None  # type: ignore[assignment]
    """A size: sets the layout, all lists, ssm_cfg, nsa_cfg and the chunking where they are null."""
    chunking: Literal["dynamic", "fixed", "space"] | None  # type: ignore[assignment]
    """dynamic learns the boundaries, fixed takes every N-th position, space the starts of words;
    null is the preset's, or dynamic."""
    num_kv_heads: int | list[int] | None
    """Key and value heads of the n layers in each stage."""
    nsa_cfg: StageNSA
    """Sizes of the NSA mixers behind the letters n and N."""
    chunk_pool: Literal["select", "mlp"] | None
    """A chunk's vector: that of its first position, or an MLP's of the positions up to there beside
    it; null is the preset's, or select."""
    pool_window: int | list[int] | None
    """Positions that chunk_pool=mlp reads; null is the chunk length aimed at (ladder: twice)."""
    unpool: Literal["repeat", "mlp"] | None
    """What the positions of a chunk get: its vector, or with chunking=fixed also a part of their
    own of an MLP of it; null is the preset's, or repeat."""
    num_inner_layers: Layers | None
    """Ladder, instead of arch_layout: N layers of the innermost network."""
    num_ladder_levels: int | None
    """Ladder: chunkings of one equal stride, with a T layer before and behind each."""
    ladder_size: int | None
    """Ladder: bytes per innermost position, a power of the stride."""
    ctx_warmup: int | None
    """Train on windows of this length until 80 percent of the run, then on data.seq_len; null is
    data.seq_len throughout. Helps beyond 32k bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._warn()

    # -- what the settings amount to ------------------------------------------------------------

    def nsa(self, stage: int) -> NSAConfig:
        """The settings of the NSA mixers of a stage.

        Raises: ConfigError with NSA's own problems.
        """
        sizes = {f.name: getattr(self.nsa_cfg, f.name) for f in fields(StageNSA)}
        changes = {k: v[stage] if isinstance(v, list) else v for k, v in sizes.items()}
        for key in ("model_dim", "num_heads", "num_kv_heads"):
            changes[key] = self.per_stage(key)[stage]
        changes["qk_norm"] = False  # as H-Net's own attention
        # A mixer does not read seq_len; without end it gives no reason to warn, as `_warn` does.
        return model_config("nsa", changes, seq_len=sys.maxsize)

    @property
    def sparse_stages(self) -> list[int]:
        """The stages that have n layers."""
        return [
            number
            for number, stage in enumerate(self.stages)
            if any(layer.letter == LETTER for layer in stage.layers)
        ]

    def window_of_pool(self, stage: int) -> int:
        """R: positions that chunk_pool=mlp reads in a stage."""
        if self.pool_window is None:
            return max(1, round(self.ratios[stage]))
        return self.pool_window[stage] if isinstance(self.pool_window, list) else self.pool_window

    # -- filling in -----------------------------------------------------------------------------

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    def _fill_in(self, p: Problems) -> None:
        sizes = dict(self.SIZES[self.preset])
        for key, value in LADDER_OF.get(self.preset, {}).items():
            if getattr(self, key) is None and self.arch_layout is None:
                self._set(key, value)
        if any(getattr(self, key) is not None for key in LADDER_KEYS):
            self._fill_ladder(p, sizes)
        nsa = {f.name: getattr(self.nsa_cfg, f.name) for f in fields(StageNSA)}
        nsa |= {key: value for key, value in sizes["nsa_cfg"].items() if nsa[key] is None}
        self._set("nsa_cfg", StageNSA(**nsa))
        for key, value in sizes.items():
            shorthand = key == "arch_layout" and self.num_main_layers is not None
            if key != "ssm_cfg" and not shorthand and getattr(self, key) is None:
                self._set(key, value)
        super()._fill_in(p)

    def _fill_ladder(self, p: Problems, sizes: dict[str, Any]) -> None:
        """The layout of the ladder, and its chunking, pooling and unpooling where they are null."""
        named = ", ".join(f"model_cfg.{key}={getattr(self, key)}" for key in LADDER_KEYS)
        numbers = [getattr(self, key) for key in LADDER_KEYS]
        if not p.require(
            all(number is not None and number >= 1 for number in numbers),
            f"{named} go together, each at least 1",
        ):
            return
        num_inner, levels, size = numbers
        stride = round(size ** (1 / levels))
        if not p.require(
            stride >= 2 and stride**levels == size,
            f"model_cfg.ladder_size={size} is no {levels}-th power of a whole stride of at least 2 "
            f"(model_cfg.num_ladder_levels={levels}); use {max(stride, 2) ** levels}",
        ):
            return
        layout: list[Any] = [f"N{num_inner}"]
        for _ in range(levels):
            layout = ["T1", layout, "T1"]
        p.require(
            self.arch_layout in (None, layout),
            f"{named} and model_cfg.arch_layout={self.arch_layout} both name the layers; set one "
            "of them to null",
        )
        ratios = [float(stride)] * levels
        p.require(
            self.target_ratio is None or self.target_ratio in (stride, ratios),
            f"model_cfg.target_ratio={self.target_ratio} contradicts {named}, whose stride is "
            f"{stride}; set it to null",
        )
        if self.preset is None:
            sizes |= LADDER
        self._set("arch_layout", layout)
        self._set("target_ratio", ratios)
        if self.chunk_pool in (None, "mlp") and self.pool_window is None:
            self._set("pool_window", [2 * stride] * levels)
        fixed = self.chunking in (None, "fixed")
        ways = {"chunking": "fixed", "chunk_pool": "mlp", "unpool": "mlp" if fixed else "repeat"}
        for key, value in ways.items():
            if getattr(self, key) is None:
                self._set(key, value)

    # -- checks ---------------------------------------------------------------------------------

    def _listed(self, num_stages: int) -> dict[str, tuple[object, int, str]]:
        listed = super()._listed(num_stages)
        listed["num_kv_heads"] = (self.num_kv_heads, num_stages, "stage")
        listed["pool_window"] = (self.pool_window, num_stages - 1, "chunking")
        for f in fields(StageNSA):
            listed[f"nsa_cfg.{f.name}"] = (getattr(self.nsa_cfg, f.name), num_stages, "stage")
        return listed

    def _check_stages(self, p: Problems, stages: list[StageLayout]) -> None:
        super()._check_stages(p, stages)
        for number in self.sparse_stages:
            dim, heads = (self.per_stage(key)[number] for key in ("model_dim", "num_heads"))
            if dim < 1 or heads < 1 or dim % heads:
                continue  # said already
            try:
                self.nsa(number)
            except ConfigError as error:
                for problem in error.problems:
                    p.add(f"stage {number}: {_renamed(problem)}")
        self._check_pooling(p)

    def _check_pooling(self, p: Problems) -> None:
        windows = self.pool_window if isinstance(self.pool_window, list) else [self.pool_window]
        p.require(
            all(window is None or window >= 1 for window in windows),
            f"model_cfg.pool_window={self.pool_window} must be at least 1",
        )
        p.require(
            self.pool_window is None or self.chunk_pool == "mlp",
            f"model_cfg.pool_window={self.pool_window} has no effect with model_cfg.chunk_pool="
            f"{self.chunk_pool}; set it to null",
        )
        p.require(
            self.unpool == "repeat" or self.chunking == "fixed",
            f"model_cfg.unpool={self.unpool} needs chunks of one length, but model_cfg.chunking="
            f"{self.chunking}; use repeat, or model_cfg.chunking=fixed",
        )
        p.require(
            self.ctx_warmup is None or 1 <= self.ctx_warmup < self.seq_len,
            f"model_cfg.ctx_warmup={self.ctx_warmup} must be at least 1 and less than "
            f"model_cfg.seq_len={self.seq_len}",
        )

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and those of the data."""
        problems = super().check_training(training)
        if self.ctx_warmup is not None and self.ctx_warmup >= training.data.seq_len:
            problems.append(
                f"model_cfg.ctx_warmup={self.ctx_warmup} must be less than data.seq_len="
                f"{training.data.seq_len}; set it to null"
            )
        return problems

    def _warn(self) -> None:
        sparse = self.sparse_stages
        if not sparse:
            warnings.warn(
                f"model_cfg.arch_layout={self.arch_layout} has no n or N: this is hnet",
                stacklevel=4,
            )
        for number in sparse:
            nsa = self.nsa(number)
            keys = nsa.grid.num_selected * nsa.grid.block + (nsa.sliding_window_size or 0)
            length = self.seq_len / math.prod(self.ratios[:number])
            if length < 2 * keys:
                warnings.warn(
                    f"stage {number} has about {length:.0f} positions, and sparse attention reads "
                    f"up to {keys} of them: as much as full attention, at a higher cost",
                    stacklevel=4,
                )


def _renamed(problem: str) -> str:
    """A message of nsa with the keys as they are called here."""
    for f in fields(StageNSA):
        problem = problem.replace(f"model_cfg.{f.name}", f"model_cfg.nsa_cfg.{f.name}")
    return problem


Config = HNetXNSAConfig
