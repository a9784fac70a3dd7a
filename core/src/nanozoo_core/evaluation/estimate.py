"""What a training keeps in memory, measured before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.contract import Batch, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.randomness import seeded_generator


class UnknownVocabulary:
    """Stands for a tokenizer that is not there yet: `size` tokens of one byte each, of which 0 is
    the separator. A model can be built for it."""

    name = "unknown"
    separator = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self.token_bytes = torch.ones(size, dtype=torch.int64)

    def encode(self, text: str | bytes) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [byte % self.size for byte in raw]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(token) for token in tokens)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return self.decode(tokens).encode()


def activation_bytes(
    adapter: DefaultModelAdapter,
    model: nn.Module,
    *,
    seq_len: int,
    lookahead: int,
    vocab_size: int,
    dtype: torch.dtype,
) -> int:
    """What the loss of one window keeps for its gradient, measured by computing it here.

    Args: model: with weights, on any device. dtype: of autocast.
    """
    generator = seeded_generator(0)
    shape = (1, seq_len + lookahead)
    device = next(model.parameters()).device
    batch = Batch(
        tokens=torch.randint(min(vocab_size, 256), shape, generator=generator),
        documents=torch.zeros(shape, dtype=torch.int64),
        rows=torch.arange(1),
        num_rows=1,
        lookahead=lookahead,
    ).to(device)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        adapter.training_loss(model, batch, Step(number=0, progress=0.0, seed=0))
    return sum(kept.values())
