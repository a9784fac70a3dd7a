"""Time and memory of NSA's attention against the length of the text, beside full causal attention.

    python packages/nsa/benchmarks/length.py [--longest 65536] [--json FILE]

One attention layer with its projections, forward and backward, one sequence; float32 on a CPU: CPU
seconds of one thread, and the peak memory of a process of its own for each case less that before.
Both have 4 heads of 64 over one key head; NSA has blocks of 32 every 16, 8 blocks of 64 and a
window of 256. `keys` is how many a position reads on average.
"""

import argparse
import json
import statistics

import torch
from torch import Tensor, nn

from nanozoo_core.config import model_config
from nanozoo_core.machine.device import device_name, peak_memory_bytes
from nanozoo_core.nn.control import ControlAttention
from nanozoo_core.nn.rotary import rotary_angles
from nanozoo_core.testing.timing import begin, end, flags, in_own_process, seconds
from nanozoo_nsa.mixer import NSAMixer

LENGTHS = [2**n for n in range(8, 17)]
FORMS = ("full", "nsa")
CONFIG = model_config(
    "nsa",
    {
        "seq_len": LENGTHS[-1],
        "model_dim": 256,
        "num_heads": 4,
        "num_kv_heads": 1,
        "compress_block_size": 32,
        "compress_stride": 16,
        "selection_block_size": 64,
        "num_selected_blocks": 8,
        "sliding_window_size": 256,
    },
)


class Full(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = ControlAttention(256, 4, num_kv_heads=1)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        return self.attention(x, rotary_angles(positions, self.attention.head_dim))


def keys_read(form: str, length: int) -> float:
    """Mean over positions; blocks and windows cut off by the start of the text."""
    if form == "full":
        return (length + 1) / 2
    t = torch.arange(1, length + 1).double()
    grid = CONFIG.grid
    compressed = ((t - grid.window) / grid.stride + 1).floor().clamp(min=0)
    own = (t - 1) % grid.block + 1
    others = ((t - 1) / grid.block).floor().clamp(max=grid.num_selected - 1) * grid.block
    window = t.clamp(max=float(CONFIG.sliding_window_size))
    return float((compressed + own + others + window).mean())


def measure(form: str, length: int, device: torch.device, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    layer = (NSAMixer(CONFIG) if form == "nsa" else Full()).to(device)
    nn.init.normal_((layer.out_proj if form == "nsa" else layer.attention.out).weight, std=0.02)
    x = torch.randn(1, length, 256, device=device, requires_grad=True)
    on_gpu = device.type == "cuda"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            y = layer(x)
        y.float().square().mean().backward()

    before = 0 if on_gpu else peak_memory_bytes(device)
    times = [seconds(step, device)]
    peak = peak_memory_bytes(device)
    if times[0] < 10:
        times = [seconds(step, device) for _ in range(rounds)]
    return {"seconds": statistics.median(times), "bytes": peak - before}


def main() -> None:
    parser = flags(__doc__, rounds=3)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--one", nargs=2, metavar=("FORM", "LENGTH"), help=argparse.SUPPRESS)
    arguments = begin(parser)
    device = arguments.device
    if arguments.one:
        form, length = arguments.one
        print(json.dumps(measure(form, int(length), device, arguments.rounds)))
        return
    print(f"{device_name(device)}, torch {torch.__version__}")
    head = ("length", "full s", "nsa s", "ratio", "full MB", "nsa MB", "full keys", "nsa keys")
    print("".join(f"{word:>11}" for word in head))
    results = {}
    for length in (n for n in LENGTHS if n <= arguments.longest):
        row = {}
        for form in FORMS:
            words = ("--rounds", arguments.rounds, "--one", form, length)
            row[form] = in_own_process(__file__, arguments, *words)
            row[form]["keys"] = keys_read(form, length)
        results[length] = row
        full, nsa = row["full"], row["nsa"]
        print(
            f"{length:11}{full['seconds']:11.3f}{nsa['seconds']:11.3f}"
            f"{full['seconds'] / nsa['seconds']:11.2f}{full['bytes'] / 1e6:11.0f}"
            f"{nsa['bytes'] / 1e6:11.0f}{full['keys']:11.0f}{nsa['keys']:11.0f}",
            flush=True,
        )
    end(arguments, results)


if __name__ == "__main__":
    main()
