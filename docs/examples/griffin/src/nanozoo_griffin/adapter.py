"""What Griffin asks beyond the default: its FLOPs, and a width that scales all widths."""

from __future__ import annotations

import torch
from torch import nn

from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.nn.accounting import recurrence_flops, window_flops
from nanozoo_griffin.config import GriffinConfig
from nanozoo_griffin.model import Griffin


class GriffinAdapter(DefaultModelAdapter):
    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """Gates are many small matrices in one tensor, which Muon would take for one: AdamW's."""
        roles = super().parameter_roles(model)
        return roles | {name: "vector" for name in roles if name.endswith("_gate.weight")}

    def flops_per_token(self, config: GriffinConfig, seq_len: int) -> float:
        """Training FLOPs per token: 6 per weight of a product, what windows reach, recurrences."""
        with torch.device("meta"):
            model = Griffin(config)
        weights = sum(p.numel() for p in model.parameters() if p.ndim in (2, 3))
        weights -= sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv1d))
        attention = window_flops(config.model_dim, seq_len, config.window)
        recurrence = recurrence_flops(config.recurrent_dim, conv_kernel=config.conv_kernel)
        num_recurrent = config.kinds.count("r")
        mixing = num_recurrent * recurrence + config.kinds.count("a") * attention
        return 6.0 * weights + mixing

    def at_width(self, model_cfg: GriffinConfig, factor: float) -> dict[str, object]:
        """Scales all three widths, to what heads and gates divide."""
        units = {
            "model_dim": 2 * model_cfg.num_heads,
            "recurrent_dim": model_cfg.num_gate_blocks,
            "mlp_dim": 8,
        }
        return {
            key: max(unit, round(factor * getattr(model_cfg, key) / unit) * unit)
            for key, unit in units.items()
        }


Adapter = GriffinAdapter
