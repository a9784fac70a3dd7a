"""A training step's time and memory against the length of the window, beside hnet.

    python packages/hnet_x_nsa/benchmarks/long_sequences.py [--lengths 1024 65536] [--json FILE]

One window of random bytes, chunks of six bytes each (so that all models have the same number of
them), forward and backward pass without optimiser. Every measurement is a process of its own, and
the models take turns: CPU seconds of one thread and the peak of resident memory above that before
the step, or on a GPU wall seconds and the peak that torch allocates.
"""

import argparse
import json
import statistics
from typing import Any

import torch

from nanozoo_core.config import model_config
from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.machine.device import autocast, device_name, peak_memory_bytes, resolve_dtype
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.timing import begin, end, flags, in_own_process, seconds
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary

CHUNKS = {"chunking": "fixed", "target_ratio": 6.0}
# The blocks of the preset, which suit long windows; those of the tiny model suit 1024 bytes.
BLOCKS = {
    "compress_block_size": 16,
    "compress_stride": 8,
    "selection_block_size": 32,
    "num_selected_blocks": 8,
    "sliding_window_size": 128,
    "local_blocks": 2,
}
# Name -> package and settings.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hnet": ("hnet", CHUNKS),
    "hnet_x_nsa": ("hnet_x_nsa", CHUNKS | {"nsa_cfg": BLOCKS}),
    "ladder": (
        "hnet_x_nsa",
        {
            "num_inner_layers": 2,
            "num_ladder_levels": 1,
            "ladder_size": 6,
            "window_size": 127,
            "nsa_cfg": BLOCKS,
        },
    ),
}
GPU_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hnet": ("hnet", CHUNKS | {"preset": "hnet_small"}),
    "hnet_x_nsa": ("hnet_x_nsa", CHUNKS | {"preset": "hnet_x_nsa_small"}),
}
LENGTHS = [1024, 4096, 16384, 65536]


def measure(model_name: str, length: int, device: torch.device, steps: int) -> dict[str, float]:
    """Median seconds of a step, peak bytes above those before, and what decoding keeps."""
    package, settings = (GPU_MODELS if device.type == "cuda" else MODELS)[model_name]
    config = model_config(package, settings, seq_len=length, vocab_size=258)
    adapter = load_adapter(package)
    torch.manual_seed(0)
    with device:
        model = adapter.build(config, ToyVocabulary(258))
    generator = torch.Generator().manual_seed(1)
    batch = batch_of(torch.randint(258, (1, length + 1), generator=generator)).to(device)

    def step() -> None:
        with autocast(device, resolve_dtype("auto", device)):
            loss = adapter.training_loss(model, batch, Step(0, 0.0, 0)).value
        loss.backward()

    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else peak_memory_bytes(device)
    times = []
    for _ in range(1 + steps):
        times.append(seconds(step, device))
        model.zero_grad(set_to_none=True)
    peak = peak_memory_bytes(device)
    report = adapter.report(model)
    state = report["cache_bytes_per_token"] * length + report["state_bytes"]
    return {
        "seconds": statistics.median(times[1:]),
        "peak_bytes": peak - before,
        "decoding_bytes": state,
        "parameters": report["params"],
    }


def compare(length: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians over rounds of each model, and its speed relative to the first of its round."""
    rounds = [
        {
            model: in_own_process(
                __file__, arguments, "--steps", arguments.steps, "--measure", model, length
            )
            for model in arguments.models
        }
        for _ in range(arguments.rounds)
    ]
    first = arguments.models[0]
    results = {}
    for model in arguments.models:
        rows = [row[model] for row in rounds]
        results[model] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        ratios = [row[first]["seconds"] / row[model]["seconds"] for row in rounds]
        results[model]["speed"] = statistics.median(ratios)
    return results


def main() -> None:
    parser = flags(__doc__, rounds=3)
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument(
        "--models", nargs="*", help="by default all; speeds are relative to the first"
    )
    parser.add_argument("--steps", type=int, default=2, help="per round, after one to warm up")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "LENGTH"), help=argparse.SUPPRESS)
    arguments = begin(parser)
    device = arguments.device
    if arguments.measure:
        model, length = arguments.measure
        print(json.dumps(measure(model, int(length), device, arguments.steps)))
        return
    arguments.models = arguments.models or list(GPU_MODELS if device.type == "cuda" else MODELS)
    print(f"{device_name(device)}, torch {torch.__version__}")
    head = f"{'bytes':>7} {'model':12} {'parameters':>11} {'seconds':>9} {'speed':>6}"
    print(f"{head} {'peak memory':>12} {'decoding':>10}")
    results = {}
    for length in arguments.lengths:
        results[length] = compare(length, arguments)
        for model, row in results[length].items():
            sizes = [f"{row[key] / 2**20:.1f} MiB" for key in ("peak_bytes", "decoding_bytes")]
            left = f"{length:>7} {model:12} {row['parameters']:>11,.0f} {row['seconds']:>9.3f}"
            print(f"{left} {row['speed']:>6.2f} {sizes[0]:>12} {sizes[1]:>10}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
