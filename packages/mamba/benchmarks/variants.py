"""A training step of Mamba-2 beside Mamba-1 of the same shape: ratio of speed.

    python packages/mamba/benchmarks/variants.py [--json FILE]

A step is loss, gradients, AdamW(fused=True) and zero_grad, in float32 (bfloat16 on a GPU). Both
alternate in one process: CPU seconds of one thread, or wall seconds on a GPU.
"""

from typing import Any

import torch

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.machine.device import autocast, device_name
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.timing import Run, begin, end, flags, take_turns
from nanozoo_mamba.adapter import MambaAdapter
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.model import Mamba

TINY = {"vocab_size": 4096, "seq_len": 256}
WIDE = {"vocab_size": 4096, "seq_len": 512, "num_layers": 2, "model_dim": 768}
LARGE = {"vocab_size": 50257, "seq_len": 1024, "preset": "130m"}
# Settings of both, settings of Mamba-2, windows in a batch. The recipes give Mamba-2 the larger
# state, which costs its products little and a scan as much again for each doubling.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tiny, 16 states": (TINY | {"d_state": 16}, {}, 16),
    "tiny, 64 states": (TINY | {"d_state": 64}, {}, 16),
    "tiny, 16 and 64": (TINY, {}, 16),
    "wide, 16 and 128": (WIDE, {"d_state": 128, "head_dim": 64, "chunk_size": 64}, 1),
}
GPU_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {"130m": (LARGE, {}, 16)}
ADAPTER = MambaAdapter(MambaConfig, Mamba)


def training_step(config: MambaConfig, num_windows: int, device: torch.device) -> Run:
    torch.manual_seed(0)
    assert config.vocab_size is not None
    assert config.seq_len is not None
    model = Mamba(config).to(device)
    tokens = torch.randint(config.vocab_size, (num_windows, config.seq_len + 1), device=device)
    batch, where = batch_of(tokens), Step(0, 0.0, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def step() -> None:
        with autocast(device, dtype):
            loss = ADAPTER.training_loss(model, batch, where).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    arguments = begin(flags(__doc__))
    device = arguments.device
    results = {}
    print(f"{device_name(device)}, torch {torch.__version__}")
    print(f"{'shape':20}{'mamba1 tok/s':>14}{'mamba2 tok/s':>14}{'ratio':>8}   range")
    for name, (shared, second, num_windows) in (
        GPU_CASES if device.type == "cuda" else CASES
    ).items():
        configs = {
            "mamba1": model_config("mamba", shared),
            "mamba2": model_config("mamba", shared | {"variant": "mamba2"} | second),
        }
        steps = {key: training_step(c, num_windows, device) for key, c in configs.items()}
        times = take_turns(steps, device, rounds=arguments.rounds, repeats=2)
        speed = times.speed("mamba2", than="mamba1")
        num_tokens = num_windows * shared["seq_len"]
        row = {key: num_tokens / times.median(key) for key in steps}
        row |= {"ratio": speed.median, "least": speed.least, "most": speed.most}
        results[name] = row
        print(
            f"{name:20}{row['mamba1']:>14,.0f}{row['mamba2']:>14,.0f}{row['ratio']:>8.2f}   "
            f"{row['least']:.2f} .. {row['most']:.2f}",
            flush=True,
        )
    end(arguments, results)


if __name__ == "__main__":
    main()
