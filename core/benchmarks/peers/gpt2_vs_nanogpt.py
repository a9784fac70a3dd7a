"""A training step of our gpt2 beside karpathy/nanoGPT's, same shape, weights and tokens.

    PEERS=<folder that holds nanoGPT/> python core/benchmarks/peers/gpt2_vs_nanogpt.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A step is loss, gradients, AdamW(fused=True) and zero_grad, in float32. Both get
the process settings that our trainer makes, or with --untuned neither. Before timing, the two must
agree on the loss.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from nanozoo_core import registry
from nanozoo_core.contract import Batch, Step
from nanozoo_core.device import device_name
from nanozoo_core.process_settings import tune_process
from nanozoo_gpt2.config import GPT2Config
from nanozoo_gpt2.model import GPT2

# Layers, heads, width, sequence, batch, vocabulary.
SHAPES = {
    "tiny256": (4, 4, 128, 256, 16, 256),
    "tiny4096": (4, 4, 128, 256, 16, 4096),
    "124M": (12, 12, 768, 512, 1, 50257),
}
THEIR_NAMES = {"transformer.wte": "embedding", "transformer.wpe": "pos_embed", "transformer.": ""}


def load_peer() -> ModuleType:
    """nanoGPT's model.py as a module."""
    folder = os.environ.get("PEERS")
    path = Path(folder or ".") / "nanoGPT" / "model.py"
    if folder is None or not path.exists():
        sys.exit(f"PEERS={folder}: set PEERS to the folder where nanoGPT is cloned (no {path})")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def build(peer: ModuleType, name: str) -> tuple[nn.Module, nn.Module]:
    """Their model and ours, with the same weights."""
    num_layers, num_heads, model_dim, seq_len, _, vocab_size = SHAPES[name]
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = peer.GPT(
            peer.GPTConfig(
                block_size=seq_len,
                vocab_size=vocab_size,
                n_layer=num_layers,
                n_head=num_heads,
                n_embd=model_dim,
            )
        )
    ours = GPT2(
        GPT2Config(
            vocab_size=vocab_size,
            seq_len=seq_len,
            num_layers=num_layers,
            num_heads=num_heads,
            model_dim=model_dim,
            activation="gelu",
        )
    )
    weights = {}
    for key, value in theirs.state_dict().items():
        for old, new in THEIR_NAMES.items():
            key = key.replace(old, new)
        weights[key] = value
    del weights["lm_head.weight"]  # tied
    ours.load_state_dict(weights)
    return theirs, ours


def losses(
    theirs: nn.Module, ours: nn.Module, tokens: Tensor
) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each contestant's model and its loss on a batch, as its own training makes it."""
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    adapter = registry.load_adapter("gpt2")
    batch = Batch(
        tokens=tokens,
        documents=torch.zeros_like(tokens, dtype=torch.int32),
        rows=torch.arange(tokens.shape[0]),
        num_rows=tokens.shape[0],
    )
    step = Step(number=0, progress=0.0, seed=0)
    return {
        "nanoGPT": (theirs, lambda: theirs(inputs, targets)[1]),
        "nanozoo": (ours, lambda: adapter.training_loss(ours, batch, step).value),
    }


def seconds(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> float:
    """CPU seconds per training step."""
    started = time.process_time()
    for _ in range(steps):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.process_time() - started) / steps


def compare(peer: ModuleType, name: str, rounds: int) -> dict[str, float]:
    """Median tokens per second, and the ratio ours / theirs over rounds: median and range."""
    _, _, _, seq_len, batch_size, vocab_size = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (batch_size, seq_len + 1), generator=generator)
    contestants = losses(*build(peer, name), tokens)
    values = [float(loss().detach()) for _, loss in contestants.values()]
    assert abs(values[0] - values[1]) < 1e-5 * values[0], values

    runs = {
        who: (torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), loss)
        for who, (model, loss) in contestants.items()
    }
    for run in runs.values():
        seconds(*run, 2)
    steps = max(1, round(1 / seconds(*runs["nanoGPT"], 1)))
    times = []
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        times.append({who: seconds(*runs[who], steps) for who in order})
    ratios = [t["nanoGPT"] / t["nanozoo"] for t in times]
    rates = {
        f"{who}_tokens_per_second": tokens[:, 1:].numel() / statistics.median(t[who] for t in times)
        for who in runs
    }
    return {
        **rates,
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--untuned", action="store_true", help="leave the process as torch has it")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.untuned:
        tune_process()
    peer = load_peer()
    results = {}
    print(f"{'shape':<10}{'nanoGPT tok/s':>15}{'nanozoo tok/s':>15}{'ratio':>8}  (range)")
    for name in arguments.shapes:
        row = results[name] = compare(peer, name, arguments.rounds)
        print(
            f"{name:<10}{row['nanoGPT_tokens_per_second']:>15,.0f}"
            f"{row['nanozoo_tokens_per_second']:>15,.0f}{row['ratio']:>8.3f}"
            f"  ({row['ratio_least']:.3f}..{row['ratio_most']:.3f})"
        )
    if arguments.json:
        machine: dict[str, object] = {"torch": torch.__version__}
        machine["device"] = device_name(torch.device("cpu"))
        machine["tuned"] = not arguments.untuned
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
