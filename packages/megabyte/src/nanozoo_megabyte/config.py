"""MEGABYTE's settings, their checks, and sizes. Nothing here imports torch.

A null size is the preset's, or that of a model that trains in minutes on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from nanozoo_core.config.ranges import Layers
from nanozoo_core.errors import Problems, divisors

if TYPE_CHECKING:
    from nanozoo_core.config import TrainingConfig

TINY: dict[str, int] = {
    "patch_size": 4,
    "global_byte_dim": 32,
    "num_global_layers": 3,
    "num_global_heads": 4,
    "local_dim": 96,
    "num_local_layers": 2,
    "num_local_heads": 4,
}

PRESETS: dict[str, dict[str, int]] = {
    "megabyte_small": {
        "patch_size": 8,
        "global_byte_dim": 96,
        "num_global_layers": 12,
        "num_global_heads": 12,
        "local_dim": 512,
        "num_local_layers": 4,
        "num_local_heads": 8,
    },
    "megabyte_seed": {
        "patch_size": 16,
        "global_byte_dim": 64,
        "num_global_layers": 6,
        "num_global_heads": 4,
        "local_dim": 512,
        "num_local_layers": 6,
        "num_local_heads": 8,
    },
    "megabyte_1b": {
        "patch_size": 8,
        "global_byte_dim": 256,
        "num_global_layers": 14,
        "num_global_heads": 32,
        "local_dim": 1024,
        "num_local_layers": 18,
        "num_local_heads": 16,
    },
    "megabyte_1.5b": {
        "patch_size": 8,
        "global_byte_dim": 256,
        "num_global_layers": 24,
        "num_global_heads": 32,
        "local_dim": 1024,
        "num_local_layers": 15,
        "num_local_heads": 16,
    },
}
"""98.6M parameters with a global model of GPT-2 small's size; 95.2M; and the paper's two models of
text (tables 13 to 15), 934M and 1400M, each at 8192 bytes. The paper counts them as 758M + 262M and
1.3B + 218M."""

TRITON_PATCH_SIZE, TRITON_HEAD_DIM = 32, 128
"""The most that the local model's kernel takes."""


