"""Greedy decoding of our gpt2 beside transformers' GPT2LMHeadModel.generate, same weights and
prompt, at the shape of GPT-2 (124M).

    uv run --with transformers python core/benchmarks/peers/decoding_vs_transformers.py

Both run in one process, alternating; times are the CPU seconds of one thread, which other jobs
hardly disturb. A turn reads a prompt of 64 random tokens and writes 32. In float32 both must write
the same text before the clock starts. In bfloat16 theirs holds and computes everything in it, as
model.to(torch.bfloat16) makes it; ours holds float32 weights with bfloat16 copies for products and
computes the rest in float32, as `nanozoo generate --dtype bfloat16` does.

`limit` is what the products of a token take with nothing between them, one after the other: the
time in which this machine reads the weights. `share` is how much of our time per token that is; the
prompt counts as ours, so it cannot reach 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from race import CPU, begin, end, race, show_race
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.generation.autoregressive import autoregressive_rows
from nanozoo_core.generation.decoding_dtype import (
    RoundedWeights,
    large_matrices,
    rounded_linear,
    step_by_step,
)
from nanozoo_core.testing import timing
from nanozoo_gpt2.huggingface import to_hf_config, to_hf_state_dict
from nanozoo_gpt2.model import GPT2

ROWS = {"1 text": 1, "8 texts": 8}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROMPT_TOKENS, NEW_TOKENS = 64, 32

Decoder = Callable[[], list[list[int]]]


def transformers_decoder(ours: GPT2, prompts: Tensor, dtype: torch.dtype) -> Decoder:
    import transformers

    config = transformers.GPT2Config(**to_hf_config(ours.config))
    model = transformers.GPT2LMHeadModel(config).eval()
    model.load_state_dict(to_hf_state_dict(ours), strict=False)
    model.tie_weights()
    model = model.to(dtype)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    rest = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    return lambda: model.generate(prompts, **length, **rest)[:, prompts.shape[1] :].tolist()


def our_decoder(model: GPT2, prompts: Tensor, contexts: Sequence[RoundedWeights]) -> Decoder:
    adapter, prompt = load_adapter("gpt2"), prompts[0].tolist()
    settings = SamplingSettings(max_tokens=NEW_TOKENS, temperature=0)
    generators = [torch.Generator() for _ in prompts]

    def decode() -> list[list[int]]:
        steps = autoregressive_rows(adapter, model, prompt, settings, generators)
        return [list(row) for row in zip(*step_by_step(steps, contexts), strict=True)]

    return decode


@torch.no_grad()
def seconds_of_products(model: GPT2, num_rows: int, dtype: torch.dtype) -> float:
    """The least of a few turns over all matrices."""
    matrices = [matrix.detach().to(dtype) for matrix in large_matrices(model)]
    inputs = {matrix.shape[1]: torch.ones(num_rows, matrix.shape[1]) for matrix in matrices}
    product = F.linear if dtype == torch.float32 else rounded_linear

    def run() -> None:
        for matrix in matrices:
            product(inputs[matrix.shape[1]], matrix)

    return min(timing.seconds(run, CPU, 4) for _ in range(5))


def compare(rows: str, name: str, rounds: int) -> dict[str, float]:
    dtype, num_rows = DTYPES[name], ROWS[rows]
    torch.manual_seed(0)
    ours = GPT2(model_config("gpt2", {"preset": "gpt2", "vocab_size": 50257, "seq_len": 1024}))
    ours.eval()
    prompts = torch.randint(50257, (1, PROMPT_TOKENS)).expand(num_rows, -1)
    contexts = [] if dtype == torch.float32 else [RoundedWeights(ours)]
    decoders = transformers_decoder(ours, prompts, dtype), our_decoder(ours, prompts, contexts)
    texts = [decode() for decode in decoders]
    if dtype == torch.float32:
        assert texts[0] == texts[1], texts
    row = race("transformers", *decoders, num_tokens=num_rows * NEW_TOKENS, rounds=rounds)
    limit = num_rows / seconds_of_products(ours, num_rows, dtype)
    equal = torch.tensor(texts[0]) == torch.tensor(texts[1])
    return row | {
        "limit_tokens_per_second": limit,
        "share": row["nanozoo_tokens_per_second"] / limit,
        "equal_tokens": float(equal.float().mean()),
    }


def main() -> None:
    arguments = begin(__doc__, ROWS, dtypes=list(DTYPES))
    with suppress(ImportError):
        from transformers.utils import logging

        logging.set_verbosity_error()
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':<9}{'':<10}{'their tok/s':>12}{'our tok/s':>11}{'limit':>8}{'share':>7}{'ratio':>8}"
          "  (range)")  # fmt: skip
    for rows in arguments.shapes:
        for name in arguments.dtypes:
            row = compare(rows, name, arguments.rounds)
            results.setdefault(rows, {})[name] = row
            rates = [row[f"{who}_tokens_per_second"] for who in ("transformers", "nanozoo")]
            sizes = f"{rates[0]:>12.1f}{rates[1]:>11.1f}{row['limit_tokens_per_second']:>8.1f}"
            print(f"{rows:<9}{name:<10}{sizes}{row['share']:>7.2f}{show_race(row)}", flush=True)
    end(arguments, results)


if __name__ == "__main__":
    main()
