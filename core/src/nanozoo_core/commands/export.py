"""Runs as Hugging Face folders: `nanozoo export RUN --to hf`.

The model's adapter supplies the config and the weights in the layout of a class of transformers;
the tokenizer is written here, since it belongs to the run and not to the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from nanozoo_core import registry
from nanozoo_core.data.tokenizers import SEPARATOR, Tokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import CheckpointError, ConfigError
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


def export_hf(run: LoadedRun, folder: Path) -> None:
    """Writes config.json, model.safetensors, the tokenizer and a README.md into `folder`, from
    which transformers' Auto classes load the model.

    Raises: ConfigError when no class of transformers computes what this model does, or the package
        tokenizers is missing; CheckpointError when the folder holds something else.
    """
    found = run.adapter.to_hf(run.model)
    if found is None:
        able = ", ".join(exportable_models()) or "none"
        raise ConfigError(
            f"{run.config.model} has no class in transformers that computes the same; models that "
            f"have one: {able}"
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(f"--output={folder} holds other files; choose another folder")
    config, tensors = found
    tokenizer = hf_tokenizer(run.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    separator = run.vocabulary.separator
    ids = {"bos_token_id": separator, "eos_token_id": separator, "pad_token_id": separator}
    _write(folder / "config.json", config | ids | {"dtype": "float32"})
    _write(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.8})
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", _tokenizer_config(run))
    (folder / "README.md").write_text(_card(run, folder), encoding="utf-8")


def exportable_models() -> list[str]:
    """The installed models whose adapter has a `to_hf` of its own."""
    adapters = {name: type(load_adapter(name)) for name in registry.model_modules()}
    return [name for name, cls in adapters.items() if cls.to_hf is not DefaultModelAdapter.to_hf]


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


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


# -- the tokenizer --------------------------------------------------------------------------------


def hf_tokenizer(ours: Tokenizer) -> Any:
    """The same ids from a `tokenizers.Tokenizer`, which also puts the separator before every text;
    as all there, it takes the separator's name in a text for the separator.

    Raises: ConfigError when the package is missing.
    """
    try:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
        from tokenizers import Tokenizer as HFTokenizer
    except ImportError as error:
        raise ConfigError(
            "the export writes the tokenizer with the package tokenizers; install nanozoo-core[hf]"
        ) from error
    encoding = ours.encoding
    special = {text: encoding.encode_single_token(text) for text in encoding.special_tokens_set}
    ranks = {
        encoding.decode_single_token_bytes(token): token
        for token in range(ours.size)
        if token not in special.values()
    }
    signs = byte_signs()
    vocabulary = {_readable(token, signs): rank for token, rank in ranks.items()}
    merges = [
        (_readable(left, signs), _readable(right, signs)) for left, right in find_merges(ranks)
    ]
    theirs = HFTokenizer(models.BPE(vocab=vocabulary | special, merges=merges))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if merges:  # without, where a text is split makes no difference
        steps.insert(0, pre_tokenizers.Split(Regex(encoding._pat_str), "isolated"))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(steps)
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens([AddedToken(text, special=True) for text in special])
    theirs.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A",
        pair=f"{SEPARATOR} $A {SEPARATOR} $B",
        special_tokens=[(SEPARATOR, ours.separator)],
    )
    return theirs


def find_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs that byte-pair encoding joins, by rank: each token of several bytes is what its
    bytes become under the merges before it, joined once more."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) < 2:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(parts[n] + parts[n + 1], rank) for n in range(len(parts) - 1)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def byte_signs() -> list[str]:
    """A printable character for each byte, as GPT-2's vocabulary files have it: printable Latin-1
    bytes stand for themselves, the others for the characters from 256 on, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _readable(token: bytes, signs: list[str]) -> str:
    return "".join(signs[byte] for byte in token)
