"""What the parts of `ModelContract` ask of the whole, which has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nanozoo_core.contract import Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter


class ContractPart:
    """The base of a part."""

    seq_len: int

    def build(
        self, vocabulary: Vocabulary, seq_len: int | None = None, *, seed: int = 0, **changes: Any
    ) -> tuple[DefaultModelAdapter, nn.Module]:
        raise NotImplementedError

    def random_tokens(
        self,
        vocab_size: int,
        num_windows: int,
        seq_len: int | None = None,
        *,
        adapter: DefaultModelAdapter | None = None,
        config: Any = None,
        seed: int = 1,
    ) -> Tensor:
        raise NotImplementedError
