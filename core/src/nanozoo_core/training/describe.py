"""`nanozoo show`: a model's settings, size and cost without training it; a run's outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core import registry
from nanozoo_core.config import (
    ResolvedConfig,
    compose_config,
    resolve,
    schema,
)
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import show_value
from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from nanozoo_core.default_model_adapter import DefaultModelAdapter
    from nanozoo_core.training.plan import RunPlan


def describe_model(
    overrides: Sequence[str], *, recipe: Path | None, activations: bool = False
) -> str:
    """Settings with their help texts, parameters, and what training will cost in FLOPs, time and
    memory; that of the activations is measured where it is asked for.

    Raises: ConfigError for settings that do not fit together.
    """
    import torch

    from nanozoo_core.machine.memory import addressable
    from nanozoo_core.training.memory import changed_numbers
    from nanozoo_core.training.plan import plan_run, usual_bytes_per_token

    resolved = resolve(compose_config(overrides, recipe=recipe))
    config, model_cfg = resolved.training, resolved.model_cfg
    adapter = load_adapter(config.model)
    with (
        torch.device("meta"),
        addressable(f"{config.model} with {changed_numbers(config.model, model_cfg)}"),
    ):
        model = adapter.make_model(model_cfg)
    roles = adapter.parameter_roles(model)
    params = {name: p.numel() for name, p in model.named_parameters()}
    total = sum(params.values())
    muon = sum(n for name, n in params.items() if roles[name] == "matrix")
    state = 8 * total - (4 * muon if config.optim.name == "muon" else 0)
    flops = adapter.flops_per_token(model_cfg, config.data.seq_len)
    bytes_per_token = usual_bytes_per_token(config.data.tokenizer)
    plan = plan_run(config, adapter, model_cfg, bytes_per_token=bytes_per_token)
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
        *(
            f"{name}: {value:{',.0f' if value % 1 == 0 else ',.6g'}}"
            for name, value in extra.items()
        ),
        f"training FLOPs per token: {flops:.3e} at data.seq_len={config.data.seq_len}",
        *plan.describe(),
        f"memory of weights, gradients and optimiser ({config.optim.name}): "
        f"{(8 * total + state) / 2**20:,.1f} MiB",
        *([_activations(resolved, adapter, plan)] if activations else []),
        f"train it: train {f'--config {recipe}' if recipe else f'--model {config.model}'}",
    ]
    return "\n".join(lines)


def _activations(resolved: ResolvedConfig, adapter: DefaultModelAdapter, plan: RunPlan) -> str:
    """What one micro-batch keeps for its gradient, from one window computed on this machine."""
    import torch

    from nanozoo_core.evaluation import estimate
    from nanozoo_core.training.memory import WEIGHTS, require_room_for_model

    model_cfg, stage = resolved.model_cfg, plan.stages[-1]
    windows = plan.micro_windows(stage)
    name = resolved.training.dtype
    dtype: torch.dtype = torch.bfloat16 if name == "auto" else getattr(torch, name)
    vocabulary = estimate.UnknownVocabulary(resolved.vocab_size)
    require_room_for_model(
        adapter, resolved.training.model, model_cfg, torch.device("cpu"), each=WEIGHTS
    )
    with torch.random.fork_rng(devices=[]):
        model = adapter.build(model_cfg, vocabulary)
    window = estimate.activation_bytes(
        adapter,
        model,
        seq_len=stage.seq_len,
        lookahead=adapter.lookahead(model_cfg),
        vocab_size=resolved.vocab_size,
        dtype=dtype,
    )
    return (
        f"memory of activations: {windows * window / 2**20:,.1f} MiB for "
        f"{windows} windows at once, in {str(dtype).removeprefix('torch.')} "
        f"(measured here, uncompiled; train.micro_batch_tokens lowers it)"
    )


def _values(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Numbers and texts as lines for people, those of a section each under its dotted name."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _values(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_value(value)}")
    return lines


def _value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value % 1 == 0 and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return "-" if value is None else show_value(value)


def describe_run(folder: Path, *, text: str | None) -> str:
    """The result of a run, and what its model makes of `text` where it has something to show."""
    from nanozoo_core.training import runs

    lines = []
    run_folder = RunFolder(folder)
    if run_folder.is_finished:
        lines += _values(run_folder.read_result())
    else:
        lines.append(f"{folder} is not finished; continue it with: train resume={folder}")
    if text is not None:
        run = runs.load_run(folder)
        shown = run.adapter.show_sample(run.model, run.vocabulary, text)
        lines.append(shown if shown is not None else f"{run.config.model} has nothing to show")
    return "\n".join(lines)
