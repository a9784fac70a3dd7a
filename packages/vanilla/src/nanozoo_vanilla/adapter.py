"""Every form is a plain next-token model; some are a class in transformers too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_vanilla.config import VanillaConfig
from nanozoo_vanilla.historical import Decoder
from nanozoo_vanilla.huggingface import to_hf
from nanozoo_vanilla.model import Control


class VanillaAdapter(DefaultModelAdapter):
    def make_model(self, config: VanillaConfig) -> Control | Decoder:
        """The control, or the historical form that another preset names."""
        return Control(config) if config.preset == "control" else Decoder(config)

    def to_hf(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For NanoChatForCausalLM or GPT2LMHeadModel. Raises: ConfigError for other forms."""
        return to_hf(model)


Adapter = VanillaAdapter
