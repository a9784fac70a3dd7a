"""mod against the control of equal shape: ratio of time beside ratio of FLOPs.

    python packages/mod/benchmarks/mod_vs_control.py [--json FILE]

A step is the forward and backward pass of the whole loss, without the optimiser; the score is that
of validation, with thresholds that meet the capacity, computing the chosen tokens (gather) or all
(masked). All alternate in one process: CPU seconds of one thread, or wall seconds on a GPU
(bfloat16 there).
"""

from typing import Any

import torch
from torch import nn

from nanozoo_core.config import model_config
from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import autocast, device_name
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.timing import Run, begin, end, flags, take_turns
from nanozoo_mod.adapter import MoDAdapter
from nanozoo_mod.config import MoDConfig
from nanozoo_mod.model import MoD

TINY = {"vocab_size": 4096, "seq_len": 256, "num_layers": 4, "model_dim": 128, "num_heads": 4}
WIDE = {"vocab_size": 4096, "seq_len": 512, "num_layers": 4, "model_dim": 512, "num_heads": 8}
LARGE = {"vocab_size": 50304, "seq_len": 1024, "num_layers": 12, "model_dim": 768, "num_heads": 6}
# Settings of mod, layers of the control, windows in a batch.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "tiny, capacity 1/4": (TINY | {"capacity": 0.25}, 4, 16),
    "tiny, capacity 1/8": (TINY | {"capacity": 0.125}, 4, 16),
    "tiny, 6 layers to 4": (TINY | {"capacity": 0.25, "num_layers": 6}, 4, 16),
    "wide, capacity 1/4": (WIDE | {"capacity": 0.25}, 4, 2),
    "wide, capacity 1/8": (WIDE | {"capacity": 0.125}, 4, 2),
}
GPU_CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "large, capacity 1/8": (LARGE | {"capacity": 0.125, "predictor_dim": 128}, 12, 16),
    "large, 20 layers to 12": (
        LARGE | {"capacity": 0.125, "predictor_dim": 128, "num_layers": 20},
        12,
        16,
    ),
}
ADAPTER = MoDAdapter(MoDConfig, MoD)
PLAIN = DefaultModelAdapter(MoDConfig, ControlModel)
RATIOS = {
    "step": ("mod step", "control step"),
    "score": ("mod score", "control score"),
    "gather": ("mod score", "masked score"),
}


def tasks(settings: dict[str, Any], control_layers: int, batch: Batch) -> dict[str, Run]:
    """What is timed, by name."""
    torch.manual_seed(0)
    device = batch.tokens.device
    control = ControlModel(model_config("mod", settings | {"num_layers": control_layers})).to(
        device
    )
    calibrated = settings | {"predictor_threshold": "calibrated"}
    model = MoD(model_config("mod", calibrated)).to(device)
    masked = MoD(model_config("mod", calibrated | {"routed_impl": "masked"})).to(device).eval()
    masked.load_state_dict(model.state_dict())
    for each in (model, masked):
        ADAPTER.finalize(each.eval(), [batch])

    def step(adapter: DefaultModelAdapter, model: nn.Module) -> None:
        model.train()
        with autocast(device, dtype):
            loss = adapter.training_loss(model, batch, Step(0, 0.0, 0)).value
        loss.backward()
        model.zero_grad()

    def score(adapter: DefaultModelAdapter, model: nn.Module) -> None:
        with torch.no_grad(), autocast(device, dtype):
            adapter.nll(model.eval(), batch, Draw(0))

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "control step": lambda: step(PLAIN, control),
        "mod step": lambda: step(ADAPTER, model),
        "control score": lambda: score(PLAIN, control),
        "mod score": lambda: score(ADAPTER, model),
        "masked score": lambda: score(ADAPTER, masked),
    }


def flops_ratio(settings: dict[str, Any], control_layers: int) -> float:
    plain = {key: value for key, value in settings.items() if key != "predictor_dim"}
    plain |= {"capacity": 1.0, "router_gate": "one", "num_layers": control_layers}
    ours, theirs = (model_config("mod", each) for each in (settings, plain))
    length = settings["seq_len"]
    return ADAPTER.flops_per_token(ours, length) / ADAPTER.flops_per_token(theirs, length)


def main() -> None:
    arguments = begin(flags(__doc__, rounds=7))
    device = arguments.device
    results: dict[str, dict[str, float]] = {}
    print(f"{device_name(device)}, torch {torch.__version__}; medians, and the range of rounds")
    print(f"{'case':24}{'FLOPs':>6}{'step':>22}{'score':>22}{'gather / masked':>22}")
    cases = GPU_CASES if device.type == "cuda" else CASES
    for name, (settings, control_layers, windows) in cases.items():
        tokens = torch.randint(4096, (windows, settings["seq_len"] + 1), device=device)
        batch = batch_of(tokens)
        timed = tasks(settings, control_layers, batch)
        times = take_turns(timed, device, rounds=arguments.rounds, repeats=3)
        row = {f"{label} seconds": times.median(label) for label in timed}
        row["flops"] = flops_ratio(settings, control_layers)
        cells = ""
        for ratio, (ours, theirs) in RATIOS.items():
            spread = times.speed(theirs, than=ours)  # their speed is the ratio of times
            row[ratio] = spread.median
            row[f"{ratio} least"], row[f"{ratio} most"] = spread.least, spread.most
            cells += f"{spread!s:>22}"
        results[name] = row
        print(f"{name:24}{row['flops']:6.2f}{cells}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
