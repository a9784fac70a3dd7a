"""Fills a fresh model with given weights, whose vocabulary may be smaller.

What belongs to a token goes with it, whatever its id; a token that the weights do not know keeps
what the model has drawn for it. R rows of the vocabulary, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.tensor_files import digest_of
from nanozoo_core.training.checkpoint import table_names
from nanozoo_core.training.initial_weights import InitialWeights

SHOWN_DIGITS = 12


@torch.no_grad()
def begin_with(
    weights: InitialWeights,
    adapter: DefaultModelAdapter,
    model: nn.Module,
    model_cfg: Any,
    vocabulary: Tokenizer,
    *,
    digest: str | None,
) -> tuple[str, str]:
    """Fills a model.

    Args: digest: that the weights must have; None takes any.
    Returns: the digest of the weights, and a line for the terminal.
    Raises: ConfigError for other weights or another tokenizer; CheckpointError for weights that do
        not fit.
    """
    tensors = weights.tensors(adapter, table_names(model))
    found = digest_of(tensors)
    if digest not in (None, found):
        raise ConfigError(
            f"init_from={weights.place} holds other weights than init_digest={digest}, of sha256 "
            f"{found}; give those, or leave out init_digest"
        )
    known = _token_rows(weights, vocabulary)
    old_size = int(weights.model_cfg.get("vocab_size") or vocabulary.size)
    targets = _targets(model)
    axes = _vocabulary_axes(adapter, model_cfg)
    _check_names(targets, tensors, weights)
    for name, target in targets.items():
        what = f"{weights.place}: {name}"
        _fill(target, tensors[name], axes.get(name, ()), known, old_size, what)
    fresh = known.count(-1)
    line = f"weights      {weights.place} ({weights.model}, sha256 {found[:SHOWN_DIGITS]})"
    if fresh:
        line += f"; {fresh} tokens are new to them and start as {weights.model} draws them"
    return found, line


def _targets(model: nn.Module) -> dict[str, Tensor]:
    kept = set(model.state_dict(keep_vars=True))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return dict(model.named_parameters()) | buffers


def _token_rows(weights: InitialWeights, new: Tokenizer) -> list[int]:
    """By token of the data, its row in the weights; -1 where they do not know it.

    Raises: ConfigError when they know a token that the data have not.
    """
    old = weights.vocabulary
    if old is None:
        size = int(weights.model_cfg["vocab_size"])
        if new.size > size:
            raise ConfigError(
                f"data.tokenizer={new.name} has {new.size} ids and the weights of {weights.place} "
                f"{size}; put their tokenizer.json there"
            )
        return list(range(new.size))
    rows = getattr(old, "rows", None) or range(old.size)
    if old.equals(new):
        return list(rows)
    theirs = {token: rows[id] for token, id in old.ids().items()}
    ours = new.ids()
    missing = next((token for token in theirs if token not in ours), None)
    if missing is not None or {old.name, new.name} == {"bytes", "bpe"}:
        raise ConfigError(
            f"the tokenizer of the data ({new.name}, {new.size} ids) is not that of the weights of "
            f"{weights.place} ({old.name}, {old.size} ids), nor does it add to it; leave out "
            f"data.tokenizer and data.vocab_size, or give shards of theirs"
        )
    found = [-1] * new.size
    for token, id in ours.items():
        found[id] = theirs.get(token, -1)
    return found


def _vocabulary_axes(adapter: DefaultModelAdapter, model_cfg: Any) -> dict[str, tuple[int, ...]]:
    """By name, the axes of a tensor whose size is made of the vocabulary's: those that differ
    between two models that differ in it alone."""
    size = getattr(model_cfg, "vocab_size", None)
    if size is None:
        return {}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        one = _targets(adapter.make_model(model_cfg))
        two = _targets(adapter.make_model(replace(model_cfg, vocab_size=2 * size + 1024)))
    return {
        name: tuple(
            axis for axis, (a, b) in enumerate(zip(t.shape, two[name].shape, strict=True)) if a != b
        )
        for name, t in one.items()
    }


def _check_names(
    targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], weights: InitialWeights
) -> None:
    missing = sorted(targets.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - targets.keys())
    if missing or foreign:
        what = f"lack {missing[0]}" if missing else f"hold the unknown {foreign[0]}"
        raise CheckpointError(
            f"the weights of init_from={weights.place} are those of another model than "
            f"{weights.model} with these settings: they {what}"
        )


def _fill(
    target: Tensor, source: Tensor, axes: tuple[int, ...], known: list[int], old: int, what: str
) -> None:
    """Copies `source` into `target`, along `axes` by token. Args: old: tokens of the weights; rows
    past them, such as that of a mask, go to the rows past those of the data."""
    index, place = [], []
    for axis, size in enumerate(target.shape):
        rows = list(range(size))
        if axis in axes:
            rows = [*known, *range(old, old + size)][:size]
            rows = [row if row < source.shape[axis] else -1 for row in rows]
        elif source.ndim != target.ndim or source.shape[axis] != size:
            raise CheckpointError(
                f"{what} has shape {list(source.shape)} there and {list(target.shape)} here"
            )
        shape = [-1 if n == axis else 1 for n in range(target.ndim)]
        there = torch.tensor([n for n, row in enumerate(rows) if row >= 0])
        index.append(torch.tensor([row for row in rows if row >= 0]).view(shape))
        place.append(there.to(target.device).view(shape))
    if not axes:
        target.copy_(source)
    else:
        target[tuple(place)] = source[tuple(index)].to(target)
