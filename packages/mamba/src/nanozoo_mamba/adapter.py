"""What Mamba asks of training beyond the default: the groups of its parameters, documents kept
apart where asked, and what a scan costs.

Shapes: B batch, T sequence, D model_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import OptimConfig
from nanozoo_core.contract import Batch, GGUFModel, Loss, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import require_gpu
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.optim.groups import Own, ParameterGroup, default_roles, make_groups
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.gguf import to_gguf
from nanozoo_mamba.huggingface import (
    from_authors_config,
    from_hf_config,
    from_hf_state_dict,
    to_hf_config,
    to_hf_state_dict,
)
from nanozoo_mamba.model import Mamba

# AdamW's by what they are, not by their shape, and with decay like the matrices.
DECAYING_VECTORS = ("conv.weight", "x_proj.weight", "dt_proj.weight")


class MambaAdapter(DefaultModelAdapter):
    family = "recurrence"

    def prepare_model(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Raises: ConfigError when kernels are asked for that cannot run."""
        assert isinstance(model, Mamba)
        if model.config.scan_backend == "triton":
            require_gpu("model_cfg.scan_backend=triton", model)

    # -- loss and score -------------------------------------------------------------------------

    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """Mean next-token cross-entropy; with reset_at_documents each document starts afresh."""
        return Loss(self._cross_entropy(model, batch, "mean", self._features(model, batch)))

    def token_nats(self, model: nn.Module, batch: Batch) -> Tensor:
        """Exact; the state before a window is zero."""
        features = self._features(model, batch)
        return in_float64(self._cross_entropy(model, batch, "none", features))  # (B, T)

    @staticmethod
    def _features(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Mamba)
        documents = None
        if model.config.reset_at_documents:
            documents = batch.documents[:, : -batch.lookahead].long()
        return model.features(batch.inputs, documents=documents)

    # -- optimisation ---------------------------------------------------------------------------

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """Muon takes the projections into and out of the mixers, and MLPs. What sets the scan (A,
        step sizes, b and c) is AdamW's, whatever its shape."""
        assert isinstance(model, Mamba)
        own = ("A_log", *DECAYING_VECTORS)
        roles = default_roles(model)
        return roles | {name: "vector" for name in roles if name.endswith(own)}

    def optimizer_groups(self, model: nn.Module, optim: OptimConfig) -> list[ParameterGroup]:
        """Of AdamW's parameters in the mixers, only projections and filters decay."""
        own = {
            name: Own(decay_mult=1.0)
            for name, _ in model.named_parameters()
            if name.endswith(DECAYING_VECTORS)
        }
        return make_groups(model, self.parameter_roles(model), optim, own=own)

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: MambaConfig, seq_len: int) -> float:
        """Training FLOPs per token: 6 per weight of a projection and of the output, and three times
        a forward pass of convolutions and scans."""
        with torch.device("meta"):
            model = Mamba(config)
        length = torch.tensor(float(seq_len))
        weights = sum(
            module.weight.numel() for block in model.each_block() for module in block.modules()
            if isinstance(module, nn.Linear)
        )  # fmt: skip
        scans = sum(float(block.mixer.flops(length)) for block in model.each_block())
        return 6.0 * (weights + model.output_weight.numel()) + 3 * scans

    def at_width(self, model_cfg: MambaConfig, factor: float) -> dict[str, object]:
        """Scales the width, with mamba2 to what its heads divide."""
        unit = 8
        if model_cfg.variant == "mamba2":
            head_dim = model_cfg.heads.head_dim
            unit = head_dim // math.gcd(head_dim, model_cfg.expand)
        return {"model_dim": max(unit, round(factor * model_cfg.shape.model_dim / unit) * unit)}

    def to_hf(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For MambaForCausalLM or Mamba2ForCausalLM. Raises: CheckpointError for MLPs, which they
        have not."""
        assert isinstance(model, Mamba)
        return to_hf_config(model.config), to_hf_state_dict(model)

    def to_gguf(self, model: nn.Module) -> GGUFModel:
        """For llama.cpp's mamba or mamba2. Raises: ConfigError for settings that they lack."""
        assert isinstance(model, Mamba)
        return to_gguf(model)

    def config_from_hf(self, theirs: dict[str, Any]) -> MambaConfig:
        """Of transformers' config.json or of the authors' own. Raises: CheckpointError."""
        return from_hf_config(from_authors_config(theirs) if "d_model" in theirs else theirs)

    def weights_from_hf(
        self, theirs: dict[str, Tensor], config_json: dict[str, Any], config: MambaConfig
    ) -> dict[str, Tensor]:
        return from_hf_state_dict(theirs, config.variant)


Adapter = MambaAdapter
