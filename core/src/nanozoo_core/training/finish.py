"""The end of a run: calibration, and then its result, samples and inspection."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nanozoo_core.contract import Inspection, SamplingSettings
from nanozoo_core.data.loader import compression_baselines
from nanozoo_core.evaluation import inspection
from nanozoo_core.evaluation.score import Score
from nanozoo_core.files import null_if_not_finite
from nanozoo_core.generation.text import generate_tokens
from nanozoo_core.machine import device as devices
from nanozoo_core.training import checkpoint
from nanozoo_core.training.ema import WeightAverage
from nanozoo_core.training.records import git_commit
from nanozoo_core.training.run_folder import RunFolder, Sample, Samples, TrainState
from nanozoo_core.training.setup import Setup

SAMPLE_TOKENS = 128


@dataclass(frozen=True)
class Finish:
    """What a finished run found out."""

    score: Score
    baselines: dict[str, float]  # bits per byte of compressors on the same text
    inspection: Inspection | None
    result: dict[str, Any]


def whole_model(setup: Setup, average: WeightAverage, folder: RunFolder) -> nn.Module:
    """A copy of the model with its averaged weights where there are any, all of them on every
    rank."""
    model = setup.adapter.build(setup.model_cfg, setup.data.vocabulary).to(setup.device)
    with average.lent_to_the_model():
        tensors = checkpoint.model_tensors(setup.model)
        checkpoint.load_model_tensors(model, tensors, folder.path)
    return model


@torch.no_grad()
def calibrate(setup: Setup, whole: nn.Module, step: int) -> None:
    """Lets the adapter finish the whole copy of the model, and takes over its buffers."""
    whole.eval()
    setup.adapter.finalize(whole, setup.statistics_batches(step))
    for mine, final in zip(setup.model.buffers(), whole.buffers(), strict=True):
        mine.copy_(final)


def conclude(
    setup: Setup, whole: nn.Module, state: TrainState, score: Score, folder: RunFolder
) -> Finish:
    """What the run reached: its result, and the model's inspection and samples, which are written
    to the folder."""
    baselines = compression_baselines(setup.validation.documents)
    found = inspection.inspect_model(
        setup.adapter,
        whole,
        setup.validation,
        setup.data.vocabulary,
        batch_tokens=setup.config.eval.batch_tokens,
        device=setup.device,
        write_to=(folder.inspection_path, folder.inspection_picture_path),
    )
    result = make_result(setup, state, score, baselines)
    if len(setup.data.parts) > 1:
        result["sources"] = sources_of(setup, state, score)
    if found is not None:
        result["diagnostics"] = null_if_not_finite(found.metrics)
    folder.write_samples(make_samples(setup, whole))
    return Finish(score, baselines, found, result)


def make_result(
    setup: Setup, state: TrainState, score: Score, baselines: dict[str, float]
) -> dict[str, Any]:
    """The numbers of a finished run, by the names that result.json gives them."""
    config, seconds = setup.config, state.seconds
    num_processes = setup.ranks.world_size
    peak = devices.peak_flops(setup.device)
    return {
        "model": config.model,
        "family": setup.adapter.family,
        **setup.adapter.report(setup.model),
        **score.values,
        "val_split": config.eval.split,
        "baselines_bpb": baselines,
        "steps": state.step,
        "train_tokens": state.tokens,
        "train_bytes": state.bytes,
        "epochs": setup.loader.epochs(state.step),
        "train_seconds": seconds,
        "tokens_per_second": state.tokens / seconds,
        "train_flops": state.flops,
        "mfu": state.flops / seconds / (peak * num_processes) if peak else None,
        "peak_memory_bytes": devices.peak_memory_bytes(setup.device),
        "seed": config.seed,
        "tokenizer": setup.data.vocabulary.name,
        "data_fingerprint": setup.data.fingerprint,
        "device": devices.device_name(setup.device),
        "num_processes": num_processes,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "attention_form": setup.attention_form,
        "precision_measured": _measured(setup),
        "torch": torch.__version__,
        "git_commit": git_commit(),
    }


def _measured(setup: Setup) -> dict[str, Any] | None:
    """The milliseconds by which a CPU's types and forms were chosen; None where they were given."""
    found = None if setup.precision is None else setup.precision.measured
    return None if found is None else dataclasses.asdict(found) | {"speedup": found.speedup}


def sources_of(setup: Setup, state: TrainState, score: Score) -> dict[str, dict[str, Any]]:
    """What the run has read of each source of a mixture, and its score there, by its name."""
    epochs = setup.loader.epochs_of_sources(state.step)
    return {
        part.name: {
            "share": part.share,
            "train_tokens": part.data.train_tokens,
            "epochs": epochs[part.name],
            "val_bpb": score.sources[part.name],
            "val_bytes": setup.validation.source_bytes[part.name],
            "data_fingerprint": part.data.fingerprint,
        }
        for part in setup.data.parts
    }


def make_samples(setup: Setup, model: nn.Module) -> Samples:
    """Some generated text: from nothing, and after the first lines of validation documents."""
    vocabulary = setup.data.vocabulary
    documents = setup.validation.documents
    prompts = [""]
    for document in itertools.islice(documents, 2):
        prompts.append(document.decode("utf-8", errors="replace")[:48])
    texts = []
    for seed, prompt in enumerate(prompts):
        settings = SamplingSettings(max_tokens=SAMPLE_TOKENS, temperature=0.8, seed=seed)
        tokens = generate_tokens(setup.adapter, model, vocabulary, prompt, settings)
        text = vocabulary.decode([token for new in tokens for token in new])
        texts.append(Sample(prompt, prompt + text))
    shown = setup.adapter.show_sample(model, vocabulary, inspection.shown_text(documents))
    return Samples(tuple(texts), shown)
