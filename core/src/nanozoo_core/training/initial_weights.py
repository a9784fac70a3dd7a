"""`init_from`: the weights that a new run begins with, and the settings that come with them.

They lie in a run, in a folder that `nanozoo export --to safetensors` wrote, or in one of
transformers. Nothing here imports torch or numpy until they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core import registry
from nanozoo_core.config import schema, training_config
from nanozoo_core.config.defaults import from_defaults, merged, model_defaults, training_defaults
from nanozoo_core.config.overrides import parse_override
from nanozoo_core.config.resolved import no_model_message
from nanozoo_core.config.settings import DataConfig
from nanozoo_core.errors import CheckpointError, ConfigError, show_value
from nanozoo_core.files import read_json
from nanozoo_core.training.run_folder import RunFolder, parse_resume

if TYPE_CHECKING:
    from torch import Tensor

    from nanozoo_core.data.tokenizers import Tokenizer
    from nanozoo_core.default_model_adapter import DefaultModelAdapter

ABOUT_NAME = "nanozoo.json"  # of an exported folder: its model, settings and tokenizer
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"  # of weights in several files
# Settings under which weights mean the same: how large batches of rows are, what is dropped in
# training, and how a thing is computed. A config class names its own in `not_of_the_weights`.
FREE = ("vocab_size", "pad_vocab_to", "dropout")
FREE_ENDINGS = ("_impl", "_backend")


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a model, with what belongs to them; the files are read when they are asked for."""

    place: str
    """As `init_from` names it."""
    model: str
    model_cfg: dict[str, Any]
    """The settings that they were trained with, complete."""
    data: dict[str, Any]
    """Of the data settings, those of the tokenizer and the window."""

    @cached_property
    def vocabulary(self) -> Tokenizer | None:
        """Their tokenizer; None where the folder has none. Raises: DataError."""
        raise NotImplementedError

    def tensors(self, adapter: DefaultModelAdapter, tables: Collection[str]) -> dict[str, Tensor]:
        """Parameters and buffers by our names, in float32.

        Args: tables: names of those that may hold the logarithm of 0.
        Raises: CheckpointError, NonFiniteError.
        """
        raise NotImplementedError

    def accepts_tokenizer(self, name: str) -> bool:
        """Whether data may be read with this `data.tokenizer`."""
        own = self.data.get("tokenizer")
        is_file = name not in ("bytes", "bpe", "gpt2")  # it may add to a byte-pair vocabulary
        return own in (None, name) or (is_file and own != "bytes")


class RunWeights(InitialWeights):
    """A checkpoint of a run: its averaged weights where it kept some."""

    @property
    def _run(self) -> tuple[RunFolder, int | None]:
        return parse_resume(self.place)

    @cached_property
    def vocabulary(self) -> Tokenizer | None:
        folder, _ = self._run
        from nanozoo_core.data.tokenizers import load_tokenizer

        return load_tokenizer(folder.path, training_config(folder.read_config()).data)

    def tensors(self, adapter: DefaultModelAdapter, tables: Collection[str]) -> dict[str, Tensor]:
        from nanozoo_core.training import runs

        folder, step = self._run
        return runs.stored_tensors(folder, step, tables=set(tables))


class ExportedWeights(InitialWeights):
    """A folder that `nanozoo export --to safetensors` wrote."""

    @cached_property
    def vocabulary(self) -> Tokenizer | None:
        from nanozoo_core.data.tokenizers import load_tokenizer

        return load_tokenizer(Path(self.place), from_defaults(DataConfig, **self.data))

    def tensors(self, adapter: DefaultModelAdapter, tables: Collection[str]) -> dict[str, Tensor]:
        return _read_folder(Path(self.place), tables)


class HFWeights(InitialWeights):
    """A folder of transformers, which the model's adapter reads."""

    @cached_property
    def vocabulary(self) -> Tokenizer | None:
        from nanozoo_core.data.hf_vocabulary import read_hf_tokenizer

        return read_hf_tokenizer(Path(self.place))

    def tensors(self, adapter: DefaultModelAdapter, tables: Collection[str]) -> dict[str, Tensor]:
        theirs = _read_folder(Path(self.place), tables)
        config: Any = schema.from_dict(
            adapter.config_class, self.model_cfg, "model_cfg", self.model
        )
        return adapter.weights_from_hf(theirs, _read_hf_config(Path(self.place)), config)

    def accepts_tokenizer(self, name: str) -> bool:
        return super().accepts_tokenizer(name) or name == "gpt2"


def find_weights(init_from: str, model: str | None) -> InitialWeights:
    """What `init_from` names. Args: model: as the user typed it, or None.

    Raises: CheckpointError, ConfigError for a place that holds no weights of such a model.
    """
    run, _ = parse_resume(init_from)
    folder = Path(init_from)
    found: InitialWeights
    if run.is_run:
        stored = run.read_config()
        data = {key: stored["data"][key] for key in ("tokenizer", "vocab_size", "seq_len")}
        found = RunWeights(init_from, stored["model"], stored["model_cfg"], data)
    elif (folder / ABOUT_NAME).is_file():
        found = read_json(
            folder / ABOUT_NAME,
            lambda about: ExportedWeights(
                init_from, str(about["model"]), dict(about["model_cfg"]), dict(about["data"])
            ),
            remedy="export the run again",
        )
    elif (folder / "config.json").is_file():
        return _find_hf(folder, model)
    else:
        raise CheckpointError(
            f"init_from={init_from} holds no weights; give a run folder, one that nanozoo export "
            f"wrote ({ABOUT_NAME}), or one of transformers (config.json)"
        )
    if model not in (None, found.model):
        raise ConfigError(
            f"init_from={init_from} holds weights of {found.model}, not {model}; leave out --model"
        )
    return found


