"""What the contract kit asks of a model's training step: that it counts what a committed table
says, in products, casts of weights, large blocks of memory and breaks of the compiled graph."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.testing import step_counts
from nanozoo_core.testing.contract_parts import ContractPart
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary
from nanozoo_core.training.parts import Part

# Sizes that no width of a tiny model has, so that no product is square by accident.
VOCAB_SIZE, NUM_WINDOWS = 77, 5
# All logits of this many tokens are larger than step_counts.LARGE_BYTES, in bfloat16 too.
WIDE_VOCAB_SIZE, WIDE_TOKENS = 4352, 4096


class CountsContract(ContractPart):
    """The part of `ModelContract` that holds a step to `step_counts.json` beside the test file."""

    def counted_step(
        self, vocab_size: int, seq_len: int, *, num_windows: int, num_parts: int
    ) -> tuple[DefaultModelAdapter, nn.Module, list[Part]]:
        """A fresh model, and a global batch of it in so many micro-batches of `num_windows`."""
        adapter, model = self.build(ToyVocabulary(vocab_size), seq_len)
        config: Any = model.config
        tokens = self.random_tokens(
            vocab_size, num_parts * num_windows, seq_len, adapter=adapter, config=config
        )
        batch = batch_of(tokens, lookahead=adapter.lookahead(config))
        parts: list[Part] = []
        for step in step_counts.micro_steps(num_parts):
            first = step.micro_step * num_windows
            parts.append((batch.take(slice(first, first + num_windows)), step))
        return adapter, model, parts

    def test_step_counts_are_those_of_the_table(self, request: pytest.FixtureRequest) -> None:
        """Of two micro-batches: FLOPs in float32, casts of weights under autocast. Of a batch whose
        logits are large: bytes of all blocks above 32 MiB that were allocated for a tensor."""
        length = 5 * self.seq_len // 2
        small = self.counted_step(VOCAB_SIZE, length, num_windows=NUM_WINDOWS, num_parts=2)
        cast = step_counts.watch_step(*small, torch.bfloat16)
        length = 4 * self.seq_len
        num_windows = math.ceil(WIDE_TOKENS / length)
        wide = self.counted_step(WIDE_VOCAB_SIZE, length, num_windows=num_windows, num_parts=1)
        exact = step_counts.watch_step(*wide, torch.float32)
        mixed = step_counts.watch_step(*wide, torch.bfloat16)
        counts = {
            "flops": step_counts.flops(*small),
            "weight_casts": cast.num_casts,
            "weights_cast_again": cast.cast_again,
            "large_bytes_float32": exact.large_bytes,
            "large_bytes_bfloat16": mixed.large_bytes,
        }
        places = [place for watch in (cast, exact, mixed) for place in watch.told_places()]
        step_counts.hold_to_table(request, counts, sorted(set(places)))

    @pytest.mark.slow
    def test_graph_breaks_are_those_of_the_table(self, request: pytest.FixtureRequest) -> None:
        """Of the compiled loss: each is a call back into Python, and an end of fusion."""
        length = 5 * self.seq_len // 2
        step = self.counted_step(VOCAB_SIZE, length, num_windows=NUM_WINDOWS, num_parts=1)
        number, reasons = step_counts.graph_breaks(*step)
        step_counts.hold_to_table(request, {"graph_breaks": number}, reasons)
