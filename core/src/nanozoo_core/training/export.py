"""Runs as Hugging Face folders: `nanozoo export RUN --to hf`.

The model's adapter supplies the config and the weights in the layout of a class of transformers;
the tokenizer is written here, since it belongs to the run and not to the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core import registry
from nanozoo_core.data.hf_tokenizer import hf_tokenizer
from nanozoo_core.data.tokenizers import SEPARATOR
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import claim_output, write_json, write_text
from nanozoo_core.tensor_files import require_finite, write_tensors
from nanozoo_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun

CARD = """\
# {model}, trained by nanozoo

{score} bits per byte on {num_bytes:,} validation bytes of `{corpus}`; {params:,} parameters.
Documents start with `{separator}`, which the tokenizer puts before every text.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
ids = tokenizer("def ", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=60)[0], skip_special_tokens=True))
```
"""


def export_hf(run: LoadedRun, folder: Path, *, force: bool = False) -> None:
    """Writes config.json, model.safetensors, the tokenizer and a README.md into `folder`, from
    which transformers' Auto classes load the model.

    Raises: ConfigError when no class of transformers computes what this model does, or the package
        tokenizers is missing, or the folder holds what was not exported, unless that is forced;
        NonFiniteError for weights that are not finite.
    """
    found = run.adapter.to_hf(run.model)
    if found is None:
        able = ", ".join(exportable_models()) or "none"
        raise ConfigError(
            f"{run.config.model} has no class in transformers that computes the same; models that "
            f"have one: {able}"
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
    write_text(folder / "README.md", _card(run, folder))


def exportable_models() -> list[str]:
    """The installed models whose adapter has a `to_hf` of its own."""
    adapters = {name: type(load_adapter(name)) for name in registry.model_modules()}
    return [name for name, cls in adapters.items() if cls.to_hf is not DefaultModelAdapter.to_hf]


def _tokenizer_config(run: LoadedRun) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "pad_token": SEPARATOR,
        "model_max_length": run.config.data.seq_len,
        "clean_up_tokenization_spaces": False,
    }


def _card(run: LoadedRun, folder: Path) -> str:
    folder_of_run = RunFolder(run.folder)
    result = folder_of_run.read_result() if folder_of_run.is_finished else {}
    return CARD.format(
        model=run.config.model,
        score=f"{result['val_bpb']:.4f}" if result else "unfinished run, unknown",
        num_bytes=result.get("val_bytes", 0),
        corpus=run.config.data.corpus,
        params=sum(parameter.numel() for parameter in run.model.parameters()),
        separator=SEPARATOR,
        folder=folder.name,
    )
