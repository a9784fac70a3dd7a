"""Runs as files of llama.cpp: `nanozoo export RUN --to gguf`.

The model's adapter supplies settings and tensors of an architecture there; the tokenizer is written
here, as a byte-pair vocabulary of GPT-2's kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanozoo_core.data.hf_tokenizer import byte_signs, find_merges
from nanozoo_core.data.tokenizers import Tokenizer
from nanozoo_core.default_model_adapter import models_that_define
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import claim_output, whole_path, write_text
from nanozoo_core.tensor_files import require_finite
from nanozoo_core.training.model_card import card

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun

FILE_NAME = "model.gguf"
OF_GPT2, OF_LLAMA3 = "gpt-2", "llama-bpe"  # llama.cpp's names for ways to cut a text
CUTS = (
    "llama.cpp cuts a text into words by patterns of its own, of which none is that of this "
    "vocabulary; it uses the nearest, that of Llama 3. Of Python source about one "
    "token in thirteen is another there than in training, above all line breaks with the "
    "indentation behind them."
)


def export_gguf(run: LoadedRun, folder: Path, *, force: bool = False) -> str:
    """Writes model.gguf, in float32, and a README.md into `folder`.

    Returns: a sentence on what differs in llama.cpp; empty where nothing does.
    Raises: ConfigError when llama.cpp has no such model, or the package gguf is missing, or the
        folder holds what was not exported, unless that is forced; NonFiniteError.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "--to gguf writes with the package gguf; install nanozoo-core[gguf]"
        ) from error
    found = run.adapter.to_gguf(run.model)
    if found is None:
        able = models_that_define("to_gguf")
        raise ConfigError(
            f"llama.cpp has no architecture that computes what {run.config.model} does; models "
            f"that have one: {', '.join(able) or 'none'}; --to safetensors writes any model"
        )
    require_finite(found.tensors, f"the exported {run.config.model}")
    claim_output(folder, "nanozoo export", setting="--output", force=force)
    with whole_path(folder / FILE_NAME) as path:
        writer = gguf.GGUFWriter(path, found.architecture)
        writer.add_name(f"{run.config.model} by nanozoo")
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for key, value in found.settings.items():
            add: Any = writer.add_bool if isinstance(value, bool) else writer.add_uint32
            add = writer.add_float32 if isinstance(value, float) else add
            add(f"{found.architecture}.{key}", value)
        exact = _add_tokenizer(writer, run.vocabulary)
        for name, tensor in found.tensors.items():
            writer.add_tensor(name, tensor.detach().cpu().float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    note = "" if exact else CUTS
    write_text(folder / "README.md", card(run, folder, "gguf", note=note))
    return note


def _add_tokenizer(writer: Any, ours: Tokenizer) -> bool:
    """Writes a vocabulary; returns whether llama.cpp gives every text the same ids."""
    import gguf

    signs = byte_signs()
    texts = ours.ids()
    names = {id: text for text, id in texts.items() if isinstance(text, str)}
    ranks = {text: id for text, id in texts.items() if isinstance(text, bytes)}
    readable = {id: "".join(signs[byte] for byte in text) for text, id in ranks.items()}
    tokens = [names.get(id, readable.get(id, f"[unused {id}]")) for id in range(ours.size)]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(OF_LLAMA3 if ours.name == "bpe" else OF_GPT2)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [
            kinds.CONTROL if id in names else kinds.NORMAL if id in readable else kinds.UNUSED
            for id in range(ours.size)
        ]
    )
    merges = [
        " ".join("".join(signs[byte] for byte in part) for part in pair)
        for pair in find_merges(ranks)
    ]
    # llama.cpp wants at least one; the byte 255 stands in no UTF-8, so this one joins nothing.
    writer.add_token_merges(merges or [f"{signs[255]} {signs[255]}"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(ours.separator)
    writer.add_add_bos_token(True)
    return ours.name != "bpe"
