"""What MEGABYTE asks beyond the default: strided scores, a rate for each model, its own FLOPs, and
the loss at each place of a patch.

Shapes: B windows, T tokens, P bytes per patch, L local_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nanozoo_core.config import OptimConfig
from nanozoo_core.contract import Batch, Curves, Inspection, Vocabulary
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.likelihood import in_bits
from nanozoo_core.machine.device import require_gpu
from nanozoo_core.optim.groups import ParameterGroup, make_groups
from nanozoo_megabyte.config import MegabyteConfig
from nanozoo_megabyte.model import CONV_KERNELS, Megabyte

GLOBAL_PARTS = ("global_", "position", "convolutions")


class MegabyteAdapter(DefaultModelAdapter):
    family = "bytes"

    def prepare_model(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Raises: ConfigError when the kernel is asked for and cannot run."""
        assert isinstance(model, Megabyte)
        if model.config.local_backend == "triton":
            require_gpu("model_cfg.local_backend=triton", model)

    # -- score ----------------------------------------------------------------------------------

    def token_nats(self, model: nn.Module, batch: Batch) -> Tensor:
        """Exact; with eval_strided each token's from the pass in which it stands in the first half
        of its patch."""
        assert isinstance(model, Megabyte)
        nll = super().token_nats(model, batch)
        return self._strided_nats(model, batch, nll) if model.config.eval_strided else nll

    def _strided_nats(self, model: Megabyte, batch: Batch, nll: Tensor) -> Tensor:
        """Replaces the nats of the second half of every patch by those of a second pass over the
        window without its first half patch. Both passes see nothing but the past of a token."""
        size, length = model.patch_size, nll.shape[1]
        half = -(-size // 2)
        if length <= half:
            return nll
        later = replace(
            batch,
            tokens=batch.tokens[:, half:],
            documents=batch.documents[:, half:],
            scored=None if batch.scored is None else batch.scored[:, half:],
        )
        shifted = torch.cat([nll[:, :half], super().token_nats(model, later)], dim=1)
        is_late = torch.arange(length, device=nll.device) % size >= half
        return torch.where(is_late, shifted, nll)

    # -- optimisation ---------------------------------------------------------------------------

    def optimizer_groups(self, model: nn.Module, optim: OptimConfig) -> list[ParameterGroup]:
        """Each of the two models has its own multiple of the rates."""
        assert isinstance(model, Megabyte)
        of_local, of_global = model.config.lr_multipliers
        multipliers = {
            name: of_global if name.startswith(GLOBAL_PARTS) else of_local
            for name, _ in model.named_parameters()
        }
        return make_groups(model, self.parameter_roles(model), optim, lr_multipliers=multipliers)

    # -- accounting -----------------------------------------------------------------------------

    def flops_per_token(self, config: MegabyteConfig, seq_len: int) -> float:
        """Training FLOPs per byte: 6 per weight that multiplies it, those of the global model
        divided by P, and attention as full squares."""
        with torch.device("meta"):
            model = Megabyte(config)
        size, width, byte_dim = model.patch_size, config.global_dim, model.to_local.in_features

        def weights(stack: nn.Module) -> int:
            return sum(p.numel() for p in stack.parameters())

        products = weights(model.global_model) / size
        products += weights(model.local_model) + weights(model.to_local) + weights(model.head)
        if model.convolutions is not None:
            products += sum(CONV_KERNELS) * byte_dim**2
        keys = size + config.cross_patch
        attention = float(config.size("num_local_layers") * config.size("local_dim") * keys)
        attention += config.size("num_global_layers") * width * math.ceil(seq_len / size) / size
        return 6.0 * products + 12.0 * attention

    def report(self, model: nn.Module) -> dict[str, float]:
        """Adds the parameters of each model."""
        counts = super().report(model)
        for name, parameter in model.named_parameters():
            key = "params_global" if name.startswith(GLOBAL_PARTS) else "params_local"
            counts[key] = counts.get(key, 0) + parameter.numel()
        return counts

    def at_width(self, model_cfg: MegabyteConfig, factor: float) -> dict[str, object]:
        """Scales both widths, to the nearest that the heads divide in pairs of channels."""
        size, heads = model_cfg.size("patch_size"), model_cfg.size("num_global_heads")
        units = {
            "global_byte_dim": 2 * heads // math.gcd(2 * heads, size),
            "local_dim": 2 * model_cfg.size("num_local_heads"),
        }
        return {
            key: max(unit, round(factor * model_cfg.size(key) / unit) * unit)
            for key, unit in units.items()
        }

    def at_depth(self, model_cfg: MegabyteConfig, num_layers: int) -> dict[str, object]:
        """As many layers over patches as a plain decoder has, and within them as many as keep the
        ratio of the two."""
        own = model_cfg.size("num_local_layers") / model_cfg.size("num_global_layers")
        return {
            "num_global_layers": num_layers,
            "num_local_layers": max(1, round(own * num_layers)),
        }

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """The loss at each place of a patch: a shift in the wrong place shows at once, and late in
        training the last bytes are the dear ones."""
        assert isinstance(model, Megabyte)
        size = model.patch_size
        totals, counts = torch.zeros(2, size, dtype=torch.float64)
        for batch in batches:
            nll = super().token_nats(model, batch).cpu()
            scored = torch.ones_like(nll) if batch.scored is None else batch.scored.cpu().double()
            places = (torch.arange(nll.shape[1]) % size).expand(nll.shape)
            totals.index_add_(0, places.flatten(), nll.flatten())
            counts.index_add_(0, places.flatten(), scored.flatten())
        bits = in_bits(totals / counts.clamp(min=1)).tolist()
        curve = Curves(
            title="loss by place in the patch",
            x_label="byte of the patch",
            y_label="bits per token",
            series={"all patches": [(float(p), value) for p, value in enumerate(bits)]},
        )
        metrics = {"bits_first_in_patch": bits[0], "bits_last_in_patch": bits[-1]}
        return Inspection(metrics, (curve,))


Adapter = MegabyteAdapter
