from __future__ import annotations

import torch
from torch import nn

from nanozoo_core.contract import Batch, Loss, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.evaluation import estimate


class Square(nn.Module):
    """Keeps its input's embedding (B, T, 8) for the square's gradient, and the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(256, 8))


class SquareAdapter(DefaultModelAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        assert isinstance(model, Square)
        rows = model.table[batch.inputs]
        return Loss((rows * rows).sum())


def test_activations_are_what_the_gradient_needs() -> None:
    adapter = SquareAdapter(object, Square)
    kept = estimate.activation_bytes(
        adapter, Square(), seq_len=16, lookahead=1, vocab_size=256, dtype=torch.float32
    )
    # The rows in float32, once although used twice, and the batch's 17 indices.
    assert kept == 16 * 8 * 4 + 17 * 8
