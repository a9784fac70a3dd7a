"""Reading a run folder back: its model, ready to score or to write text."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanozoo_core.config import (
    DataConfig,
    EvalConfig,
    TrainingConfig,
    resolve,
    schema,
    training_config,
)
from nanozoo_core.config.defaults import merged
from nanozoo_core.contract import Inspection
from nanozoo_core.data.loader import GivenTexts, ValidationSet
from nanozoo_core.data.prepare import prepare
from nanozoo_core.data.tokenizers import Tokenizer, load_tokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from nanozoo_core.evaluation.inspection import inspect_model, shown_text
from nanozoo_core.evaluation.score import Score, evaluate
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.process import tune_process
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training import checkpoint, integrity
from nanozoo_core.training.distributed import LossModule
from nanozoo_core.training.memory import WEIGHTS, require_room_for_model
from nanozoo_core.training.run_data import RunData, told_where_to_look
from nanozoo_core.training.run_folder import RunFolder, TrainState, read_state

log = logging.getLogger(__name__)


@dataclass
class LoadedRun:
    """A trained model with all that belongs to it; the averaged weights where the run kept some."""

    folder: Path
    config: TrainingConfig
    model_cfg: Any
    state: TrainState
    adapter: DefaultModelAdapter
    model: nn.Module
    vocabulary: Tokenizer
    device: torch.device
    has_moved_data: bool = False
    """Whether its data are read from another place than `config.yaml` says."""

    @property
    def max_context(self) -> int | None:
        """The longest text that the model can read; None where there is no longest."""
        longest: int | None = getattr(self.model, "max_context", None)
        return longest


def load_run(
    folder: Path,
    *,
    checkpoint: str = "latest",
    device: str = "auto",
    model_overrides: dict[str, Any] | None = None,
    verify: bool = True,
) -> LoadedRun:
    """Loads a checkpoint (latest, best or a step number) of a run.

    Args:
        model_overrides: settings of the model that scoring and decoding may change.
        verify: compare the run's files with the digests that it keeps.

    Raises: CheckpointError when the folder is no run, or the checkpoint is missing, damaged,
        changed or of a model of another shape.
    """
    tune_process()
    stored = RunFolder(folder).read_config()
    if verify:
        integrity.check_config(RunFolder(folder))
    config = training_config(stored)
    path = find_checkpoint(RunFolder(folder), checkpoint, config, verify=verify)
    if verify:
        integrity.check_run(RunFolder(folder), read_state(path))
    vocabulary = load_tokenizer(folder, config.data)
    changed = stored | {"model_cfg": config.model_cfg | (model_overrides or {})}
    model_cfg = resolve(changed).with_vocabulary(vocabulary.size).model_cfg
    adapter = load_adapter(config.model)
    place = devices.resolve_device(device)
    require_room_for_model(adapter, config.model, model_cfg, place, each=WEIGHTS)
    model = adapter.build(model_cfg, vocabulary)
    state = read_weights(model, path, config)
    model.to(place).eval()
    return LoadedRun(folder, config, model_cfg, state, adapter, model, vocabulary, place)


def with_moved_data(run: LoadedRun, moved: dict[str, Any]) -> LoadedRun:
    """The run with its data at another place, where they must be the same text.

    Args: moved: settings of `data` that say where. Raises: ConfigError.
    """
    data = schema.from_dict(DataConfig, merged(schema.to_dict(run.config.data), moved), "data")
    return replace(run, config=replace(run.config, data=data), has_moved_data=True)


def read_weights(model: nn.Module, path: Path, config: TrainingConfig) -> TrainState:
    """Fills `model` from what `find_checkpoint` has found, averaged weights where there are any."""
    state = read_state(path, of=config.model, verify=False)
    tensors = checkpoint.read_tensors(path, "model", tables=checkpoint.table_names(model))
    if config.train.ema > 0:
        average = checkpoint.read_tensors(path, "ema")
        checkpoint.check_average(model, average, path)
        tensors |= average
    checkpoint.load_model_tensors(model, tensors, path)
    return state


def stored_tensors(folder: RunFolder, step: int | None, *, tables: Set[str]) -> dict[str, Tensor]:
    """The weights of a run, averaged where there are any, and its buffers, without its model.

    Args: step: of the checkpoint; None is the newest. tables: buffers that may hold the logarithm
        of 0.

    Raises: CheckpointError as `load_run`.
    """
    integrity.check_config(folder)
    config = training_config(folder.read_config())
    path = find_checkpoint(folder, "latest" if step is None else str(step), config)
    integrity.check_run(folder, read_state(path))
    tensors = checkpoint.read_tensors(path, "model", tables=tables)
    return tensors | (checkpoint.read_tensors(path, "ema") if config.train.ema > 0 else {})


@dataclass(frozen=True)
class Evaluation:
    """A score, and of what."""

    model: str
    run: Path
    step: int
    score: Score
    data_fingerprint: str | None
    """Of the run's data; None where texts were given."""
    split: str | None
    """As `eval.split`; None where texts were given."""

    @property
    def bits_per_byte(self) -> float:
        return self.score.bits_per_byte

    @property
    def values(self) -> dict[str, Any]:
        """The numbers under the names that result.json gives them."""
        return {
            "model": self.model,
            "run": str(self.run),
            "step": self.step,
            **self.score.values,
            **({"sources_bpb": self.score.sources} if self.score.sources else {}),
            "val_split": self.split,
            "data_fingerprint": self.data_fingerprint,
        }

    def __str__(self) -> str:
        return f"{self.score} bits per byte on {self.score.num_bytes:,} bytes"


