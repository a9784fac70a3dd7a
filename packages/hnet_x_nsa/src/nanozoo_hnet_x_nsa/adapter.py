"""What the combination asks beyond hnet: nsa's roles, a length curriculum, and pictures of what is
read: the gates, the keys per byte, and the score by place in the window.

Shapes: B windows, T tokens, H query heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanozoo_core.config import TrainingConfig
from nanozoo_core.contract import (
    Batch,
    Curves,
    DataPlan,
    DataStage,
    Inspection,
    Vocabulary,
)
from nanozoo_core.likelihood import in_bits
from nanozoo_core.machine.precision import in_float64
from nanozoo_hnet.adapter import HNetAdapter
from nanozoo_hnet.boundaries import Agreement
from nanozoo_hnet.routing import Routing
from nanozoo_hnet_x_nsa.config import HNetXNSAConfig
from nanozoo_hnet_x_nsa.mixers import SparseAttention
from nanozoo_hnet_x_nsa.model import HNetXNSA
from nanozoo_hnet_x_nsa.pooling import ChunkPool
from nanozoo_nsa.config import Grid
from nanozoo_nsa.mixer import Routing as Reads
from nanozoo_nsa.mixer import nsa_roles

BRANCHES = ("compressed", "selected", "window")
BUCKETS = (1024, 4096, 16384, 65536)  # ends of the stretches by which the score is told apart
LONG_SHARE = 0.8  # of the run that ctx_warmup keeps short


class HNetXNSAAdapter(HNetAdapter):
    cache_lengths = (4096, 8192)  # beyond all windows, in whole blocks

    def data_plan(self, config: HNetXNSAConfig, training: TrainingConfig) -> DataPlan:
        """With ctx_warmup short windows first."""
        tokens, length = training.train.batch_tokens, training.data.seq_len
        if config.ctx_warmup is None:
            return super().data_plan(config, training)
        short = DataStage(0.0, tokens, config.ctx_warmup)
        return DataPlan((short, DataStage(LONG_SHARE, tokens, length)))

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        """hnet's and nsa's; positions within the window of pooling are AdamW's, without decay."""
        roles = super().parameter_roles(model) | nsa_roles(model)
        for path, module in model.named_modules():
            if isinstance(module, ChunkPool):
                roles[f"{path}.positions"] = "vector"
        return roles

    # -- inspection -----------------------------------------------------------------------------

    @torch.no_grad()
    def inspect(
        self, model: nn.Module, batches: Sequence[Batch], vocabulary: Vocabulary
    ) -> Inspection:
        """Bits per token by stretch of the window, mean gates, keys read per byte beside those that
        full attention would read, and how well chunks agree with words."""
        assert isinstance(model, HNetXNSA)
        gates = {name: torch.zeros(3, dtype=torch.float64) for name in model.mixers()}
        seen = dict.fromkeys(gates, 0)

        def watch(name: str, reads: Reads) -> None:
            gates[name] += in_float64(reads.gates).sum((0, 1, 2)).cpu()
            seen[name] += reads.gates[..., 0].numel()

        nats, counts = torch.zeros(2, len(BUCKETS), dtype=torch.float64)
        keys, full, num_bytes = 0.0, 0.0, 0
        agreement = Agreement()
        for name, mixer in model.mixers().items():
            mixer.watcher = lambda reads, name=name: watch(name, reads)
        try:
            for batch in batches:
                documents = batch.documents[:, : -batch.lookahead]
                features, routings = model.encode(batch.inputs, documents)
                losses = self._cross_entropy(model, batch, "none", features).cpu().double()
                scored = torch.ones_like(losses) if batch.scored is None else batch.scored.cpu()
                places = torch.arange(losses.shape[1]).repeat(len(losses))
                stretch = torch.bucketize(places, torch.tensor(BUCKETS), right=True)
                stretch = stretch.clamp(max=len(BUCKETS) - 1)
                nats.index_add_(0, stretch, losses.flatten())
                counts.index_add_(0, stretch, scored.double().flatten())
                agreement.add(batch.inputs, routings)
                read = _keys_read(model, batch.inputs, routings)
                keys, full = keys + read[0], full + read[1]
                num_bytes += batch.inputs.numel()
        finally:
            for mixer in model.mixers().values():
                mixer.watcher = None
        metrics = {}
        curve = []
        for start, end, nat, count in zip((0, *BUCKETS), BUCKETS, nats, counts, strict=False):
            if count > 0:
                bits = float(in_bits(nat / count))
                metrics[f"bits_{start}_{end}"] = bits
                curve.append((float(end), bits))
        metrics |= {"keys_per_byte": keys / num_bytes, "full_keys_per_byte": full / num_bytes}
        for name, total in gates.items():
            for branch, mean in zip(BRANCHES, (total / max(seen[name], 1)).tolist(), strict=True):
                metrics[f"{layer_name(name)}_gate_{branch}"] = mean
        metrics |= agreement.metrics()
        picture = Curves(
            "score by place in the window", "up to byte", "bits per token", {"all windows": curve}
        )
        return Inspection(metrics, (picture,))


def keys_of(positions: Tensor, grid: Grid, window: int) -> Tensor:
    """Keys that each position (...) of a stage reads per key head: complete compressed blocks, the
    chosen blocks up to its own place, and the window."""
    compressed = ((positions + 1 - grid.window).div(grid.stride, rounding_mode="floor") + 1).clamp(
        min=0
    )
    own = positions % grid.block + 1
    chosen = (positions // grid.block).clamp(max=grid.num_selected - 1) * grid.block + own
    return compressed + chosen + (positions + 1).clamp(max=window)


def _keys_read(model: HNetXNSA, tokens: Tensor, routings: list[Routing]) -> tuple[float, float]:
    """Keys that all n layers read of a batch, and what full attention would, per key head."""
    lengths = torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)
    keys = full = 0.0
    for stage, routing in zip(model.stages(), [*routings, None], strict=True):
        for network in stage.networks():
            for block in network.each_block():
                if isinstance(block.mixer, SparseAttention):
                    positions = torch.cat(
                        [torch.arange(n, device=tokens.device) for n in lengths.tolist()]
                    )
                    mixer = block.mixer
                    keys += float(keys_of(positions, mixer.grid, mixer.window_size).sum())
                    full += float((positions + 1).sum())
        if routing is not None:
            lengths = routing.boundaries.sum(1)
    return keys, full


def layer_name(name: str) -> str:
    """`stage.inner.network.blocks.0.mixer` as `stage1_main_0`."""
    parts = name.split(".")
    depth = parts.count("inner")
    network = next(part for part in parts if part in ("encoder", "decoder", "network"))
    return f"stage{depth}_{'main' if network == 'network' else network}_{parts[-2]}"


Adapter = HNetXNSAAdapter
