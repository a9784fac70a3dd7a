"""GPT-2 is a plain next-token model; what it adds is a class in transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nanozoo_core.contract import GGUFModel
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.gguf_layouts import gpt2_gguf
from nanozoo_gpt2.config import GPT2Config
from nanozoo_gpt2.huggingface import (
    from_hf_config,
    from_hf_state_dict,
    to_hf_config,
    to_hf_state_dict,
)
from nanozoo_gpt2.model import GPT2


class GPT2Adapter(DefaultModelAdapter):
    def to_hf(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For GPT2LMHeadModel; padding rows of the vocabulary are left out."""
        assert isinstance(model, GPT2)
        return to_hf_config(model.config), to_hf_state_dict(model)

    def to_gguf(self, model: nn.Module) -> GGUFModel:
        """For llama.cpp's gpt2. Raises: ConfigError for the exact GELU."""
        return gpt2_gguf(*self.to_hf(model))

    def config_from_hf(self, theirs: dict[str, Any]) -> GPT2Config:
        """Of GPT2LMHeadModel's config.json. Raises: CheckpointError for another model."""
        return from_hf_config(theirs)

    def weights_from_hf(
        self, theirs: dict[str, Tensor], config_json: dict[str, Any], config: GPT2Config
    ) -> dict[str, Tensor]:
        return from_hf_state_dict(theirs)


Adapter = GPT2Adapter
