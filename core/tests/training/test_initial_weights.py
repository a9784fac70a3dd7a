"""A run that begins with given weights: what it takes from them, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core.config import compose_config, model_config, resolve, schema
from nanozoo_core.data.tokenizers import Tokenizer, train_bpe
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.freezing import freeze
from nanozoo_core.testing.processes import train_in_processes
from nanozoo_core.training import checkpoint, finish, records
from nanozoo_core.training.export import export_safetensors
from nanozoo_core.training.filling import begin_with
from nanozoo_core.training.initial_weights import InitialWeights, with_weights
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.runs import load_run
from nanozoo_core.training.setup import Setup, set_up
from nanozoo_core.training.trainer import Trainer, train

Words = list[str]


def words(corpus: Path, *changes: str) -> Words:
    first = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    return [*first, "log.tensorboard=false", "eval.bytes=300", "train.max_steps=4", *changes]


@pytest.fixture(autouse=True)
def short_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda folder: None)


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a byte-pair vocabulary, of two layers, that averages its weights."""
    folder = tmp_path_factory.mktemp("source") / "run"
    changes = ["data.tokenizer=bpe", "data.vocab_size=270", "model_cfg.num_layers=2"]
    settings = compose_config(words(corpus, *changes, "train.ema=0.5", f"run_dir='{folder}'"))
    return train(resolve(settings)).folder


