"""The settings that all models of diffusion over tokens share. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from nanozoo_core.config.settings import TrainingConfig
from nanozoo_core.errors import Problems


@dataclass(frozen=True)
class DiffusionConfig:
    """A bidirectional transformer over one window; a subclass adds its process, and checks it in
    `check`."""

    vocab_size: int
    """Data tokens; null takes the tokenizer's. The model adds its mask after them."""
    seq_len: int
    """Scored tokens per window; null takes data.seq_len. The network sees one more, the context."""
    model_dim: int
    """Width of the residual stream."""
    num_layers: int
    """Blocks."""
    num_heads: int
    """Attention heads; model_dim / num_heads must be even for rotary positions."""
    mlp_ratio: int
    """Hidden width of the MLP over model_dim."""
    dropout: float
    """After attention and MLP; about 0.1 when the data is seen many times."""
    tie_embeddings: bool
    """Share input embedding and output head; the head then cannot start at zero."""
    cond_dim: int
    """Width of the time embedding, where there is one."""
    locality: float
    """Slope s of the first head's bias -s |i - j| on attention, halved from head to head, so that
    training begins from near tokens (arXiv 2108.12409, both sides); 0 is none, as published."""
    train_noise_min: float
    """Least share of noise that training draws; 0 as published. The score covers all of it."""
    train_noise_max: float
    """Most of it (arXiv 2601.22450 trains on the middle of the range); 1 as published."""
    train_draws: int
    """Draws of noise for every window of a training step, each a pass through the network; more
    learn more of the same text (the noise of masks is most of a step's, arXiv 2511.18159); 1 as
    published."""
    sar_chunk_size: int | None
    """New tokens per window when text goes on past one window; null is a quarter of the window."""

    def __post_init__(self) -> None:
        p = Problems()
        self.check(p)
        p.raise_if_any()

    def check(self, p: Problems) -> None:
        """Records what is wrong with these settings."""
        sizes = ("model_dim", "num_layers", "num_heads", "mlp_ratio", "cond_dim", "train_draws")
        p.require_at_least(self, {"vocab_size": 2, "seq_len": 2} | dict.fromkeys(sizes, 1))
        p.require_rotary_heads(self.num_heads, self.model_dim)
        p.require(0 <= self.dropout < 1, f"model_cfg.dropout={self.dropout} must be in [0, 1)")
        p.require(self.locality >= 0, f"model_cfg.locality={self.locality} must not be negative")
        p.require(
            0 <= self.train_noise_min < self.train_noise_max <= 1,
            f"model_cfg.train_noise_min={self.train_noise_min} and model_cfg.train_noise_max="
            f"{self.train_noise_max} must be in [0, 1], the first below the second",
        )
        p.require(
            self.sar_chunk_size is None or 1 <= self.sar_chunk_size < self.seq_len,
            f"model_cfg.sar_chunk_size={self.sar_chunk_size} must be at least 1 and below the "
            f"window of model_cfg.seq_len={self.seq_len} tokens, so that context is left",
        )

    def check_training(self, training: TrainingConfig) -> list[str]:
        """Problems that involve the data."""
        if training.data.seq_len <= self.seq_len:
            return []
        return [
            f"data.seq_len={training.data.seq_len} is longer than the window of "
            f"model_cfg.seq_len={self.seq_len} that the model reads"
        ]

    @property
    def chunk_size(self) -> int:
        """New tokens per window of a text that is longer than one."""
        return self.sar_chunk_size or max(1, self.seq_len // 4)
