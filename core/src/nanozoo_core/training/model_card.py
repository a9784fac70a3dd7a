"""The README.md of an exported run: what it is, how well it does, and how to use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nanozoo_core import registry
from nanozoo_core.data.tokenizers import SEPARATOR
from nanozoo_core.training.run_folder import RunFolder, Samples

if TYPE_CHECKING:
    from nanozoo_core.training.runs import LoadedRun

CARD = """\
# {model}, trained by nanozoo

{summary}

{score} `{corpus}`; {params:,} parameters, trained on windows of {seq_len} tokens.
Documents start with `{separator}`, which {starts}.

{usage}
"""

SAMPLE = """
## A text that it wrote

After the prompt {prompt}, at temperature 0.8:

```text
{text}
```
"""


def write_usage(form: str, folder: Path, prompt: str) -> str:
    """How the folder is used. Args: form: hf, safetensors or gguf."""
    return {"hf": HF, "safetensors": SAFETENSORS, "gguf": GGUF}[form].format(
        folder=folder.name, prompt=json.dumps(prompt, ensure_ascii=False)
    )


HF = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
ids = tokenizer({prompt}, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=60)[0], skip_special_tokens=True))
```"""

SAFETENSORS = """\
`train init_from={folder} data.corpus=text data.path=PATH` trains it further. In Python:

```python
import json

from nanozoo_core.config import model_config
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.tensor_files import read_tensors

with open("{folder}/nanozoo.json") as file:
    about = json.load(file)
model = load_adapter(about["model"]).make_model(model_config(about["model"], about["model_cfg"]))
model.load_state_dict(read_tensors("{folder}/model.safetensors"))
```"""

GGUF = """\
```sh
llama-completion -m {folder}/model.gguf -p {prompt} -n 60 --temp 0.8
```"""


def card(run: LoadedRun, folder: Path, form: str, *, note: str = "") -> str:
    """Args: form: as for `write_usage`; note: a sentence that a user of this form needs."""
    of_run = RunFolder(run.folder)
    result = of_run.read_result() if of_run.is_finished else {}
    samples = of_run.read_samples() if result else Samples()
    score = "An unfinished run, with an unknown score on"
    if result:
        bound = "At most " if result.get("bound", run.adapter.likelihood) == "upper" else ""
        score = (
            f"{bound}{result['val_bpb']:.4f} bits per byte on {result['val_bytes']:,} validation "
            f"bytes of"
        )
    starts = {
        "hf": "the tokenizer puts before every text",
        "gguf": "llama.cpp puts before every text, as its file says",
    }
    text = CARD.format(
        model=run.config.model,
        summary=registry.model_summaries().get(run.config.model, ""),
        score=score,
        corpus=run.config.data.corpus,
        params=sum(parameter.numel() for parameter in run.model.parameters()),
        seq_len=run.config.data.seq_len,
        separator=SEPARATOR,
        starts=starts.get(form, f"is token {run.vocabulary.separator}"),
        usage=write_usage(form, folder, samples.prompt),
    )
    if note:
        text += f"\n{note}\n"
    if samples.texts:
        last = samples.texts[-1]
        prompt = f"`{last.prompt.splitlines()[0]}`" if last.prompt.strip() else "of nothing"
        text += SAMPLE.format(prompt=prompt, text=last.text.replace("```", "` ` `"))
    return text
