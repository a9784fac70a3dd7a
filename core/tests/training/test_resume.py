"""What a resumed run keeps, what it may change, and from which checkpoint it goes on."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch

from nanozoo_core.config import TrainingConfig, compose_config, resolve, training_config
from nanozoo_core.contract import DataPlan, DataStage
from nanozoo_core.data.prepare import prepare
from nanozoo_core.data.tokenizers import load_tokenizer
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import CheckpointError, ConfigError, DataError
from nanozoo_core.training import checkpoint, finish, records, runs, trainer
from nanozoo_core.training.resumable_settings import FREE, KEPT, RULES, START
from nanozoo_core.training.run_folder import RunFolder, parse_resume, read_state, write_state

Settings = dict[str, Any]


def begin(folder: Path, path: Path, *changes: str) -> RunFolder:
    """A toy run of eight steps, with a checkpoint at every second."""
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{path}'"]
    words += ["log.tensorboard=false", f"run_dir='{folder}'", "eval.bytes=300", *changes]
    return RunFolder(trainer.train(resolve(compose_config(words))).folder)


def changed(values: Settings, key: str, value: object) -> Settings:
    section, _, rest = key.partition(".")
    inner = changed(values[section], rest, value) if rest else value
    return values | {section: inner}


def resume(folder: RunFolder, *, at: int | None = None, **changes: object) -> trainer.Result:
    """Goes on with a run. Args: changes: by key, with __ for the dots."""
    name = str(folder) if at is None else f"{folder}@{at}"
    settings = folder.read_config() | {"resume": name}
    for key, value in changes.items():
        settings = changed(settings, key.replace("__", "."), value)
    return trainer.train(resolve(settings))


def tensors(folder: RunFolder) -> dict[str, torch.Tensor]:
    stems = ("model", "optimizer")
    newest = folder.latest_checkpoint()
    return {f"{s}.{n}": t for s in stems for n, t in checkpoint.read_tensors(newest, s).items()}


def equal(one: RunFolder, two: RunFolder) -> bool:
    first, second = tensors(one), tensors(two)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.fixture(scope="module")
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run stopped after 4 of its 8 steps; tests that write to it take a copy."""
    return begin(tmp_path_factory.mktemp("runs") / "half", corpus, "train.stop_after=4")


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return begin(tmp_path_factory.mktemp("runs") / "whole", corpus)


@pytest.fixture
def half(stopped: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(stopped.path, tmp_path / "half")))