def averaged(source: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(RunFolder(source).latest_checkpoint(), "ema")


def filled(corpus: Path, source: Path | str, *changes: str) -> dict[str, Any]:
    typed = [f"init_from='{source}'", *changes]
    return with_weights(compose_config(words(corpus, *typed)), typed)


def begun(corpus: Path, source: Path | str, *changes: str) -> Setup:
    return set_up(resolve(filled(corpus, source, *changes)), Ranks())


def assert_begun(setup: Setup, source: Path) -> None:
    expected = averaged(source)
    assert expected.keys() == dict(setup.model.named_parameters()).keys()
    for name, parameter in setup.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_the_averaged_weights_the_settings_and_the_tokenizer_of_a_run(
    corpus: Path, source: Path
) -> None:
    setup = begun(corpus, source, "data.seq_len=16")
    assert_begun(setup, source)
    assert setup.model_cfg.num_layers == 2
    assert setup.model_cfg.seq_len == 16  # no table depends on it
    assert setup.data.vocabulary.size == 270
    assert "weights" in setup.notes[0]
    assert setup.config.init_digest is not None
    again = begun(corpus, source, f"init_digest={setup.config.init_digest}")
    assert again.config.init_digest == setup.config.init_digest
    with pytest.raises(ConfigError, match="holds other weights than init_digest=00"):
        begun(corpus, source, "init_digest='00'")


def test_an_exported_folder_begins_a_run_too(
    corpus: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_safetensors(load_run(source, device="cpu"), tmp_path / "mine")
    assert_begun(begun(corpus, tmp_path / "mine"), source)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "def " not in card
    assert "After the prompt `word" in card
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    exec(code, told)
    for name, parameter in told["model"].named_parameters():
        assert torch.equal(parameter, averaged(source)[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model_cfg.num_layers=3", "model_cfg.num_layers=3 differs from the weights of .* have 2"),
        # The YAML's own value, typed, is the user's all the same.
        ("model_cfg.num_layers=1", "model_cfg.num_layers=1 differs from the weights of .* have 2"),
        ("data.tokenizer=bytes", "data.tokenizer=bytes is not the tokenizer .* which is bpe"),
    ],
)
def test_what_contradicts_the_weights_is_refused_by_its_key(
    corpus: Path, source: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        filled(corpus, source, change)
    filled(corpus, source, "model_cfg.num_layers=2", "data.tokenizer=bpe")  # the same is fine


def test_settings_that_did_not_come_from_the_weights_are_refused(
    corpus: Path, source: Path
) -> None:
    plain = compose_config(words(corpus, f"init_from='{source}'", "data.tokenizer=bpe"))
    with pytest.raises(ConfigError, match=r"model_cfg.num_layers=1 differs"):
        set_up(resolve(plain), Ranks())


def test_a_place_without_weights_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights; give a run folder"):
        filled(corpus, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="toy does not read folders of transformers"):
        filled(corpus, tmp_path)


def test_such_a_run_is_resumed_without_its_source(
    corpus: Path, source: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    frozen = "train.freeze=[embedding,blocks.0]"
    ends = {}
    for name, changes in (("whole", []), ("half", ["train.stop_after=2"])):
        settings = filled(corpus, copy, frozen, f"run_dir='{tmp_path / name}'", *changes)
        train(resolve(settings))
    shutil.rmtree(copy)
    half = RunFolder(tmp_path / "half")
    assert len(half.read_config()["init_digest"]) == 64
    train(resolve(half.read_config() | {"resume": str(half)}))
    for name in ("whole", "half"):
        newest = RunFolder(tmp_path / name).latest_checkpoint()
        ends[name] = {
            stem: checkpoint.read_tensors(newest, stem) for stem in ("model", "optimizer")
        }
    for stem, tensors in ends["whole"].items():
        assert tensors.keys() == ends["half"][stem].keys()
        assert all(torch.equal(t, ends["half"][stem][name]) for name, t in tensors.items())
    before, model = averaged(source), ends["whole"]["model"]
    still = {name for name in model if torch.equal(model[name], before[name])}
    assert still == {name for name in model if name.startswith(("embedding", "blocks.0"))}
    states = {key.rpartition(".")[0] for key in ends["whole"]["optimizer"]}
    assert states == model.keys() - still


def test_the_average_of_a_run_begins_with_the_weights(corpus: Path, source: Path) -> None:
    trainer = Trainer(resolve(filled(corpus, source, "train.ema=0.9")), Ranks())
    trainer.claim.release()
    for name, mean in trainer.average.tensors().items():
        assert torch.equal(mean, averaged(source)[name])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_is_not_frozen(
    corpus: Path, source: Path, tmp_path: Path, strategy: str
) -> None:
    settings = ["data.tokenizer=bpe", "data.vocab_size=270", "model_cfg.num_layers=2"]
    settings += [f"init_from='{source}'", "train.freeze=[embedding,blocks.0]", "train.ema=0.5"]
    folders = {n: tmp_path / f"{n}" for n in (1, 2)}
    for number, folder in folders.items():
        train_in_processes(
            words(corpus, *settings, f"distributed.strategy={strategy}", f"run_dir='{folder}'"),
            log=tmp_path / f"log{number}",
            num_processes=number,
        )
    one, two = (
        checkpoint.read_tensors(RunFolder(folder).latest_checkpoint(), "model")
        for folder in folders.values()
    )
    for name, before in averaged(source).items():
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(two[name], before) == name.startswith(("embedding", "blocks.0"))


# -- a vocabulary that has grown ------------------------------------------------------------------

TEXT = "some words and some more words, and then other words and more; " * 9


class Given(InitialWeights):
    """Weights in memory."""

    def __init__(self, vocabulary: Tokenizer, tensors: dict[str, torch.Tensor]) -> None:
        cfg = schema.to_dict(model_config("toy", {}, vocab_size=vocabulary.size))
        super().__init__("mine", "toy", cfg, {"tokenizer": vocabulary.name})
        object.__setattr__(self, "vocabulary", vocabulary)
        object.__setattr__(self, "given", tensors)

    vocabulary: Tokenizer  # type: ignore[assignment]

    def tensors(self, adapter: object, tables: object) -> dict[str, torch.Tensor]:
        return dict(self.__dict__["given"])


def build(vocabulary: Tokenizer, seed: int) -> tuple[Any, torch.nn.Module]:
    adapter = load_adapter("toy")
    torch.manual_seed(seed)
    config = model_config("toy", {}, vocab_size=vocabulary.size)
    return config, adapter.build(config, vocabulary)


def test_new_tokens_get_the_rows_that_the_model_draws() -> None:
    old, new = (train_bpe([TEXT], vocab_size=size) for size in (264, 275))
    _, trained = build(old, 0)
    config, model = build(new, 1)
    fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = Given(old, checkpoint.model_tensors(trained))
    _, note = begin_with(weights, load_adapter("toy"), model, config, new, digest=None)
    assert "11 tokens are new" in note
    ids = old.ids()
    for name in ("embedding.weight", "head.weight"):
        before, after = trained.get_parameter(name), model.get_parameter(name)
        for token, id in new.ids().items():
            expected = before[ids[token]] if token in ids else fresh[name][id]
            assert torch.equal(after[id], expected)
    assert ids["<|endoftext|>"] != new.ids()["<|endoftext|>"]  # it went by its name
    qkv = "blocks.0.attention.qkv.weight"
    assert torch.equal(model.get_parameter(qkv), trained.get_parameter(qkv))


def test_a_vocabulary_that_lacks_a_token_is_refused() -> None:
    old, new = (train_bpe([text], vocab_size=270) for text in (TEXT, "xyz uvw xyzw " * 9))
    _, trained = build(old, 0)
    config, model = build(new, 1)
    weights = Given(old, checkpoint.model_tensors(trained))
    with pytest.raises(ConfigError, match=r"is not that of the weights of mine \(bpe, 270 ids"):
        begin_with(weights, load_adapter("toy"), model, config, new, digest=None)


# -- freezing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "starts"),
    [
        (["embedding"], ("embedding.",)),
        (["blocks.0"], ("blocks.0.",)),
        (["blocks.*.mlp.*", "head"], ("blocks.0.mlp.", "head.")),
        (["embedding.weight"], ("embedding.",)),
    ],
)
def test_roles_names_and_patterns_freeze(patterns: list[str], starts: tuple[str, ...]) -> None:
    _, model = build(train_bpe([TEXT], vocab_size=264), 0)
    frozen = freeze(model, load_adapter("toy").parameter_roles(model), patterns)
    expected = [name for name, _ in model.named_parameters() if name.startswith(starts)]
    assert frozen == expected
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == expected


def test_a_pattern_without_a_match_says_what_there_is() -> None:
    _, model = build(train_bpe([TEXT], vocab_size=264), 0)
    roles = load_adapter("toy").parameter_roles(model)
    with pytest.raises(ConfigError, match=r"train.freeze=block is no parameter.*head.*embedding"):
        freeze(model, roles, ["block"])
    with pytest.raises(ConfigError, match=r"train.freeze=\* freezes every parameter"):
        freeze(model, roles, ["*"])


def test_about_is_plain_data(source: Path, tmp_path: Path) -> None:
    export_safetensors(load_run(source, device="cpu"), tmp_path / "mine")
    about = json.loads((tmp_path / "mine" / "nanozoo.json").read_text())
    assert about["model"] == "toy"
    assert about["data"] == {"tokenizer": "bpe", "vocab_size": 270, "seq_len": 32}
