"""Runs as folders of safetensors: of transformers, `nanozoo export RUN --to hf`, or of our own,
`--to safetensors`.

For transformers the model's adapter supplies the config and the weights in the layout of a class
there; the tokenizer is written here, since it belongs to the run and not to the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.config import schema
from nanozoo_core.data.hf_tokenizer import hf_tokenizer
from nanozoo_core.data.tokenizers import SEPARATOR, save_tokenizer
from nanozoo_core.default_model_adapter import models_that_define
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import claim_output, write_json, write_text
from nanozoo_core.tensor_files import require_finite, write_tensors
from nanozoo_core.training.checkpoint import model_tensors, table_names
from nanozoo_core.training.initial_weights import ABOUT_NAME, WEIGHTS_NAME
from nanozoo_core.training.model_card import card

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun


def export_hf(run: LoadedRun, folder: Path, *, force: bool = False) -> None:
    """Writes config.json, model.safetensors, the tokenizer and a README.md into `folder`, from
    which transformers' Auto classes load the model.

    Raises: ConfigError when no class of transformers computes what this model does, or the package
        tokenizers is missing, or the folder holds what was not exported, unless that is forced;
        NonFiniteError for weights that are not finite.
    """
    found = run.adapter.to_hf(run.model)
    if found is None:
        able = ", ".join(models_that_define("to_hf")) or "none"
        raise ConfigError(
            f"{run.config.model} has no class in transformers that computes the same; models that "
            f"have one: {able}; --to safetensors writes any model"
        )
    config, tensors = found
    require_finite(tensors, f"the exported {run.config.model}")
    tokenizer = hf_tokenizer(run.vocabulary)
    claim_output(folder, "nanozoo export", setting="--output", force=force)
    separator = run.vocabulary.separator
    ids = {"bos_token_id": separator, "eos_token_id": separator, "pad_token_id": separator}
    write_json(folder / "config.json", config | ids | {"dtype": "float32"})
    write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.8})
    write_tensors(folder / "model.safetensors", tensors)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(run))
    write_text(folder / "README.md", card(run, folder, "hf"))


def _tokenizer_config(run: LoadedRun) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "pad_token": SEPARATOR,
        "model_max_length": run.config.data.seq_len,
        "clean_up_tokenization_spaces": False,
    }


def export_safetensors(run: LoadedRun, folder: Path, *, force: bool = False) -> None:
    """Writes model.safetensors, nanozoo.json with the settings, the tokenizer where it was trained
    and a README.md into `folder`, from which `init_from` begins.

    Raises: ConfigError as `export_hf`; NonFiniteError for weights that are not finite.
    """
    tensors = model_tensors(run.model)
    tables = table_names(run.model)
    require_finite(tensors, f"the exported {run.config.model}", logarithms=tables)
    claim_output(folder, "nanozoo export", setting="--output", force=force)
    data = run.config.data
    write_tensors(folder / WEIGHTS_NAME, tensors)
    save_tokenizer(run.vocabulary, folder)
    about = {
        "model": run.config.model,
        "model_cfg": schema.to_dict(run.model_cfg),
        "data": {
            "tokenizer": run.vocabulary.name,
            "vocab_size": data.vocab_size,
            "seq_len": data.seq_len,
        },
        "step": run.state.step,
    }
    write_json(folder / ABOUT_NAME, about)
    write_text(folder / "README.md", card(run, folder, "safetensors"))