def score(
    run: LoadedRun, overrides: dict[str, Any], texts: Sequence[str | bytes] | None = None
) -> Evaluation:
    """The run's score under its own eval settings, changed by `overrides`.

    Args: texts: documents to score; None is the run's validation text.

    Raises: ConfigError for settings that do not fit, or texts without a byte.
    """
    settings = schema.to_dict(run.config.eval) | overrides
    evaluation = schema.from_dict(EvalConfig, settings, "eval")
    if texts is None:
        (validation, fingerprint), split = validation_set(run, evaluation), evaluation.split
    else:
        validation, fingerprint, split = own_text(run, texts), None, None
    try:
        result = evaluate(
            LossModule(run.model, run.adapter),
            validation,
            Ranks(),
            likelihood=run.adapter.likelihood,
            draws=evaluation.draws,
            batch_tokens=evaluation.batch_tokens,
            device=run.device,
            dtype=devices.resolve_dtype(run.config.dtype, run.device),
        )
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} at step {run.state.step} of {run.folder}; use an earlier --checkpoint"
        ) from error
    return Evaluation(
        run.config.model, run.folder, run.state.step, result, fingerprint, split=split
    )


def own_text(run: LoadedRun, texts: Sequence[str | bytes]) -> ValidationSet:
    """Texts of the user's own, each a document, in windows as the run's validation text.

    Raises: ConfigError for texts without a byte.
    """
    documents = [
        text.encode("utf-8", errors="replace") if isinstance(text, str) else text for text in texts
    ]
    if not any(documents):
        raise ConfigError("there is no text to score; give one with at least one byte")
    return ValidationSet(
        GivenTexts(tuple(documents), run.vocabulary),
        seq_len=run.config.data.seq_len,
        lookahead=run.adapter.lookahead(run.model_cfg),
        num_bytes=sum(map(len, documents)),
    )


def inspect_run(run: LoadedRun, *, text: str | None = None) -> tuple[Inspection | None, str | None]:
    """What is peculiar to the run's model, also written to its folder, and what it shows on `text`,
    or on the beginning of a validation document; None where there is nothing."""
    validation, _ = validation_set(run, run.config.eval)
    folder = RunFolder(run.folder)
    shown_on = shown_text(validation.documents) if text is None else text
    found = inspect_model(
        run.adapter,
        run.model,
        validation,
        run.vocabulary,
        batch_tokens=run.config.eval.batch_tokens,
        device=run.device,
        write_to=(folder.inspection_path, folder.inspection_picture_path),
    )
    return found, run.adapter.show_sample(run.model, run.vocabulary, shown_on)


def validation_set(run: LoadedRun, evaluation: EvalConfig) -> tuple[ValidationSet, str]:
    """The validation text of the run's data, as much of it as the settings say, and the fingerprint
    of the data."""
    own = run.vocabulary if run.vocabulary.name == "bpe" else None
    with told_where_to_look(RunFolder(run.folder)):
        data = prepare(run.config.data, vocabulary=own)
    validation = ValidationSet(
        data,
        seq_len=run.config.data.seq_len,
        lookahead=run.adapter.lookahead(run.model_cfg),
        num_bytes=evaluation.bytes,
        split=evaluation.split,
    )
    known = RunData.read(RunFolder(run.folder))
    if known is not None and known.fingerprint != data.fingerprint:
        if run.has_moved_data:
            raise DataError(
                f"data.path={run.config.data.path} holds another text than the run in {run.folder} "
                f"has read (fingerprint {known.fingerprint} then, {data.fingerprint} here); name "
                "the place of the same text"
            )
        log.warning(
            "the text of %s has changed since the run in %s read it (fingerprint %s then, %s now): "
            "its score is on other text",
            *(data.name, run.folder, known.fingerprint, data.fingerprint),
        )
    return validation, data.fingerprint


def find_checkpoint(
    folder: RunFolder, which: str, config: TrainingConfig, *, verify: bool = True
) -> Path:
    """The folder of the latest or the best checkpoint that is whole, or of a step.

    Raises: CheckpointError when there is none.
    """
    stems = ("model", "ema") if config.train.ema > 0 else ("model",)
    if which in ("latest", "best"):
        find = checkpoint.newest_whole if which == "latest" else checkpoint.best_whole
        return folder.checkpoint(find(folder, stems, verify=verify))
    path = folder.checkpoint(int(which)) if which.isascii() and which.isdigit() else None
    if path is None or not path.is_dir():
        steps = ", ".join(map(str, folder.checkpoint_steps())) or "none"
        raise CheckpointError(
            f"checkpoint {which} is not in {folder}; use latest, best or one of: {steps}"
        )
    checkpoint.check_whole(path, stems, verify=verify)
    return path
