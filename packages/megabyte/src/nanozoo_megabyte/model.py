"""MEGABYTE: a global model over patches of bytes, a local model over the bytes of each.

`forward(tokens)` scores the token after each of `tokens`, as every model here. The paper's x_t is
tokens[t + 1]: each x_t is predicted from those before it, and tokens[0] is context. What the paper
shifts, by a patch in the global model and by a byte in the local one, is shifted here once.

B windows, T tokens, P bytes per patch, M patches, G global_byte_dim, W = P G, L local_dim,
V vocabulary,
R some rows of a cache, S new tokens.
Reference: Yu et al. 2023, arXiv 2305.07185, section 2.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.errors import NanozooError
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_megabyte.cache import MegabyteCache
from nanozoo_megabyte.config import MegabyteConfig
from nanozoo_megabyte.patch_attention import patch_attention
from nanozoo_megabyte.transformer import Angles, Look, Transformer, attend_across

CONV_KERNELS = (3, 5, 7)
STD = 0.02


class CausalConvolutions(nn.Module):
    """e + gelu(conv(e)), for kernels of 3, 5 and 7 bytes in turn."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, k, bias=False) for k in CONV_KERNELS)
        self.reach = sum(kernel - 1 for kernel in CONV_KERNELS)  # earlier bytes that count

    def forward(self, e: Tensor) -> Tensor:
        """(B, T, G) -> (B, T, G)."""
        for kernel, layer in zip(CONV_KERNELS, self.layers, strict=True):
            past = F.pad(e, (0, 0, kernel - 1, 0))
            e = e + F.gelu(layer(past.mT).mT, approximate="tanh")
        return e


