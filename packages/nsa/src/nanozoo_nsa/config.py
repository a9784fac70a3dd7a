"""The settings of Native Sparse Attention. Nothing here imports torch."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.errors import Problems

PRESETS: dict[str, dict[str, int]] = {
    "paper": {
        "compress_block_size": 32,
        "compress_stride": 16,
        "selection_block_size": 64,
        "num_selected_blocks": 16,
        "sliding_window_size": 512,
    },
    "nano_1k": {
        "compress_block_size": 16,
        "compress_stride": 8,
        "selection_block_size": 32,
        "num_selected_blocks": 6,
        "sliding_window_size": 128,
    },
}
"""The paper's sizes, and some for texts of 1024 tokens."""

DEFAULTS: dict[str, int] = {
    "compress_block_size": 8,
    "compress_stride": 4,
    "selection_block_size": 16,
    "num_selected_blocks": 4,
    "sliding_window_size": 32,
}

TRITON_BLOCKS = (16, 32, 64, 128)
TRITON_HEADS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Grid:
    """Where the blocks of a sequence lie. Positions and blocks count from 0."""

    window: int  # l: tokens of a compressed block
    stride: int  # d: tokens from one compressed block to the next
    block: int  # l': tokens of a selection block
    num_selected: int  # n: blocks that a query reads, forced ones among them
    init_blocks: int  # blocks at the start that every query reads
    local_blocks: int  # blocks up to the query's own that it reads

    @property
    def num_forced(self) -> int:
        return self.init_blocks + self.local_blocks

    @property
    def num_free(self) -> int:
        """Blocks that scores choose."""
        return self.num_selected - self.num_forced

    @property
    def overlap(self) -> tuple[int, ...]:
        """Tokens that selection block j shares with compressed blocks j l'/d - l/d + 1, ..., j l'/d
        + l'/d - 1, over d: the weights of eq. 9."""
        first = 1 - self.window // self.stride
        starts = [i * self.stride for i in range(first, self.block // self.stride)]
        shared = [min(s + self.window, self.block) - max(s, 0) for s in starts]
        return tuple(tokens // self.stride for tokens in shared)

    def num_windows(self, length: int) -> int:
        """n_c: compressed blocks complete within the first `length` tokens."""
        return max(0, (length - self.window) // self.stride + 1)

    def num_blocks(self, length: int) -> int:
        """Selection blocks that `length` tokens touch."""
        return -(-length // self.block)


@dataclass(frozen=True)
class NSAConfig(ControlConfig):
    num_kv_heads: int
    """Key and value heads, a divisor of num_heads; the query heads of one read the same blocks, so
    few are fast."""
    preset: Literal["paper", "nano_1k"] | None
    """Block sizes of the paper or for 1024 tokens: sets the next five."""
    sliding_window_size: int | None
    """w: nearest tokens, the query's own among them; null is the preset's, or 32."""
    compress_block_size: int | None
    """l: tokens that become one compressed key; null is the preset's, or 8."""
    compress_stride: int | None
    """d: tokens from one compressed key to the next, a divisor of l and l'; null is the preset's,
    or 4."""
    selection_block_size: int | None
    """l': tokens of a block that is read as a whole; null is the preset's, or 16."""
    num_selected_blocks: int | None
    """n: blocks that a query reads, those it must read among them; null is the preset's, or 4."""
    init_blocks: int
    """Blocks at the start of the text that every query reads."""
    local_blocks: int
    """Blocks up to and with its own that every query reads."""
    compress_mode: Literal["mlp", "linear", "mean"]
    """How l tokens become one: an MLP, one matrix, or their mean."""
    compress_mlp_ratio: float
    """Hidden width of the MLP relative to head_dim."""
    compress_residual_mean: bool
    """Add the mean to the MLP, whose output starts at zero: it then begins as mean pooling."""
    cmp_rope: Literal["block_start", "none", "post"]
    """Positions of compressed keys: that of the block's first token, none (nor of the query), or
    those of the tokens, turned before compression."""
    shared_kv: bool
    """One pair of keys and values for all three branches, instead of one each."""
    gate_bias_init: tuple[float, ...]
    """Biases of the gates at the start: compressed, selected, window; 0 is half open."""
    qk_norm: bool
    """RMSNorm of queries and keys, as in the control."""
    rope_theta: float
    """Base of the rotary frequencies; raise it for long texts."""
    reset_at_documents: bool
    """Each document of a window is read alone, its blocks counted from its start."""
    nsa_impl: Literal["auto", "triton", "dense_mask", "gather"]
    """How selected blocks are read: Triton kernels, which then choose them too, a mask over all
    keys, or gathered blocks; auto is Triton on CUDA, else gather."""

    renamed: ClassVar[dict[str, str]] = {
        "kv_heads": "num_kv_heads",
        "compress_block_sliding_stride": "compress_stride",
        "selected_blocks": "num_selected_blocks",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._warn()

    def check(self, p: Problems) -> None:
        super().check(p)
        p.take_preset(self, self.preset, PRESETS.get(self.preset or "", {}), DEFAULTS)
        self._check_heads(p)
        self._check_grid(p)
        self._check_compression(p)
        p.require(
            math.isfinite(self.rope_theta) and self.rope_theta > 1,
            f"model_cfg.rope_theta={self.rope_theta} must be greater than 1",
        )

    def _check_heads(self, p: Problems) -> None:
        p.require_at_least(self, {"num_kv_heads": 1})
        if min(self.num_heads, self.model_dim) < 1 or self.model_dim % self.num_heads:
            return  # said already
        p.require(
            self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads == 0,
            f"model_cfg.num_kv_heads={self.num_kv_heads} does not divide "
            f"model_cfg.num_heads={self.num_heads}",
        )
        p.require(
            self.nsa_impl != "triton" or self.head_dim in TRITON_HEADS,
            f"model_cfg.nsa_impl=triton needs heads of width "
            f"{', '.join(map(str, TRITON_HEADS))}; model_dim / num_heads is {self.head_dim}; "
            f"use auto",
        )

    def _check_grid(self, p: Problems) -> None:
        least = dict.fromkeys(DEFAULTS, 1) | {"init_blocks": 0, "local_blocks": 1}
        p.require_at_least(self, least)
        if any(getattr(self, key) < bound for key, bound in least.items()):
            return
        grid = self.grid
        for key, size in (
            ("compress_block_size", grid.window),
            ("selection_block_size", grid.block),
        ):
            p.require(
                size % grid.stride == 0,
                f"model_cfg.compress_stride={grid.stride} does not divide model_cfg.{key}={size}",
            )
        p.require(
            grid.window <= grid.block,
            f"model_cfg.compress_block_size={grid.window} exceeds "
            f"model_cfg.selection_block_size={grid.block}; compressed blocks must not be longer",
        )
        p.require(
            grid.num_free >= 0,
            f"model_cfg.num_selected_blocks={grid.num_selected} is less than "
            f"model_cfg.init_blocks={grid.init_blocks} + "
            f"model_cfg.local_blocks={grid.local_blocks}, which are always read",
        )
        p.require(
            self.nsa_impl != "triton" or grid.block in TRITON_BLOCKS,
            f"model_cfg.nsa_impl=triton needs model_cfg.selection_block_size to be "
            f"{', '.join(map(str, TRITON_BLOCKS))}, not {grid.block}; use auto",
        )

    def _check_compression(self, p: Problems) -> None:
        p.require(
            len(self.gate_bias_init) == 3 and all(map(math.isfinite, self.gate_bias_init)),
            f"model_cfg.gate_bias_init={list(self.gate_bias_init)} must be 3 numbers: compressed, "
            f"selected, window",
        )
        p.require(
            self.compress_mlp_ratio > 0,
            f"model_cfg.compress_mlp_ratio={self.compress_mlp_ratio} must be positive",
        )
        if self.compress_mode != "mlp":
            keys_of_mlp = ("compress_mlp_ratio", "compress_residual_mean")
            why = f"compress_mode={self.compress_mode}"
            refuse_unused(p, "nsa", self, dict.fromkeys(keys_of_mlp, why))

    def _warn(self) -> None:
        grid, window = self.grid, self.sliding_window_size or 0
        keys = grid.num_selected * grid.block + window
        if 2 * keys >= self.seq_len:
            warnings.warn(
                f"num_selected_blocks * selection_block_size + sliding_window_size = {keys} is no "
                f"less than half of seq_len={self.seq_len}: sparse attention then reads as much as "
                f"full attention, and costs more",
                stacklevel=4,
            )

    @property
    def grid(self) -> Grid:
        """The block sizes by name."""
        return Grid(
            window=self.compress_block_size or 0,
            stride=self.compress_stride or 0,
            block=self.selection_block_size or 0,
            num_selected=self.num_selected_blocks or 0,
            init_blocks=self.init_blocks,
            local_blocks=self.local_blocks,
        )

    @property
    def num_branches(self) -> int:
        """Pairs of keys and values."""
        return 1 if self.shared_kv else 3


Config = NSAConfig
