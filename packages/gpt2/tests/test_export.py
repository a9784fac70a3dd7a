"""`nanozoo export --to hf`: transformers' Auto classes load the folder and compute the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nanozoo_core.config import compose, compose_config, model_config, training_config
from nanozoo_core.data.tokenizers import train_bpe
from nanozoo_core.default_model_adapter import load_adapter, models_that_define
from nanozoo_core.errors import ConfigError
from nanozoo_core.training.export import export_hf
from nanozoo_core.training.run_folder import TrainState
from nanozoo_core.training.runs import LoadedRun

transformers = pytest.importorskip("transformers")

TEXT = Path(compose.__file__).read_text()


@pytest.fixture
def run(tmp_path: Path) -> LoadedRun:
    """An untrained model over a byte-pair vocabulary of 300, as if it came from a run folder."""
    vocabulary = train_bpe([TEXT], vocab_size=300)
    config = training_config(compose_config(["model=gpt2", "data.seq_len=64"]))
    adapter = load_adapter("gpt2")
    changes = {"num_layers": 2, "model_dim": 32, "pad_vocab_to": 64}
    model_cfg = model_config(
        "gpt2", config.model_cfg | changes, seq_len=64, vocab_size=vocabulary.size
    )
    torch.manual_seed(0)
    model = adapter.build(model_cfg, vocabulary).eval()
    state = TrainState(model="gpt2")
    return LoadedRun(
        tmp_path / "run", config, model_cfg, state, adapter, model, vocabulary, torch.device("cpu")
    )


@torch.no_grad()
def test_the_auto_classes_compute_the_same(run: LoadedRun, tmp_path: Path) -> None:
    export_hf(run, tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = "def f(x):"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0].tolist() == [run.vocabulary.separator, *run.vocabulary.encode(prompt)]
    torch.testing.assert_close(model(ids).logits, run.model(ids), rtol=0, atol=1e-5)
    written = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True).startswith(prompt)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "unfinished run" in card


def test_a_finished_run_tells_its_score(run: LoadedRun, tmp_path: Path) -> None:
    run.folder.mkdir()
    (run.folder / "result.json").write_text(json.dumps({"val_bpb": 1.5, "val_bytes": 1000}))
    export_hf(run, tmp_path / "hf")
    assert (
        "1.5000 bits per byte on 1,000 validation bytes"
        in (tmp_path / "hf" / "README.md").read_text()
    )
    export_hf(dataclasses.replace(run), tmp_path / "hf")  # again, over the first


def test_a_folder_of_other_files_is_left_alone(run: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"holds thesis\.txt, which nanozoo export did not write"):
        export_hf(run, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_gpt2_is_listed() -> None:
    assert "gpt2" in models_that_define("to_hf")
