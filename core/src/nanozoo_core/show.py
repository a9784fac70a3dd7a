"""`nanozoo show`: a model's settings, size and cost without training it; a run's outcome."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from nanozoo_core import compose, registry, schema
from nanozoo_core.config import DataConfig


def describe_model(overrides: Sequence[str], *, recipe: Path | None) -> str:
    """Settings with their help texts, parameters, FLOPs and memory of weights and optimiser.

    Raises: ConfigError for settings that do not fit together.
    """
    import torch

    config = compose.training_config(compose.compose_config(overrides, recipe=recipe))
    adapter = registry.load_adapter(config.model)
    model_cfg = compose.model_config(
        config.model,
        config.model_cfg,
        seq_len=config.data.seq_len,
        vocab_size=vocabulary_size(config.data),
    )
    with torch.device("meta"):
        model = adapter.model_class(model_cfg)
    roles = adapter.parameter_roles(model)
    params = {name: p.numel() for name, p in model.named_parameters()}
    total = sum(params.values())
    muon = sum(n for name, n in params.items() if roles[name] == "matrix")
    state = 8 * total - (4 * muon if config.optim.name == "muon" else 0)
    flops = adapter.flops_per_token(model_cfg, config.data.seq_len)
    counted = ("params", "params_non_embedding")
    extra = {name: n for name, n in adapter.report(model).items() if name not in counted}
    lines = [f"{config.model}: {registry.model_summaries()[config.model]}", "", "model_cfg:"]
    helps = schema.field_help(type(model_cfg))
    for field in dataclasses.fields(model_cfg):
        value = getattr(model_cfg, field.name)
        shown = "null" if value is None else value
        lines.append(f"  {field.name}: {shown}    # {helps.get(field.name, '')}")
    by_role = {role: sum(n for k, n in params.items() if roles[k] == role) for role in
               sorted(set(roles.values()))}  # fmt: skip
    lines += [
        "",
        f"parameters: {total:,} ("
        + ", ".join(f"{role} {count:,}" for role, count in by_role.items())
        + ")",
        *(f"{name}: {value:,.6g}" for name, value in extra.items()),
        f"training FLOPs per token: {flops:.3e} at data.seq_len={config.data.seq_len}",
        f"memory of weights, gradients and optimiser: {(8 * total + state) / 2**20:,.1f} MiB "
        f"(activations not counted)",
        f"batch: {config.train.batch_tokens:,} tokens; optimiser: {config.optim.name}",
        f"train it: train --model {config.model}",
    ]
    return "\n".join(lines)


def vocabulary_size(data: DataConfig) -> int:
    """What the tokenizer's vocabulary will be, known before any data is read."""
    return {"bytes": 258, "gpt2": 50257}.get(data.tokenizer, data.vocab_size)


def describe_run(folder: Path, *, text: str | None) -> str:
    """The result of a run, and what its model makes of `text` where it has something to show."""
    from nanozoo_core import runs

    lines = []
    result = folder / "result.json"
    if result.is_file():
        lines += [f"{key}: {value}" for key, value in json.loads(result.read_text()).items()]
    else:
        lines.append(f"{folder} is not finished; continue it with: train resume={folder}")
    if text is not None:
        run = runs.load_run(folder)
        shown = run.adapter.show_sample(run.model, run.vocabulary, text)
        lines.append(shown if shown is not None else f"{run.config.model} has nothing to show")
    return "\n".join(lines)
