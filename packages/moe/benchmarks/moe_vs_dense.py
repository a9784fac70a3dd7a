"""A training step of the mixture of experts beside one of the dense control of equal active width.

    python packages/moe/benchmarks/moe_vs_dense.py [--json FILE]

A step is forward, loss, backward, Muon and AdamW, and the bias. Muon's work follows the parameters
in total, not those in use, and not the batch: the column "passes" leaves the optimisers out. Both
models alternate in one process: CPU seconds of one thread, or wall seconds on a GPU.
"""

import dataclasses
import time
from typing import Any

import torch
from torch import nn

from nanozoo_core.config import OptimConfig, from_defaults, model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import autocast, device_name, resolve_dtype, synchronize
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.optim.build import build_optimizers
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.timing import begin, end, flags
from nanozoo_moe.adapter import MoEAdapter
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.model import MoE

TINY: dict[str, Any] = {"vocab_size": 4096, "num_layers": 4, "model_dim": 128, "num_heads": 4}
BASE: dict[str, Any] = {"vocab_size": 4096, "num_layers": 2, "model_dim": 768, "num_heads": 6}

# Model, windows, their length.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "tiny": (TINY, 16, 256),
    "tiny, bytes": (TINY | {"vocab_size": 258}, 16, 256),
    "tiny, 8 of 64": (TINY | {"preset": "moe_olmoe"}, 16, 256),
    "width 768, 3 of 16": (BASE | {"num_experts": 16, "top_k": 3}, 8, 512),
}
GPU_CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "124M, 3 of 16": (
        BASE | {"vocab_size": 50304, "num_layers": 12, "num_experts": 16, "top_k": 3},
        16,
        1024,
    ),
}


class Training:
    """One model with its optimisers, on random tokens."""

    def __init__(
        self, adapter: DefaultModelAdapter, model: nn.Module, windows: int, length: int
    ) -> None:
        self.adapter, self.model = adapter, model
        self.device = next(model.parameters()).device
        optim = from_defaults(OptimConfig)
        groups = adapter.optimizer_groups(model, optim)
        self.optimizers = build_optimizers(groups, optim, total_steps=1000, device=self.device)
        generator = torch.Generator().manual_seed(0)
        vocab_size = model.get_submodule("embedding").num_embeddings  # type: ignore[operator]
        tokens = torch.randint(vocab_size, (windows, length + 1), generator=generator)  # type: ignore[call-overload]
        self.batch = batch_of(tokens).to(self.device)
        self.number = 0

    def step(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the whole step."""
        started = self.now()
        step = Step(number=self.number, progress=self.number / 1000, seed=0)
        self.optimizers.set_schedule(step.number, step.progress)
        with autocast(self.device, resolve_dtype("auto", self.device)):
            loss = self.adapter.training_loss(self.model, self.batch, step).value
        loss.backward()
        passed = self.now()
        self.optimizers.clip(1.0)
        self.optimizers.step()
        self.optimizers.zero_grad()
        with torch.no_grad():
            self.adapter.after_step(self.model, step, self.optimizers.optimizers)
        self.number += 1
        return passed - started, self.now() - started

    def now(self) -> float:
        synchronize(self.device)
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()

    def steps(self, count: int) -> torch.Tensor:
        """Mean seconds of forward and backward, and of the whole step."""
        return torch.tensor([self.step() for _ in range(count)]).mean(0)


def compare(case: str, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Median seconds per step of each, and the ratio moe / dense: median and range."""
    settings, windows, length = (GPU_CASES if device.type == "cuda" else CASES)[case]
    config = model_config("moe", {"seq_len": length, **settings})
    torch.manual_seed(0)
    with device:
        mixture = MoE(config)
        dense = ControlModel(config)
    contestants = {
        "moe": Training(MoEAdapter(MoEConfig, MoE), mixture, windows, length),
        "dense": Training(DefaultModelAdapter(MoEConfig, ControlModel), dense, windows, length),
    }
    for training in contestants.values():
        training.steps(2)
    times = torch.stack(
        [torch.stack([t.steps(steps) for t in contestants.values()]) for _ in range(rounds)]
    )  # (rounds, contestants, 2)
    ratios = times[:, 0] / times[:, 1]
    medians = times.median(0).values
    return {
        "model_cfg": dataclasses.asdict(config),
        "tokens": windows * length,
        "active_width": config.expert_dim * (config.routed[1] + config.shared),
        "dense_width": config.mlp_dim,
        "moe_seconds": float(medians[0, 1]),
        "dense_seconds": float(medians[1, 1]),
        "ratio": float(ratios[:, 1].median()),
        "ratio_least": float(ratios[:, 1].min()),
        "ratio_most": float(ratios[:, 1].max()),
        "passes_ratio": float(ratios[:, 0].median()),
    }


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--steps", type=int, default=2, help="per round")
    parser.add_argument("--case", action="append", help="one of the cases; all by default")
    arguments = begin(parser)
    device = arguments.device
    names = arguments.case or list(GPU_CASES if device.type == "cuda" else CASES)
    print(f"{device_name(device)}, torch {torch.__version__}")
    head = f"{'active / dense width':>20} {'moe':>11} {'dense':>11} {'ratio':>18} {'passes':>7}"
    print(f"{'case':20} {head}")
    results = {}
    for name in names:
        row = results[name] = compare(name, device, arguments.rounds, arguments.steps)
        spread = f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
        widths = f"{row['active_width']} / {row['dense_width']}"
        milliseconds = [f"{row[f'{form}_seconds'] * 1e3:.1f} ms" for form in ("moe", "dense")]
        columns = f"{widths:>20} {milliseconds[0]:>11} {milliseconds[1]:>11} {spread:>18}"
        print(f"{name:20} {columns} {row['passes_ratio']:>7.2f}")
    end(arguments, results)


if __name__ == "__main__":
    main()
