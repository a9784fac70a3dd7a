"""Speculative against plain decoding of a trained run, by its own drafts or by those of a smaller
run, with float32 and with rounded weights.

    python core/benchmarks/decoding_speculative.py RUN [--draft RUN] [--num-drafts 4]
        [--dtypes float32 bfloat16] [--tokens 64] [--prompts 4] [--json FILE]

Prompts are the first halves of validation windows; each text is decoded plainly and speculatively
in turn, in CPU seconds of one thread. `cost` is what a speculative pass takes in plain steps: it
pays where a pass gives more tokens than that. Tokens per pass do not depend on the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from nanozoo_core.contract import Drafter, SamplingSettings
from nanozoo_core.generation.autoregressive import autoregressive
from nanozoo_core.generation.decoding_dtype import RoundedWeights, decoding_contexts, step_by_step
from nanozoo_core.generation.draft_acceptance import first_halves
from nanozoo_core.generation.draft_run import ModelDrafter
from nanozoo_core.generation.speculative import Tally, speculative
from nanozoo_core.machine.device import device_name
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.timing import begin, end, flags, take_turns
from nanozoo_core.training import runs

WAYS = {"greedy": 0.0, "drawn": 0.8}  # temperatures


def read_flags() -> argparse.Namespace:
    parser = flags(__doc__, rounds=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(device="cpu")
    parser.add_argument("run", type=Path)
    parser.add_argument("--draft", type=Path, help="a smaller run of the same vocabulary")
    parser.add_argument("--num-drafts", type=int, default=4, help="that --draft proposes")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=64, help="drawn behind each prompt")
    parser.add_argument("--prompts", type=int, default=4)
    return begin(parser)


class Contest:
    """A run, what drafts for it, and prompts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        device = str(arguments.device)
        self.run = runs.load_run(arguments.run, device=device)
        self.loaded = [self.run]
        if arguments.draft is not None:
            self.loaded.append(runs.load_run(arguments.draft, device=device))
        self.num_drafts: int = arguments.num_drafts
        validation, _ = runs.validation_set(self.run, self.run.config.eval)
        windows = next(validation.batches(min(arguments.prompts, validation.num_windows)))
        prompts = first_halves([windows.to(self.run.device)], arguments.prompts)
        self.prompts: list[list[int]] = prompts.tolist()
        limit = self.run.max_context
        room = arguments.tokens if limit is None else limit + 1 - prompts.shape[1]
        self.num_tokens = min(arguments.tokens, room)

    def drafter(self) -> Drafter:
        adapter, model = self.run.adapter, self.run.model
        if len(self.loaded) == 1:
            own = adapter.drafter(model)
            assert own is not None, f"{self.run.config.model} drafts nothing; name a --draft"
            return own
        small = self.loaded[1]
        return ModelDrafter(adapter, model, small.adapter, small.model, num_drafts=self.num_drafts)

    def contexts(self, dtype: str) -> list[RoundedWeights]:
        return decoding_contexts([(each.adapter, each.model) for each in self.loaded], dtype)

    def plain(
        self, prompt: Sequence[int], s: SamplingSettings, contexts: Sequence[RoundedWeights]
    ) -> list[int]:
        pieces = autoregressive(
            self.run.adapter, self.run.model, prompt, s, seeded_generator(s.seed)
        )
        return [token for piece in step_by_step(pieces, contexts) for token in piece]

    def drafted(
        self,
        prompt: Sequence[int],
        s: SamplingSettings,
        contexts: Sequence[RoundedWeights],
        tally: Tally | None = None,
    ) -> list[int]:
        pieces = speculative(self.drafter(), prompt, s, seeded_generator(s.seed), tally=tally)
        return [token for piece in step_by_step(pieces, contexts) for token in piece]

    def race(self, dtype: str, temperature: float, rounds: int) -> dict[str, float]:
        contexts, tally, ratios, plain, equal = self.contexts(dtype), Tally(), [], [], []
        for number, prompt in enumerate(self.prompts):
            settings = SamplingSettings(max_tokens=self.num_tokens, temperature=temperature)
            settings = replace(settings, seed=number)
            texts = (
                self.plain(prompt, settings, contexts),
                self.drafted(prompt, settings, contexts, tally),
            )
            equal.append(texts[0] == texts[1])
            ways = {
                "plain": partial(self.plain, prompt, settings, contexts),
                "drafted": partial(self.drafted, prompt, settings, contexts),
            }
            times = take_turns(ways, torch.device("cpu"), rounds=rounds, repeats=1)
            ratios += [each["plain"] / each["drafted"] for each in times.rounds]
            plain.append(times.median("plain"))
        ratios.sort()
        speed = ratios[len(ratios) // 2]
        return {
            "plain_tokens_per_second": self.num_tokens * len(plain) / sum(plain),
            "tokens_per_pass": tally.tokens_per_pass,
            "acceptance": tally.acceptance,
            "cost": tally.tokens_per_pass / speed,
            "speed": speed,
            "speed_least": ratios[0],
            "speed_most": ratios[-1],
            "equal_texts": sum(equal) / len(equal),
        }


def main() -> None:
    arguments = read_flags()
    contest = Contest(arguments)
    print(f"{contest.run.config.model}, {contest.drafter().num_drafts} drafts per pass, "
          f"{contest.num_tokens} tokens behind {len(contest.prompts[0])}; "
          f"{device_name(arguments.device)}, torch {torch.__version__}")  # fmt: skip
    print(f"{'':<9}{'':<8}{'plain tok/s':>12}{'accepted':>10}{'tokens/pass':>12}{'cost':>6}"
          f"{'speed':>7}  (range)")  # fmt: skip
    results: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in arguments.dtypes:
        for way, temperature in WAYS.items():
            row = contest.race(dtype, temperature, arguments.rounds)
            results.setdefault(dtype, {})[way] = row
            numbers = f"{row['plain_tokens_per_second']:>12.1f}{row['acceptance']:>10.2f}"
            numbers += f"{row['tokens_per_pass']:>12.2f}{row['cost']:>6.2f}{row['speed']:>7.2f}"
            span = f"({row['speed_least']:.2f}..{row['speed_most']:.2f})"
            print(f"{dtype:<9} {way:<8}{numbers}  {span}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