class Megabyte(nn.Module):
    def __init__(self, config: MegabyteConfig) -> None:
        super().__init__()
        self.config = config
        self.max_context = config.seq_len
        self.patch_size = config.size("patch_size")
        byte_dim, local_dim = config.size("global_byte_dim"), config.size("local_dim")

        self.global_embedding = nn.Embedding(config.vocab_size, byte_dim)
        self.position = (
            nn.Embedding(config.seq_len, byte_dim) if config.has_learned_positions else None
        )
        self.convolutions = CausalConvolutions(byte_dim) if config.patch_conv else None
        self.global_pad = nn.Parameter(torch.empty(config.global_dim))
        self.global_model = Transformer(
            config.global_dim,
            config.size("num_global_layers"),
            config.size("num_global_heads"),
            config.mlp_ratio,
        )
        self.to_local = nn.Linear(byte_dim, local_dim, bias=False)  # W_GL
        self.local_embedding = nn.Embedding(config.vocab_size, local_dim)
        self.local_pad = nn.Parameter(torch.empty(local_dim)) if config.has_local_pad else None
        self.local_model = Transformer(
            local_dim,
            config.size("num_local_layers"),
            config.size("num_local_heads"),
            config.mlp_ratio,
        )
        self.head = nn.Linear(local_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.local_embedding.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        embeddings, position, pads   N(0, 1), or N(0, 0.02^2) with a tied head
        to_local                     N(0, 1 / G) times that: what it adds is as large as a byte's
                                     embedding, which would be drowned otherwise
        head, convolutions           N(0, 0.02^2)
        global_model, local_model    Transformer.init_weights(0.02)
        """
        std = STD if self.config.tie_embeddings else 1.0
        self.head.weight.normal_(std=STD)
        tables = [self.global_embedding, self.position, self.local_embedding]
        inputs = [table.weight for table in tables if table is not None]
        for parameter in [*inputs, self.global_pad, self.local_pad]:
            if parameter is not None:
                parameter.normal_(std=std)
        self.to_local.weight.normal_(std=std / math.sqrt(self.to_local.in_features))
        if self.convolutions is not None:
            for weight in self.convolutions.parameters():
                weight.normal_(std=STD)
        self.global_model.init_weights(STD)
        self.local_model.init_weights(STD)

    # -- the parts, in the order in which data meets them ----------------------------------------

    def embed_bytes(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the global model knows of each byte, (B, T, G), before any convolution."""
        e = self.global_embedding(tokens)
        return e if self.position is None else e + self.position(positions)

    def convolve(self, e: Tensor) -> Tensor:
        if self.convolutions is None or e.shape[1] == 0:
            return e
        return self.convolutions(e)

    def global_angles(self, patches: Tensor) -> Angles | None:
        """Rotary angles of patch numbers, (M,) or (B, M)."""
        if not self.config.has_rotary_positions:
            return None
        return rotary_angles(patches, self.global_model.head_dim)

    def local_angles(self, positions: Tensor) -> Angles | None:
        """Rotary angles of byte positions: within a patch only their differences count."""
        if not self.config.has_rotary_positions:
            return None
        return rotary_angles(positions, self.local_model.head_dim)

    def conditions(self, o: Tensor) -> Tensor:
        """W_GL applied to the slice for each byte of the global output: (..., W) -> (..., P, L)."""
        return self.to_local(o.unflatten(-1, (self.patch_size, -1)))

    def first_inputs(self, first: Tensor, patches: Tensor) -> Tensor:
        """What the local model reads of the past at a patch's first byte.

        Args: first: (N, L), the embedding of the token before each patch; patches: (N,) numbers.
        """
        if self.local_pad is None:
            return first
        if self.config.local_first_input == "pad":
            reads_byte = (patches == 0) & self.config.use_first_input
        else:
            reads_byte = patches > 0  # has_local_pad: the context token is not used
        return torch.where(reads_byte[:, None], first, self.local_pad.to(first.dtype))

    # -- the whole ------------------------------------------------------------------------------

    def features(self, tokens: Tensor, cache: MegabyteCache | None = None) -> Tensor:
        """(B, T, L), whose product with output_weight is the logits; a cache continues a text."""
        if cache is None:
            return self.encode(tokens)
        return self.read_on(tokens, cache)

    def encode(self, tokens: Tensor, cache: MegabyteCache | None = None) -> Tensor:
        """(B, T, L) of whole windows (B, T); leaves the global model's keys and values in a cache.

        Raises: NanozooError for a window longer than seq_len.
        """
        length, size = tokens.shape[1], self.patch_size
        if length > self.max_context:
            raise NanozooError(
                f"a window of {length} tokens is longer than model_cfg.seq_len={self.max_context}; "
                "use at most that many, or train with a larger one"
            )
        num_patches = -(-length // size)
        patches = torch.arange(num_patches, device=tokens.device)

        # The patches that the global model reads are whole: the last one is predicted, not read.
        end = (num_patches - 1) * size
        e = self.embed_bytes(tokens[:, 1 : end + 1], torch.arange(end, device=tokens.device))
        h = self.convolve(e).unflatten(1, (num_patches - 1, size)).flatten(2)  # (B, M - 1, W)
        pad = self.global_pad.to(h.dtype).expand(tokens.shape[0], 1, -1)
        u = torch.cat([pad, h], dim=1)  # (B, M, W)
        o = self.global_model(
            u, self.global_angles(patches), cache=None if cache is None else cache.patches
        )

        padded = F.pad(tokens, (0, num_patches * size - length))
        past = self.local_embedding(padded).unflatten(1, (num_patches, size))  # (B, M, P, L)
        first = self.first_inputs(past[:, :, 0].flatten(0, 1), patches.repeat(tokens.shape[0]))
        past = torch.cat([first.view_as(past[:, :, :1]), past[:, :, 1:]], dim=2)
        a = (self.conditions(o) + past).flatten(0, 1)  # (B * M, P, L)
        z = self.decode_patches(a, num_patches)
        return z.unflatten(0, (-1, num_patches)).flatten(1, 2)[:, :length]

    def decode_patches(self, a: Tensor, num_patches: int) -> Tensor:
        """The local model on all patches at once, (B * M, P, L) -> the same."""
        positions = torch.arange(self.patch_size, device=a.device)
        overlap = self.config.cross_patch
        look: Look = partial(patch_attention, backend=self.config.local_backend)
        if overlap:
            look = partial(attend_across, num_patches=num_patches, overlap=overlap)
            # The bytes of the patch before stand at other distances than their places tell.
            starts = self.patch_size * torch.arange(num_patches, device=a.device)
            positions = (starts[:, None] + positions).repeat(a.shape[0] // num_patches, 1)
        return self.local_model(a, self.local_angles(positions), look=look)

    @property
    def output_weight(self) -> Tensor:
        return self.head.weight

    def logits(self, features: Tensor) -> Tensor:
        """Scores (..., V) of the next token from features (..., L)."""
        return self.head(features)

    def forward(self, tokens: Tensor, cache: MegabyteCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T)."""
        return self.logits(self.features(tokens, cache))

    def init_cache(self, batch_size: int, max_length: int) -> MegabyteCache:
        """An empty decoding state for `batch_size` rows of at most `max_length` tokens."""
        size, overlap = self.patch_size, self.config.cross_patch
        return MegabyteCache(
            self.global_model.init_cache(batch_size, -(-max_length // size)),
            self.local_model.init_cache(batch_size, overlap + size),
            self.conditions(self.global_pad.new_zeros(batch_size, self.config.global_dim)),
            max_length=max_length,
            patch_size=size,
            overlap=overlap,
        )

    # -- decoding: what a cache has not read yet --------------------------------------------------

    def read_on(self, tokens: Tensor, cache: MegabyteCache) -> Tensor:
        """Features (B, S, L) of S more tokens of every row."""
        first = cache.lengths
        cache.add(tokens)
        if cache.is_empty:
            cache.is_empty = False
            features = self.encode(tokens, cache)
            cache.read = cache.lengths
            cache.crop(cache.lengths)
            return features
        features = cache.conditions.new_zeros(*tokens.shape, cache.conditions.shape[-1])
        while True:
            behind = cache.read < cache.lengths
            rows = behind.nonzero()[:, 0]
            if not len(rows):
                return features
            at = cache.read[rows] - first[rows]
            y = self.read_one(cache, rows)  # (R, L)
            features[rows[at >= 0], at[at >= 0]] = y[at >= 0]

    def read_one(self, cache: MegabyteCache, rows: Tensor) -> Tensor:
        """Takes in the next token of some rows -> features (R, L)."""
        position = cache.read[rows]
        begins = position % self.patch_size == 0
        if bool(begins.any()):
            starting = rows[begins]
            cache.begin_patches(starting)
            self.read_patch(cache, starting, position[begins] // self.patch_size)
        token = cache.tokens[rows, position]
        past = self.local_embedding(token)
        past = torch.where(
            begins[:, None], self.first_inputs(past, position // self.patch_size), past
        )
        a = cache.conditions[rows, position % self.patch_size] + past  # (R, L)
        angles = self.local_angles(position[:, None])
        features = self.local_model(
            a[:, None], angles, cache=cache.bytes, rows=cache.unless_all(rows)
        )
        cache.read = cache.read.index_add(0, rows, torch.ones_like(rows))
        return features[:, 0]

    def read_patch(self, cache: MegabyteCache, rows: Tensor, patches: Tensor) -> None:
        """One step of the global model, for rows at which patch number `patches` (R,) begins."""
        size = self.patch_size
        u = self.global_pad.expand(len(rows), -1)
        later = patches > 0
        if bool(later.any()):
            reach = 0 if self.convolutions is None else self.convolutions.reach
            steps = torch.arange(-reach, size, device=rows.device)
            positions = (
                patches[later, None] - 1
            ) * size + steps  # of the patch before, and its past
            tokens = cache.tokens[rows[later, None], (positions + 1).clamp(min=0)]
            e = self.embed_bytes(tokens, positions.clamp(min=0))
            e = e.masked_fill((positions < 0)[..., None], 0.0)
            u = u.to(e.dtype).index_copy(
                0, later.nonzero()[:, 0], self.convolve(e)[:, reach:].flatten(1)
            )
        o = self.global_model(
            u[:, None],
            self.global_angles(patches[:, None]),
            cache=cache.patches,
            rows=cache.unless_all(rows),
        )
        cache.conditions = cache.conditions.index_copy(
            0, rows, self.conditions(o[:, 0]).to(cache.conditions)
        )


Model = Megabyte
