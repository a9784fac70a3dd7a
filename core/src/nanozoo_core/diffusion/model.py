"""What every diffusion model is made of: one DiT over a context token and a corrupted window."""

from __future__ import annotations

from torch import nn

from nanozoo_core.config.diffusion import DiffusionConfig
from nanozoo_core.diffusion.dit import DiT
from nanozoo_core.diffusion.sampling import NoiseRange


class DiffusionModel(nn.Module):
    """Predicts ids 0 .. V-1 from ids that may hold a mask as well; a subclass says what the network
    is told of the time and what its output means."""

    def __init__(
        self,
        config: DiffusionConfig,
        *,
        num_input_ids: int,
        time_conditioning: bool,
        adaln_when_unconditioned: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.max_context = config.seq_len + 1
        """The longest window, context token included."""
        self.chunk_size = config.chunk_size
        self.training_noise = NoiseRange(config.train_noise_min, config.train_noise_max)
        self.net = DiT(
            num_input_ids,
            config.vocab_size,
            model_dim=config.model_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            seq_len=self.max_context,
            dropout=config.dropout,
            time_conditioning=time_conditioning,
            cond_dim=config.cond_dim,
            locality=config.locality,
            tie_embeddings=config.tie_embeddings,
            adaln_when_unconditioned=adaln_when_unconditioned,
        )

    @property
    def mask_id(self) -> int | None:
        """What a hidden token becomes; None where it becomes another token."""
        return self.vocab_size
