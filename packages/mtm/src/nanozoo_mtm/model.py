"""The control decoder, and a chain of modules that predict one token further each.

B batch, T sequence, D model_dim, V vocabulary; depths k = 1 .. n.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanozoo_core.nn.cache import KVCache
from nanozoo_core.nn.control import ControlModel, control_block, init_input_matrix
from nanozoo_core.nn.feed_forward import ReluSquared
from nanozoo_core.nn.norms import rms_norm
from nanozoo_core.nn.rotary import Angles
from nanozoo_mtm.config import MTMConfig


class MLPBlock(nn.Module):
    """u + MLP(norm(u)), 3 model_dim wide: a module's block without attention."""

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.mlp = ReluSquared(model_dim, 3 * model_dim)
        init_input_matrix(self.mlp.up.weight)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(self, u: Tensor, angles: Angles, *, cache: KVCache | None = None) -> Tensor:
        return u + self.mlp(rms_norm(u))


class PredictionModule(nn.Module):
    """H^k = norm(Block(M [norm(H^{k-1}); norm(e)])), e the embeddings of tokens k places on.

    Position i keeps its rotary angle i at every depth.
    """

    def __init__(self, config: MTMConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.embed_first = config.concat_order == "embed_first"
        self.hidden_norm = nn.RMSNorm(dim, eps=1e-6)
        self.embed_norm = nn.RMSNorm(dim, eps=1e-6)
        self.fuse = nn.Linear(2 * dim, dim, bias=False)
        self.block: nn.Module = (
            MLPBlock(dim) if config.mtp_block == "mlp" else control_block(config)
        )
        self.out_norm = None if config.share_final_norm else nn.RMSNorm(dim, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """
        fuse    N(0, 1 / 2D): a fused stream starts with the size of its parts
        block   ControlBlock.init_weights: it starts as the identity
        norms   1
        """
        nn.init.normal_(self.fuse.weight, std=self.fuse.in_features**-0.5)

    def forward(
        self, hidden: Tensor, embedded: Tensor, angles: Angles, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, D) from the depth before, (B, T, D), and embeddings (B, T, D)."""
        parts = [self.hidden_norm(hidden), self.embed_norm(embedded)]
        if self.embed_first:
            parts.reverse()
        u = self.fuse(torch.cat(parts, dim=-1))
        g = self.block(u, angles, cache=cache)
        return rms_norm(g) if self.out_norm is None else self.out_norm(g)


class MTM(ControlModel):
    """logits^0 = U norm(H^0) of the main model, and logits^k = U H^k of the modules.

    The embedding and U are shared by all. `forward`, the score and plain decoding run the main
    model alone, which starts as the control's with one seed.
    """

    config: MTMConfig

    def __init__(self, config: MTMConfig) -> None:
        super().__init__(config)
        self.modules_ahead = nn.ModuleList(
            PredictionModule(config) for _ in range(config.num_mtp_modules)
        )

    def first_hidden(self, stream: Tensor) -> Tensor:
        """H^0, (B, T, D): the main model's stream before its final norm."""
        return stream.detach() if self.config.mtp_detach == "hidden" else stream

    def look_ahead(
        self,
        depth: int,
        hidden: Tensor,
        tokens: Tensor,
        angles: Angles,
        cache: KVCache | None = None,
    ) -> Tensor:
        """H^k (B, T, D) of depth 1 .. n, from H^{k-1} (B, T, D) and the tokens (B, T) that stand k
        places on; its logits predict those k + 1 places on."""
        return self.modules_ahead[depth - 1](hidden, self.embedding(tokens), angles, cache)

    def init_module_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Room for one module; without attention it only counts tokens."""
        return self.new_cache(int(self.config.mtp_block == "base"), batch_size, max_length)


Model = MTM
