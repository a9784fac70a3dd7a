"""Speculative against plain decoding of a trained run, of any model that can draft.

    python packages/mtp/benchmarks/speculative.py RUN [--tokens 128] [--prompts 8] [--json FILE]
        [model_cfg.spec_draft_tokens=2]

Prompts are the first halves of validation windows. Greedy text and text drawn at --temperature are
decoded one row at a time, plain and speculative in turn in one process: the ratio is of CPU seconds
of one thread, or of wall seconds on a GPU. Tokens per pass and acceptance do not depend on the
machine.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from nanozoo_core.config import compose
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.generation.draft_report import first_halves, measure, race
from nanozoo_core.machine.device import device_name
from nanozoo_core.machine.process import tune_process
from nanozoo_core.training import runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="model_cfg.key=value")
    parser.add_argument("--tokens", type=int, default=128, help="drawn behind each prompt")
    parser.add_argument("--prompts", type=int, default=8, help="timed; 8 times more are counted")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the text that is drawn")
    parser.add_argument("--rounds", type=int, default=3, help="of both ways for each prompt")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    tune_process()
    model_overrides, others = compose.split_overrides(arguments.overrides)
    if others:
        parser.error(f"only model_cfg.key=value applies, not {others[0]}")
    run = runs.load_run(arguments.run, device=arguments.device, model_overrides=model_overrides)
    drafter = run.adapter.drafter(run.model)
    if drafter is None:
        parser.error(f"{run.config.model} with these settings drafts nothing")
    count = 8 * arguments.prompts
    validation, _ = runs.validation_set(run, run.config.eval.bytes)
    windows = next(validation.batches(min(count, validation.num_windows)))
    prompts = first_halves([windows.to(run.device)], count)
    tokens = arguments.tokens
    if drafter.max_context is not None:
        tokens = min(tokens, drafter.max_context + 1 - prompts.shape[1])

    print(f"{run.config.model}, {drafter.num_drafts} drafts per pass, {tokens} tokens behind "
          f"{prompts.shape[1]}; {device_name(run.device)}, torch {torch.__version__}")  # fmt: skip
    print(f"{'':10}{'tokens/pass':>12}{'accepted':>10}{'plain / speculative time':>32}")
    results = {}
    for name, temperature in (("greedy", 0.0), ("drawn", arguments.temperature)):
        settings = SamplingSettings(temperature=temperature)
        tally = measure(run.adapter, run.model, prompts, settings, max_tokens=tokens)
        ratios = [
            ratio
            for number, prompt in enumerate(prompts[: arguments.prompts].tolist())
            for ratio in race(
                run.adapter,
                run.model,
                prompt,
                replace(settings, max_tokens=tokens, seed=number),
                rounds=arguments.rounds,
            )
        ]
        row = {
            "tokens_per_pass": tally.tokens_per_pass,
            "acceptance": tally.acceptance,
            "acceptance_by_place": tally.acceptance_by_place,
            "speedup": statistics.median(ratios),
            "speedup_least": min(ratios),
            "speedup_most": max(ratios),
        }
        results[name] = row
        span = f"{row['speedup']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        counted = f"{tally.tokens_per_pass:12.2f}{tally.acceptance:10.3f}"
        print(f"{name:10}{counted}{span:>32}", flush=True)
    if arguments.json is not None:
        record = {
            "device": device_name(run.device),
            "torch": torch.__version__,
            "model": run.config.model,
            "drafts": drafter.num_drafts,
            "results": results,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
