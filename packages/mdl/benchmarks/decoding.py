"""Steps against speed and quality: texts of trained runs of mdl by every sampler, beside a run of a
next-token model, which also judges them.

    python packages/mdl/benchmarks/decoding.py --judge RUN RUN ... [--texts 16] [--json FILE]

Each run goes on behind beginnings of validation windows until its window is full, one text at a
time: with one token per step, with fewer steps, the surest tokens first, and hiding tokens again;
with blocks also without the keys and values that it keeps. Steps are those of a window or of a
block. Tokens per CPU second of one thread, or per wall second on a GPU. The judge says how many
nats per token the texts cost it, less is likelier; the share of different tokens in a text tells
good ones from repetitions, which cost little as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.generation.text import draw_text
from nanozoo_core.machine.device import device_name
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.sources import batch_of
from nanozoo_core.testing.timing import begin, end, flags, seconds
from nanozoo_core.training import runs

PROMPT = 32  # tokens

Way = tuple[str, dict[str, Any], SamplingSettings]
"""A name, changes of the model's settings, and settings of the sampler."""


def ways(block_size: int | None, length: int) -> Iterator[Way]:
    yield "one token per step", {"sampler": "first_hitting"}, SamplingSettings()
    if block_size is not None:
        plain = SamplingSettings(use_cache=False)
        yield "the same, nothing kept", {"sampler": "first_hitting"}, plain
    whole = block_size or length
    for share in (2, 4, 8):
        if whole >= 2 * share:
            few = SamplingSettings(num_steps=whole // share)
            yield f"ancestral, {few.num_steps} steps", {"sampler": "ancestral_cache"}, few
    if whole >= 8:
        few = SamplingSettings(num_steps=whole // 4)
        yield f"surest first, {few.num_steps} steps", {"sampler": "confidence"}, few
        yield f"remasking, {few.num_steps} steps", {"sampler": "remask"}, few


def read_flags() -> argparse.Namespace:
    parser = flags(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--judge", type=Path, required=True, metavar="RUN")
    parser.add_argument("--texts", type=int, default=16, help="drawn in each way")
    return begin(parser)


def main() -> None:
    arguments = read_flags()
    device = arguments.device
    judge = runs.load_run(arguments.judge, device=str(device))
    validation, _ = runs.validation_set(judge, judge.config.eval)
    windows = next(validation.batches(arguments.texts)).window  # (B, S)
    length = windows.shape[1] - 1
    print(f"{arguments.texts} texts of {length} tokens behind {PROMPT}; {device_name(device)}, "
          f"torch {torch.__version__}")  # fmt: skip

    def drawn(run: runs.LoadedRun, settings: SamplingSettings) -> torch.Tensor:
        """(B, S): the windows with all behind their beginnings drawn anew."""
        whole = replace(settings, max_tokens=length + 1 - PROMPT)
        texts = []
        for number, prompt in enumerate(windows[:, :PROMPT].tolist()):
            generator = seeded_generator(number, 7)
            new = draw_text(run.adapter, run.model.eval(), prompt, whole, generator)
            texts.append(prompt + [token for piece in new for token in piece])
        return torch.tensor(texts)

    @torch.no_grad()
    def judged(texts: torch.Tensor) -> tuple[float, float]:
        """Nats per drawn token, and the share of different ones among a text's."""
        nats = judge.adapter.token_nats(judge.model.eval(), batch_of(texts.to(judge.device)))
        new = texts[:, PROMPT:]
        different = sum(len(set(text)) for text in new.tolist()) / new.numel()
        return float(nats[:, PROMPT - 1 :].mean()), different

    results: dict[str, dict[str, float]] = {}

    def show(name: str, texts: torch.Tensor, speed: float | None) -> None:
        nats, different = judged(texts)
        results[name] = {"nats": nats, "different": different, "tokens_per_second": speed or 0.0}
        fast = f"{speed:9,.0f}" if speed else " " * 9
        print(f"{name:40}{fast} tokens/s {nats:8.3f} nats {different:8.3f} different", flush=True)

    def measure(name: str, run: runs.LoadedRun, settings: SamplingSettings) -> None:
        texts: list[torch.Tensor] = []
        spent = seconds(lambda: texts.append(drawn(run, settings)), device)
        show(name, texts[0], texts[0][:, PROMPT:].numel() / spent)

    show("validation text", windows.cpu(), None)
    measure(f"{judge.config.model}, the judge", judge, SamplingSettings())
    for folder in arguments.runs:
        run = runs.load_run(folder, device=str(device))
        model: Any = run.model
        size = model.config.block_size
        print(f"{folder}, " + ("one block" if size is None else f"blocks of {size}"))
        shipped = model.config
        for name, changes, settings in ways(size, length):
            model.config = replace(shipped, **changes)
            measure(f"  {'all' if size is None else size}: {name}", run, settings)
    end(arguments, results)


if __name__ == "__main__":
    main()