@pytest.fixture(autouse=True)
def short_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with short samples and no picture."""
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda _: None)


# -- mixtures -----------------------------------------------------------------------------------


def test_a_resumed_run_reads_the_same_mixture(corpus: Path, tmp_path: Path) -> None:
    """And keeps its weights, while a source may move."""
    others = tmp_path / "others"
    others.mkdir()
    for number in range(20):
        (others / f"{number}.txt").write_text(f"number {number} " * 40)
    words = ["data.corpus=mixture", "data.path=null", "data.sources.a.corpus=text"]
    words += [f"data.sources.a.path='{corpus}'", "data.sources.a.weight=3"]
    words += ["data.sources.b.corpus=text", f"data.sources.b.path='{others}'"]
    whole = begin(tmp_path / "whole", corpus, *words)
    half = begin(tmp_path / "half", corpus, *words, "train.stop_after=4")
    with pytest.raises(CheckpointError, match=r"data\.sources\.b\.weight=2\.0 differs"):
        resume(half, data__sources__b__weight=2.0)
    moved = others.rename(tmp_path / "moved")
    resume(half, data__sources__b__path=str(moved))
    assert equal(whole, half)
    results = [run.read_result() for run in (whole, half)]
    assert results[0]["sources"] == results[1]["sources"]
    found = results[0]["sources"]
    assert {name: part["share"] for name, part in found.items()} == {"a": 0.75, "b": 0.25}
    num_bytes = sum(part["val_bytes"] for part in found.values())
    nats = sum(part["val_bpb"] * part["val_bytes"] for part in found.values())
    assert results[0]["val_bpb"] == pytest.approx(nats / num_bytes, rel=1e-12)
    last = whole.read_metrics()[-1]
    assert {last[f"val_bpb/{name}"] for name in found} == {p["val_bpb"] for p in found.values()}
    place = {"sources": {"b": {"path": str(moved)}}}
    run = runs.with_moved_data(runs.load_run(whole.path, device="cpu"), place)
    scored = runs.score(run, {}).values
    assert scored["sources_bpb"] == {name: part["val_bpb"] for name, part in found.items()}


# -- settings -----------------------------------------------------------------------------------


def keys_of(cls: type, prefix: str = "") -> set[str]:
    hints = get_type_hints(cls)
    found = set()
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            key, hint = f"{key}.*", get_args(hint)[1]
        found |= keys_of(hint, f"{key}.") if dataclasses.is_dataclass(hint) else {key}
    return found


def test_every_setting_has_a_rule() -> None:
    assert set(RULES) == keys_of(TrainingConfig)
    assert set(RULES.values()) == {KEPT, FREE, START}


def test_the_page_about_training_lists_what_is_kept() -> None:
    page = Path(__file__).parents[3] / "docs" / "pages" / "training.md"
    section = page.read_text(encoding="utf-8").partition("A resumed run keeps ")[2]
    listed = set(re.findall(r"`([a-z_.0-9*]+)`", section.partition("\n\n")[0]))
    assert listed == {key for key, rule in RULES.items() if rule == KEPT}


OTHER_VALUES = {
    "seed": 3,
    "data__corpus": "stdlib",
    "data__tokenizer": "gpt2",
    "data__vocab_size": 300,
    "data__seq_len": 16,
    "data__val_fraction": 0.2,
    "train__batch_tokens": 256,
    "train__ema": 0.5,
    "optim__name": "adamw",
    "optim__adamw__every": 2,
    "optim__muon__beta2": None,
    "optim__muon__impl": "torch",
    "eval__bytes": 400,
    "log__wandb_project": "mine",
    "model_cfg__num_layers": 2,
}


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_a_setting_that_is_kept_is_refused_by_name(half: RunFolder, key: str) -> None:
    settings: Settings = {key: OTHER_VALUES[key]}
    if key == "optim__muon__impl":  # which knows only some values of others
        settings |= {"optim__muon__orth": "ns5", "optim__muon__cautious": False}
        settings |= {"optim__muon__beta2": None}
    name = "optim.muon.beta2" if "muon" in key else key.replace("__", ".")
    with pytest.raises(CheckpointError, match=rf"{name}=.* differs from the run in {half}, which"):
        resume(half, **settings)
    assert half.checkpoint_steps() == [2, 4]


def test_settings_that_are_free_hold_from_there_on(half: RunFolder, corpus: Path) -> None:
    """A run that begins with them differs only before; the rate is that of the new schedule."""
    resume(half, optim__muon__lr=0.01, optim__schedule="constant", train__max_steps=6)
    rates = {row["step"]: row["lr"] for row in half.read_metrics() if "loss" in row}
    assert rates[4] != 0.01
    assert [rates[step] for step in (5, 6)] == [0.01, 0.01]
    assert half.read_result()["steps"] == 6


def test_the_size_of_a_micro_batch_is_free(half: RunFolder, whole: RunFolder) -> None:
    resume(half, train__micro_batch_tokens=32)
    for name, one in tensors(whole).items():
        torch.testing.assert_close(tensors(half)[name], one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_stop_that_lies_behind_is_refused(half: RunFolder, stop: int) -> None:
    with pytest.raises(CheckpointError, match=rf"train.stop_after={stop} is not after step 4"):
        resume(half, train__stop_after=stop)


def test_a_budget_that_is_passed_is_refused(half: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"past the budget of 3 steps \(train.max_steps\)"):
        resume(half, train__max_steps=3)
    resume(half, train__max_steps=4)
    assert half.read_result()["steps"] == 4


def test_a_run_goes_on_in_its_own_folder(half: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir=.* has no effect with resume="):
        resume(half, run_dir=str(tmp_path / "elsewhere"))


def test_a_run_of_a_version_with_other_settings_is_refused(half: RunFolder) -> None:
    stored = half.read_config()
    del stored["eval"]["bytes"]
    half.write_config(stored)
    with pytest.raises(CheckpointError, match=r"eval.bytes is a setting of nanozoo, but not of"):
        resume(half)


class Growing(DefaultModelAdapter):
    """Batches of twice the windows from the middle of the run on."""

    def data_plan(self, model_cfg: Any, config: TrainingConfig) -> DataPlan:
        seq_len, size = config.data.seq_len, config.train.batch_tokens
        stages = (DataStage(0.0, size, seq_len), DataStage(0.5, 2 * size, seq_len))
        return DataPlan(stages)


def test_a_budget_that_would_read_other_windows_is_refused(
    half: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DefaultModelAdapter, "data_plan", Growing.data_plan)
    with pytest.raises(CheckpointError, match="would have read other windows"):
        resume(half, train__max_steps=6)
    resume(half)


# -- data ---------------------------------------------------------------------------------------


def write_texts(folder: Path, numbers: range, word: str = "word") -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        words = [f"{word}{(number * 7 + i * i) % 23}" for i in range(300)]
        (folder / f"{number:03d}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", range(30))


BPE = ("data.tokenizer=bpe", "data.vocab_size=320", "train.stop_after=4")


def test_more_text_is_refused_unless_it_is_accepted(
    texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = begin(tmp_path / "run", texts, *BPE)
    before = (folder.path / "tokenizer.json").read_bytes()
    loaded = load_tokenizer(folder.path, runs.load_run(folder.path, device="cpu").config.data)
    write_texts(texts, range(30, 45), "other")
    for _ in range(2):  # the refusal itself must not change what is compared
        with pytest.raises(CheckpointError, match=r"text of text has changed.*resume_data=accept"):
            resume(folder)
    with caplog.at_level(logging.WARNING):
        runs.score(runs.load_run(folder.path, device="cpu"), {})
    assert "its score is on other text" in caplog.text
    resume(folder, resume_data="accept")
    assert (folder.path / "tokenizer.json").read_bytes() == before
    after = runs.load_run(folder.path, device="cpu").vocabulary
    assert after.equals(loaded)
    config = training_config(folder.read_config()).data
    assert not prepare(config).vocabulary.equals(loaded)  # what it would be if it were trained now
    tokens = prepare(config, vocabulary=loaded).train[0].tokens[:100]
    assert loaded.decode(tokens) in "".join(path.read_text() for path in sorted(texts.iterdir()))
    assert [row["step"] for row in folder.read_metrics() if "loss" in row] == list(range(1, 9))
    assert folder.read_config()["resume_data"] == "same"
    # What was accepted is what the run has from now on.
    resume(folder, train__max_steps=10)


def test_a_run_goes_on_with_its_tokenizer_from_an_empty_cache(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training the tokenizer again need not give the same one."""
    whole = begin(tmp_path / "whole", texts, *BPE[:2])
    split = begin(tmp_path / "split", texts, *BPE)
    monkeypatch.setenv("NANOZOO_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(
        "nanozoo_core.data.token_shards.train_bpe", lambda *_, **__: pytest.fail("trained again")
    )
    resume(split)
    assert equal(whole, split)