@dataclass(frozen=True)
class MegabyteConfig:
    renamed: ClassVar[dict[str, str]] = {
        "d_global_pre_patch": "global_byte_dim",
        "d_local": "local_dim",
        "n_layers_d_global": "num_global_layers",
        "n_layers_d_local": "num_local_layers",
        "global_n_heads": "num_global_heads",
        "local_n_heads": "num_local_heads",
    }

    vocab_size: int
    """Symbols; null takes the tokenizer's (258: bytes, separator, pad)."""
    seq_len: int
    """Longest window, and rows of a learned position table; null is data.seq_len."""
    preset: Literal["megabyte_small", "megabyte_seed", "megabyte_1b", "megabyte_1.5b"] | None
    """A size: sets the seven keys below where these are null; the last two are the paper's."""
    patch_size: int | None
    """P: bytes per patch; smaller is better per byte and slower."""
    global_byte_dim: int | None
    """Channels per byte in the global model, whose width is patch_size times this."""
    num_global_layers: Layers | None
    """Blocks of the global model, which runs once per patch."""
    num_global_heads: int | None
    """Attention heads of the global model, a divisor of its width."""
    local_dim: int | None
    """Width of the local model."""
    num_local_layers: Layers | None
    """Blocks of the local model, which runs once per byte."""
    num_local_heads: int | None
    """Attention heads of the local model, a divisor of local_dim."""
    mlp_ratio: float
    """Width of the MLPs relative to that of their model."""
    pos_emb: Literal["learned", "rope", "both"]
    """learned adds a vector per byte position (the paper), rope turns queries and keys."""
    local_first_input: Literal["pad", "prev_byte"]
    """What the local model reads first in a patch: a learned vector (the paper), or the byte before
    the patch."""
    use_first_input: bool
    """Read the context token of a window, in the place of the first patch's learned vector."""
    tie_embeddings: bool
    """Use the local embedding as the output head too, as the paper does; it then starts small."""
    cross_patch: int
    """Last bytes of the patch before that local attention also sees, 0 .. patch_size; 0 is none."""
    patch_conv: bool
    """Causal convolutions over the bytes' embeddings before they are put together to patches."""
    local_backend: Literal["torch", "triton"]
    """How the local model attends: torch's attention, which cross_patch needs, or on a GPU a Triton
    kernel for patches of at most 32 bytes, whose speed there is not measured yet."""
    eval_strided: bool
    """Score each byte in the first half of a patch, from two passes: twice the cost, fewer bits."""
    lr_multipliers: list[float]
    """Learning rate of the local and of the global model relative to the rates in optim."""

    def __post_init__(self) -> None:
        p = Problems()
        sizes = TINY if self.preset is None else PRESETS[self.preset]
        p.require(
            self.preset is None or any(getattr(self, k) in (None, v) for k, v in sizes.items()),
            f"model_cfg.preset={self.preset} sets nothing, as all of {', '.join(sizes)} are given; "
            "leave it out, or some of them",
        )
        for key, value in sizes.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 1}, or_null=True)
        p.require_at_least(self, dict.fromkeys(sizes, 1))
        if all(self.size(key) >= 1 for key in sizes):
            self._check_widths(p)
            self._check_patches(p)
        p.require(
            len(self.lr_multipliers) == 2 and min(self.lr_multipliers) > 0,
            f"model_cfg.lr_multipliers={self.lr_multipliers} must be two positive numbers, for the "
            "local and for the global model",
        )
        p.raise_if_any()

    # -- what the settings amount to ------------------------------------------------------------

    def size(self, key: str) -> int:
        """A size that the preset may have filled in."""
        value = getattr(self, key)
        assert isinstance(value, int)
        return value

    @property
    def global_dim(self) -> int:
        """W: width of the global model."""
        return self.size("patch_size") * self.size("global_byte_dim")

    @property
    def has_learned_positions(self) -> bool:
        return self.pos_emb in ("learned", "both")

    @property
    def has_rotary_positions(self) -> bool:
        return self.pos_emb in ("rope", "both")

    @property
    def has_local_pad(self) -> bool:
        """Whether any patch begins with the local model's learned vector."""
        return self.local_first_input == "pad" or not self.use_first_input

    # -- checks ---------------------------------------------------------------------------------

    def _check_widths(self, p: Problems) -> None:
        width = "the global width, model_cfg.patch_size * model_cfg.global_byte_dim = "
        stacks = (
            ("num_global_heads", f"{width}{self.global_dim}", self.global_dim),
            ("num_local_heads", f"model_cfg.local_dim={self.local_dim}", self.size("local_dim")),
        )
        for key, named, dim in stacks:
            heads = self.size(key)
            if p.require(
                dim % heads == 0,
                f"model_cfg.{key}={heads} does not divide {named}; use {divisors(dim)}",
            ):
                p.require(
                    not self.has_rotary_positions or dim // heads % 2 == 0,
                    f"model_cfg.{key}={heads} makes heads of width {dim // heads}, and "
                    f"model_cfg.pos_emb={self.pos_emb} needs pairs of channels; use an even width",
                )
            p.require(
                int(self.mlp_ratio * dim) >= 1,
                f"model_cfg.mlp_ratio={self.mlp_ratio} leaves no channel of {named}; use 4",
            )

    def _check_patches(self, p: Problems) -> None:
        size, seq_len = self.size("patch_size"), self.seq_len
        if seq_len >= 1:
            p.require(
                seq_len % size == 0 and seq_len > size,
                f"model_cfg.seq_len={seq_len} must be a multiple of model_cfg.patch_size={size}, "
                f"at least two patches; use {max(2, round(seq_len / size)) * size}",
            )
        p.require(
            0 <= self.cross_patch <= size,
            f"model_cfg.cross_patch={self.cross_patch} must be in 0 .. model_cfg.patch_size={size}",
        )
        if self.local_backend == "triton":
            self._check_kernel(p)
        p.require(
            not self.eval_strided or size >= 2,
            "model_cfg.eval_strided=true shifts a window by half a patch, but "
            "model_cfg.patch_size=1 has no half; use false",
        )

    def _check_kernel(self, p: Problems) -> None:
        width = self.size("local_dim") // self.size("num_local_heads")
        limits = (
            (f"model_cfg.patch_size={self.patch_size}", self.size("patch_size"), TRITON_PATCH_SIZE),
            (f"model_cfg.local_dim / model_cfg.num_local_heads = {width}", width, TRITON_HEAD_DIM),
            (f"model_cfg.cross_patch={self.cross_patch}", self.cross_patch, 0),
        )
        for named, value, most in limits:
            p.require(
                value <= most,
                f"{named} must be at most {most} with model_cfg.local_backend=triton; use torch",
            )

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems between these settings and those of the data."""
        data = training.data
        problems = []
        if data.seq_len > self.seq_len:
            problems.append(
                f"data.seq_len={data.seq_len} must not exceed model_cfg.seq_len={self.seq_len}; "
                "use model_cfg.seq_len=null to follow data.seq_len"
            )
        if data.tokenizer == "bytes" and self.vocab_size < 258:
            problems.append(
                f"model_cfg.vocab_size={self.vocab_size} must be at least 258 (256 bytes, "
                "separator, pad) with data.tokenizer=bytes; or leave it null"
            )
        return problems


Config = MegabyteConfig
