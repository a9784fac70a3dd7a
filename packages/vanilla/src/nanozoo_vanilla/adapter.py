"""Every form is a plain next-token model; some are a class in transformers too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nanozoo_core.contract import GGUFModel
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_vanilla.config import VanillaConfig
from nanozoo_vanilla.gguf import to_gguf
from nanozoo_vanilla.historical import Decoder
from nanozoo_vanilla.huggingface import to_hf
from nanozoo_vanilla.model import Control
from nanozoo_vanilla.pretrained import from_hf_config, from_hf_state_dict


class VanillaAdapter(DefaultModelAdapter):
    def make_model(self, config: VanillaConfig) -> Control | Decoder:
        """The control, or the historical form that another preset names."""
        return Control(config) if config.preset == "control" else Decoder(config)

    def to_hf(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For NanoChatForCausalLM or GPT2LMHeadModel. Raises: ConfigError for other forms."""
        return to_hf(model)

    def to_gguf(self, model: nn.Module) -> GGUFModel:
        """For gpt2, llama, arcee or qwen3 there. Raises: ConfigError for other forms."""
        return to_gguf(model)

    def config_from_hf(self, theirs: dict[str, Any]) -> VanillaConfig:
        """Of GPT-2, NanoChat, Llama or Arcee. Raises: CheckpointError for another model."""
        return from_hf_config(theirs)

    def weights_from_hf(
        self, theirs: dict[str, Tensor], config_json: dict[str, Any], config: VanillaConfig
    ) -> dict[str, Tensor]:
        return from_hf_state_dict(theirs, config_json["model_type"], config)


Adapter = VanillaAdapter