def test_the_same_text_may_lie_elsewhere(texts: Path, tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole", texts)
    split = begin(tmp_path / "split", texts, "train.stop_after=4")
    moved = texts.rename(tmp_path / "moved")
    resume(split, data__path=str(moved))
    assert equal(whole, split)


def test_the_same_documents_in_another_order_are_refused(texts: Path, tmp_path: Path) -> None:
    split = begin(tmp_path / "split", texts, "train.stop_after=4")
    for path in sorted(texts.iterdir()):
        path.rename(texts / f"{999 - int(path.stem):03d}.text")
    with pytest.raises(CheckpointError, match="come in another order"):
        resume(split)


def test_a_run_that_does_not_know_its_data_is_refused(half: RunFolder) -> None:
    half.data_path.unlink()
    with pytest.raises(CheckpointError, match="does not say which data it has read"):
        resume(half)


def test_a_run_without_its_tokenizer_is_refused(texts: Path, tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", texts, *BPE)
    (folder.path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"finds no tokenizer.json in"):
        resume(folder)


def test_accepting_data_needs_a_run() -> None:
    with pytest.raises(ConfigError, match="resume_data=accept has no effect without resume=RUN"):
        resolve(compose_config(["model=toy", "resume_data=accept"]))


# -- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["cut", "empty", "zeros", "gone"])
def test_a_damaged_newest_checkpoint_falls_back_to_a_whole_one(
    half: RunFolder, name: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = half.latest_checkpoint() / name
    content = path.read_bytes()
    harmed = {"cut": content[: len(content) * 2 // 3], "empty": b"", "zeros": bytes(len(content))}
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(harmed[harm])
    seen = []
    monkeypatch.setattr(trainer.Trainer, "run", lambda self, _: seen.append(self.state.step))
    resume(half)
    assert seen == [2]


def test_a_fallback_is_said_and_ends_as_if_nothing_had_happened(
    half: RunFolder, whole: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    path = half.latest_checkpoint() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        resume(half)
    assert "step_000004/model.safetensors is truncated or damaged" in caplog.text
    assert "going on from step 2" in caplog.text
    assert equal(half, whole)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_reader_passes_over_a_damaged_checkpoint(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str, name: str
) -> None:
    """As resume does: evaluate, generate, export, inspect and show all read runs here."""
    run = begin(tmp_path / "run", corpus, "train.ema=0.5", "eval.every=2", "train.max_steps=4")
    assert checkpoint.best_whole(run, ("model",)) == 4
    run.checkpoint(4).joinpath(name).write_bytes(b"")
    assert runs.load_run(run.path, device="cpu", checkpoint=which).state.step == 2
    assert f"step_000004/{name}" in caplog.text
    assert "going on from step 2, the newest that is whole" in caplog.text
    with pytest.raises(CheckpointError, match="damaged"):
        runs.load_run(run.path, device="cpu", checkpoint="4")


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(
    half: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    newest, best = half.checkpoint_steps()[-1], half.checkpoint_steps()[0]
    path = half.checkpoint(newest)
    write_state(path, dataclasses.replace(read_state(path), best_step=best))
    assert checkpoint.best_whole(half, ("model",)) == best
    (half.checkpoint(best) / "model.safetensors").write_bytes(b"")
    assert runs.load_run(half.path, device="cpu", checkpoint="best").state.step == newest
    assert f"going on from step {newest}" in caplog.text


def test_an_earlier_checkpoint_is_resumed_on_purpose(half: RunFolder, whole: RunFolder) -> None:
    resume(half, at=2, train__stop_after=3)
    assert half.checkpoint_steps() == [2, 3]
    assert [p.name for p in half.checkpoints_path.glob("aside*")] == ["aside_1_step_000004"]
    assert max(row["step"] for row in half.read_metrics()) == 3
    resume(half)
    assert equal(half, whole)


def test_a_finished_run_goes_back(whole: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(whole.path, tmp_path / "copy")))
    resume(folder, at=6, train__stop_after=7)
    assert not folder.is_finished
    resume(folder)
    assert equal(folder, whole)
    assert folder.read_result()["val_bpb"] == whole.read_result()["val_bpb"]


def test_going_back_behind_the_best_seeks_another(half: RunFolder) -> None:
    for step in (2, 4):
        path = half.checkpoint(step)
        write_state(path, dataclasses.replace(read_state(path), best_bpb=0.1, best_step=1))
    resume(half, at=2)
    assert checkpoint.best_whole(half, ("model",)) == 8


def test_a_step_that_is_not_there_is_refused(half: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"half@3 is not there; .* these steps: 2, 4"):
        resume(half, at=3)


def test_a_folder_may_have_an_at_sign(tmp_path: Path) -> None:
    folder = tmp_path / "run@20"
    assert parse_resume(str(folder)) == (RunFolder(tmp_path / "run"), 20)
    folder.mkdir()
    assert parse_resume(str(folder)) == (RunFolder(folder), None)
    assert parse_resume(f"{folder}@7") == (RunFolder(folder), 7)
    assert parse_resume("me@host/run") == (RunFolder(Path("me@host/run")), None)
