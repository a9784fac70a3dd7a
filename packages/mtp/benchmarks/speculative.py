"""Speculative against plain decoding of a trained run, of any model that can draft.

    python packages/mtp/benchmarks/speculative.py RUN [model_cfg.spec_draft_tokens=2]
        [--tokens 128] [--prompts 8] [--json FILE]

Prompts are the first halves of validation windows. Greedy text and text drawn at --temperature are
decoded one row at a time, plain and speculative in turn in one process: the ratio is of CPU seconds
of one thread, or of wall seconds on a GPU. Tokens per pass and acceptance do not depend on the
machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nanozoo_core.config import compose
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation.autoregressive import autoregressive
from nanozoo_core.generation.draft_acceptance import first_halves, measure
from nanozoo_core.generation.speculative import speculative
from nanozoo_core.machine.device import device_name
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.timing import begin, end, flags, take_turns
from nanozoo_core.training import runs


def plain(
    adapter: DefaultModelAdapter, model: nn.Module, prompt: Sequence[int], s: SamplingSettings
) -> None:
    for _ in autoregressive(adapter, model, prompt, s, seeded_generator(s.seed, 7)):
        pass


def drafted(
    adapter: DefaultModelAdapter, model: nn.Module, prompt: Sequence[int], s: SamplingSettings
) -> None:
    drafter = adapter.drafter(model)
    assert drafter is not None
    for _ in speculative(drafter, prompt, s, seeded_generator(s.seed, 7)):
        pass


def read_flags() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = flags(__doc__, rounds=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="model_cfg.key=value")
    parser.add_argument("--tokens", type=int, default=128, help="drawn behind each prompt")
    parser.add_argument("--prompts", type=int, default=8, help="timed; 8 times more are counted")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the text that is drawn")
    return parser, begin(parser)


def main() -> None:
    parser, arguments = read_flags()
    model_overrides, others = compose.split_overrides(arguments.overrides)
    if others:
        parser.error(f"only model_cfg.key=value applies, not {others[0]}")
    device = arguments.device
    run = runs.load_run(arguments.run, device=str(device), model_overrides=model_overrides)
    drafter = run.adapter.drafter(run.model)
    if drafter is None:
        parser.error(f"{run.config.model} with these settings drafts nothing")
    count = 8 * arguments.prompts
    validation, _ = runs.validation_set(run, run.config.eval)
    windows = next(validation.batches(min(count, validation.num_windows)))
    prompts = first_halves([windows.to(run.device)], count)
    tokens = arguments.tokens
    if drafter.max_context is not None:
        tokens = min(tokens, drafter.max_context + 1 - prompts.shape[1])

    print(f"{run.config.model}, {drafter.num_drafts} drafts per pass, {tokens} tokens behind "
          f"{prompts.shape[1]}; {device_name(device)}, torch {torch.__version__}")  # fmt: skip
    print(f"{'':10}{'tokens/pass':>12}{'accepted':>10}{'plain / speculative time':>32}")
    results = {}
    for name, temperature in (("greedy", 0.0), ("drawn", arguments.temperature)):
        settings = SamplingSettings(temperature=temperature)
        tally = measure(run.adapter, run.model, prompts, settings, max_tokens=tokens)
        ratios = []
        for number, prompt in enumerate(prompts[: arguments.prompts].tolist()):
            text = replace(settings, max_tokens=tokens, seed=number)
            ways = {
                way.__name__: partial(way, run.adapter, run.model, prompt, text)
                for way in (plain, drafted)
            }
            times = take_turns(ways, device, rounds=arguments.rounds, repeats=1)
            ratios += [seconds["plain"] / seconds["drafted"] for seconds in times.rounds]
        row = results[name] = {
            "tokens_per_pass": tally.tokens_per_pass,
            "acceptance": tally.acceptance,
            "acceptance_by_place": tally.acceptance_by_place,
            "speedup": statistics.median(ratios),
            "speedup_least": min(ratios),
            "speedup_most": max(ratios),
        }
        span = f"{row['speedup']:.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        counted = f"{tally.tokens_per_pass:12.2f}{tally.acceptance:10.3f}"
        print(f"{name:10}{counted}{span:>32}", flush=True)
    end(arguments, {"model": run.config.model, "drafts": drafter.num_drafts, "ways": results})


if __name__ == "__main__":
    main()
