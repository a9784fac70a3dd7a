"""From composed values to checked settings: those of the training, and the model's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nanozoo_core import registry
from nanozoo_core.config import schema
from nanozoo_core.config.defaults import from_defaults, merged, model_defaults, training_defaults
from nanozoo_core.config.settings import DataConfig, TrainingConfig
from nanozoo_core.errors import ConfigError

BUDGETS = ("steps", "tokens", "bytes", "flops", "seconds")
KNOWN_VOCABULARIES = {"bytes": 258, "gpt2": 50257}


@dataclass(frozen=True)
class ResolvedConfig:
    """All settings of one run, checked and complete: nothing is left for the data to decide."""

    training: TrainingConfig
    model_cfg: Any
    """The model's own config object."""
    vocab_size: int
    """Ids of the tokenizer that `model_cfg` was made for."""

    def with_vocabulary(self, size: int) -> ResolvedConfig:
        """The same for a tokenizer of `size` ids: a trained one may have fewer than were asked."""
        if size == self.vocab_size:
            return self
        training = self.training
        model_cfg = model_config(
            training.model, training.model_cfg, seq_len=training.data.seq_len, vocab_size=size
        )
        return ResolvedConfig(training, model_cfg, size)


def resolve(values: dict[str, Any]) -> ResolvedConfig:
    """Checks every setting, the model's own included.

    Args: values: what Hydra composes, or what a run folder stores.
    Raises: ConfigError with one sentence for every problem found.
    """
    name = values.get("model")
    if not isinstance(name, str):
        raise ConfigError(no_model_message())
    registry.check_model_name(name)
    problems: list[str] = []
    training: TrainingConfig | None = None
    model_cfg: Any = None
    try:
        training = schema.from_dict(TrainingConfig, merged(training_defaults(), values))
    except ConfigError as error:
        problems += error.problems
    raw = values.get("model_cfg")
    data = training.data if training is not None else _best_guess(values.get("data"))
    vocab_size = expected_vocab_size(data)
    if isinstance(raw, dict):
        try:
            model_cfg = model_config(name, raw, seq_len=data.seq_len, vocab_size=vocab_size)
            if training is not None and hasattr(model_cfg, "check_training"):
                problems += model_cfg.check_training(training)
        except ConfigError as error:
            problems += error.problems
    if training is not None and all(
        getattr(training.train, f"max_{unit}") is None for unit in BUDGETS
    ):
        *most, last = (f"train.max_{unit}" for unit in BUDGETS)
        problems.append(f"no budget is set: give {', '.join(most)} or {last}")
    if problems:
        raise ConfigError(problems)
    assert training is not None
    return ResolvedConfig(training, model_cfg, vocab_size)


def training_config(values: dict[str, Any]) -> TrainingConfig:
    """The training's part of `resolve`, after all has been checked. Raises: ConfigError."""
    return resolve(values).training


def model_config(
    name: str,
    changes: dict[str, Any] | None = None,
    *,
    seq_len: int | None = None,
    vocab_size: int | None = None,
) -> Any:
    """The model's config: the values of its YAML with `changes`.

    Args:
        name: of an installed model.
        changes: values of `model_cfg` that differ from the YAML.
        seq_len: the model's own where that is null; None is that of the data that the YAML names.
        vocab_size: the model's own where that is null; None as for `seq_len`.

    Raises: ConfigError with one sentence for every problem found.
    """
    cls = registry.config_class(name)
    own = model_defaults(name)
    filled = merged(own["model_cfg"], changes or {})
    names = {field.name for field in fields(cls)}
    if seq_len is None or vocab_size is None:
        shipped = from_defaults(DataConfig, **own.get("data", {}))
        seq_len = shipped.seq_len if seq_len is None else seq_len
        vocab_size = expected_vocab_size(shipped) if vocab_size is None else vocab_size
    for key, value in (("seq_len", seq_len), ("vocab_size", vocab_size)):
        if key in names and filled.get(key) is None:
            filled[key] = value
    return schema.from_dict(cls, filled, "model_cfg", owner=name)


def expected_vocab_size(data: DataConfig) -> int:
    """What the tokenizer's vocabulary will be, known before any data is read."""
    if data.names_tokenizer_file:
        return _ids_of_file(Path(data.tokenizer).expanduser()) or data.vocab_size
    return KNOWN_VOCABULARIES.get(data.tokenizer, data.vocab_size)


def _ids_of_file(path: Path) -> int | None:
    """The size of the vocabulary in a file, with one separator; None where there is none, as when
    a run that keeps its own was begun on another machine."""
    try:
        stored = json.loads(path.read_bytes())
        if "tokens" in stored:
            return len(stored["tokens"]) + 1
        added = {token["content"] for token in stored["added_tokens"]}
        return len(stored["model"]["vocab"].keys() - added) + 1
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def no_model_message() -> str:
    names = ", ".join(registry.model_modules())
    return f"no model is chosen: add --model NAME; installed models: {names}"


def _best_guess(values: Any) -> DataConfig:
    """The data settings where others are wrong: the model's own are checked all the same."""
    if isinstance(values, dict):
        try:
            return from_defaults(DataConfig, **values)
        except ConfigError:
            pass  # reported with the others
    return from_defaults(DataConfig)