def model_of(init_from: object) -> str:
    """The model of a run that names none: that of its weights.

    Raises: ConfigError where `init_from` names no weights either; what `find_weights` raises.
    """
    if init_from in (None, "", "null"):
        raise ConfigError(no_model_message())
    return find_weights(str(init_from), None).model


def _find_hf(folder: Path, model: str | None) -> InitialWeights:
    from nanozoo_core.default_model_adapter import load_adapter, models_that_define

    if model is None:
        names = models_that_define("config_from_hf")
        raise ConfigError(
            f"init_from={folder} is a folder of transformers, which does not say the model here; "
            f"add --model NAME; models that read such folders: {', '.join(names) or 'none'}"
        )
    registry.check_model_name(model)
    theirs = _read_hf_config(folder)
    config = load_adapter(model).config_from_hf(theirs)
    if config is None:
        raise ConfigError(
            f"init_from={folder}: {model} does not read folders of transformers; start from a run"
        )
    model_cfg = schema.to_dict(config)
    data: dict[str, Any] = {"tokenizer": None}
    found = HFWeights(str(folder), model, model_cfg, data)
    if found.vocabulary is not None:
        data |= {"tokenizer": "bpe", "vocab_size": found.vocabulary.size}
    return found


def _read_hf_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", dict, remedy="give a folder of transformers")


def _read_folder(folder: Path, tables: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a folder, from one file or several, as float32."""
    from nanozoo_core.tensor_files import SafetensorError, read_tensors, require_finite

    names = [WEIGHTS_NAME]
    if (folder / INDEX_NAME).is_file():
        remedy = "get the folder anew"
        names = read_json(
            folder / INDEX_NAME, lambda i: sorted(set(i["weight_map"].values())), remedy=remedy
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / Path(name).name
        if not path.is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            raise CheckpointError(
                f"{folder} has no {name}"
                + (", and pickles are not read, since they can run code" * pickled)
                + "; save the weights as safetensors there"
            )
        try:
            tensors |= read_tensors(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    require_finite(tensors, folder, logarithms=set(tables))
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


# -- the settings that come with them -------------------------------------------------------------


def with_weights(settings: dict[str, Any], overrides: Collection[str] = ()) -> dict[str, Any]:
    """Composed settings with those of the weights in place of defaults, where `init_from` is set.

    Args: overrides: what was typed, such as "++model_cfg.num_layers=4": those keys, and others
        whose values differ from the model's YAML, are the user's own.

    Raises: ConfigError naming each key that contradicts the weights; CheckpointError.
    """
    if settings.get("init_from") is None or settings.get("resume") not in (None, "auto"):
        return settings
    weights = find_weights(str(settings["init_from"]), settings["model"])
    typed = {parse_override(word).key for word in overrides if "=" in word}
    shipped = merged(training_defaults(), model_defaults(weights.model))

    def own(section: str) -> dict[str, Any]:
        return {
            key: value
            for key, value in settings[section].items()
            if value is not None
            and (f"{section}.{key}" in typed or value != shipped[section].get(key))
        }

    model_cfg, data = own("model_cfg"), own("data")
    problems = check_model_cfg(weights, model_cfg)
    problems += _check_tokenizer(weights, data.get("tokenizer"))
    if problems:
        raise ConfigError(problems)
    known = {key: value for key, value in weights.data.items() if value is not None}
    if weights.vocabulary is not None:
        model_cfg |= {"vocab_size": None}
    if "seq_len" in data and _is_free(weights, "seq_len"):
        model_cfg = {"seq_len": None} | model_cfg
    merged_cfg = settings["model_cfg"] | weights.model_cfg | model_cfg
    filled = settings["data"] | known | data
    longest = weights.model_cfg.get("seq_len")
    if "seq_len" not in known and "seq_len" not in data and longest is not None:
        filled["seq_len"] = min(filled["seq_len"], longest)
    return settings | {"model_cfg": merged_cfg, "data": filled}


def check_model_cfg(weights: InitialWeights, model_cfg: Mapping[str, Any]) -> list[str]:
    """A sentence for every setting of these that the weights contradict."""
    return [
        f"model_cfg.{key}={show_value(value)} differs from the weights of {weights.place}, which "
        f"have {show_value(weights.model_cfg[key])}; leave it out"
        for key, value in model_cfg.items()
        if not _is_free(weights, key)
        and key in weights.model_cfg
        and value != weights.model_cfg[key]
    ]


def _is_free(weights: InitialWeights, key: str) -> bool:
    own = getattr(registry.config_class(weights.model), "not_of_the_weights", ())
    return key in (*FREE, *own) or key.endswith(FREE_ENDINGS)


def _check_tokenizer(weights: InitialWeights, tokenizer: str | None) -> list[str]:
    """A sentence for a `data.tokenizer` that is not that of the weights. Args: tokenizer: as the
    user typed it, or None."""
    own = weights.data.get("tokenizer")
    if tokenizer is None and own is None:
        return [
            f"init_from={weights.place} has no tokenizer.json; put there the one that the weights "
            f"were trained with, or say data.tokenizer=gpt2 or bytes if it was that"
        ]
    if tokenizer is None or weights.accepts_tokenizer(tokenizer):
        return []
    return [
        f"data.tokenizer={tokenizer} is not the tokenizer of the weights of {weights.place}, which "
        f"is {own}; leave it out, or train from the start"
    ]
