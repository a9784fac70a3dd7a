"""Changed bytes, exchanged and missing files of a run: none goes unnoticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanozoo_core.commands.cli import main
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.data import cache
from nanozoo_core.errors import CheckpointError, NanozooError
from nanozoo_core.tensor_files import write_tensors
from nanozoo_core.training import checkpoint, finish, records, runs, trainer
from nanozoo_core.training.run_folder import RunFolder, read_state, write_state

BPE = ("data.tokenizer=bpe", "data.vocab_size=320")


def train(corpus: Path, folder: Path, *changes: str) -> RunFolder:
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'", *BPE]
    words += ["log.tensorboard=false", "eval.bytes=300", "train.ema=0.5"]
    words += [f"run_dir='{folder}'", "train.stop_after=4", *changes]
    return RunFolder(trainer.train(resolve(compose_config(words))).folder)


def resume(folder: RunFolder, **changes: str) -> trainer.Result:
    return trainer.train(resolve(folder.read_config() | {"resume": str(folder)} | changes))


@pytest.fixture(scope="module")
def written(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with averaged weights and a tokenizer of its own, stopped after 4 of its 8 steps."""
    return train(corpus, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(written: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(finish, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(records, "plot_losses", lambda _: None)
    return RunFolder(Path(shutil.copytree(written.path, tmp_path / "run")))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


STEMS = checkpoint.stems(is_averaged=True)


@pytest.mark.parametrize("name", [*(f"{stem}.safetensors" for stem in STEMS), "state.json"])
def test_a_flipped_bit_of_a_checkpoint_is_noticed(run: RunFolder, name: str) -> None:
    path = run.latest_checkpoint() / name
    content = path.read_bytes()
    for place in (0.001, 0.3, 0.6, 0.99):
        flip(path, place)
        with pytest.raises(NanozooError, match=r"step_000004"):
            checkpoint.check_whole(run.checkpoint(4), STEMS)
        path.write_bytes(content)
    checkpoint.check_whole(run.checkpoint(4), STEMS)


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json"])
def test_a_flipped_bit_of_the_run_is_noticed(run: RunFolder, name: str) -> None:
    path = run.path / name
    content = path.read_bytes()
    for place in (0.01, 0.2, 0.5, 0.8):
        flip(path, place)
        with pytest.raises(NanozooError, match=name):
            runs.load_run(run.path, device="cpu")
        with pytest.raises(NanozooError):  # a key that is changed so is said first
            resume(RunFolder(run.path))
        path.write_bytes(content)
    runs.load_run(run.path, device="cpu")


def test_a_run_goes_on_from_the_checkpoint_before_a_changed_one(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    flip(run.latest_checkpoint() / "optimizer.safetensors", 0.7)
    resume(run)
    assert "optimizer.safetensors is not as it was written" in caplog.text
    assert "going on from step 2" in caplog.text


Exchange = Callable[[RunFolder, RunFolder], None]


def other_steps_file(run: RunFolder, _: RunFolder) -> None:
    name = "model.safetensors"
    shutil.copy(run.checkpoint(2) / name, run.checkpoint(4) / name)


def exchanged_tensors(run: RunFolder, _: RunFolder) -> None:
    path = run.checkpoint(4)
    tensors = checkpoint.read_tensors(path, "ema")
    by_shape: dict[torch.Size, str] = {}
    one, two = next(
        (by_shape[t.shape], name)
        for name, t in tensors.items()
        if by_shape.setdefault(t.shape, name) != name
    )
    tensors[one], tensors[two] = tensors[two], tensors[one]
    write_tensors(path / "ema.safetensors", tensors)


def missing_average(run: RunFolder, _: RunFolder) -> None:
    (run.checkpoint(4) / "ema.safetensors").unlink()


def missing_tensor(run: RunFolder, _: RunFolder) -> None:
    path = run.checkpoint(4)
    tensors = checkpoint.read_tensors(path, "ema")
    tensors.popitem()
    write_tensors(path / "ema.safetensors", tensors)


def other_type(run: RunFolder, _: RunFolder) -> None:
    path = run.checkpoint(4)
    tensors = {n: t.bfloat16() for n, t in checkpoint.read_tensors(path, "ema").items()}
    write_tensors(path / "ema.safetensors", tensors)


def other_settings(run: RunFolder, _: RunFolder) -> None:
    stored = run.read_config()
    run.write_config(stored | {"data": stored["data"] | {"packing": "truncate"}})


def other_runs_config(run: RunFolder, other: RunFolder) -> None:
    shutil.copy(other.config_path, run.config_path)


EXCHANGES = (
    *(other_steps_file, exchanged_tensors, missing_average, missing_tensor, other_type),
    *(other_settings, other_runs_config),
)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda function: function.__name__)
def test_exchanged_and_missing_parts_are_noticed(
    run: RunFolder, corpus: Path, tmp_path: Path, exchange: Exchange
) -> None:
    other = run
    if exchange is other_runs_config:
        other = train(corpus, tmp_path / "other", "seed=1", "train.stop_after=1")
    exchange(run, other)
    with pytest.raises(CheckpointError, match=r"step_000004|config.yaml"):
        runs.load_run(run.path, device="cpu", checkpoint="4")


@pytest.mark.parametrize("exchange", [missing_average, missing_tensor, other_type])
def test_without_digests_parts_that_are_missing_or_of_another_type_are_noticed(
    run: RunFolder, exchange: Exchange
) -> None:
    """As in a run of an older version, and with --no-verify."""
    exchange(run, run)
    for step in (2, 4):
        state = read_state(run.checkpoint(step))
        state.files = None
        write_state(run.checkpoint(step), state)
    for verify in (True, False):
        with pytest.raises(CheckpointError, match=r"ema.safetensors|averaged|type"):
            runs.load_run(run.path, device="cpu", checkpoint="4", verify=verify)
    with pytest.raises(CheckpointError, match=r"step_000004"):
        resume(RunFolder(run.path), resume=f"{run}@4")


def test_what_was_changed_on_purpose_is_taken(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    exchanged_tensors(run, run)
    flip(run.checkpoint(4) / "model.safetensors", 0.9)
    run.config_path.write_text(run.config_path.read_text().replace("log_every: 1", "log_every: 2"))
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--device", "cpu"])
    assert "config.yaml is not as it was written" in capsys.readouterr().err
    main(["evaluate", str(run), "--device", "cpu", "--no-verify"])
    with pytest.raises(CheckpointError, match=r"config.yaml is not as it was written"):
        resume(run)
    resume(run, resume_files="accept")
    assert run.is_config_whole
    runs.load_run(run.path, device="cpu")
    assert run.read_config()["resume_files"] == "same"


def test_a_file_is_read_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "a", []
    plain = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda p: read.append(p) or plain(p))  # type: ignore[func-returns-value]
    path.write_bytes(b"one")
    first = cache.file_digest(path)
    cache.file_digest(path)
    assert len(read) == 2  # it is so young that it may change without a new time
    os.utime(path, (1, 1))
    assert [cache.file_digest(path) for _ in range(3)] == [first] * 3
    assert len(read) == 3
    path.write_bytes(b"two")
    os.utime(path, (2, 2))
    assert cache.file_digest(path) != first
    path.with_name("b").write_bytes(b"six")
    path.with_name("b").replace(path)
    os.utime(path, (2, 2))
    assert cache.file_digest(path) == plain(path)
    for record in (cache.cache_root() / "digests").iterdir():
        record.write_text("{")
    assert cache.file_digest(path) == plain(path)


def test_a_run_killed_while_its_model_is_exchanged_is_whole(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = read_state(run.checkpoint(4))
    calibrated = {n: t + 1 for n, t in checkpoint.read_tensors(run.checkpoint(4), "model").items()}
    plain = write_tensors
    for call in ("before", "after"):
        copy = RunFolder(Path(shutil.copytree(run.path, run.path.with_name(call))))

        def killed(
            path: Path, tensors: dict[str, torch.Tensor], places: None, *, call: str = call
        ) -> str:
            if call == "after":
                plain(path, tensors, places)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.tensor_files, "write_tensors", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.renew(copy, state, calibrated, keep=2)
        checkpoint.check_whole(copy.checkpoint(4), ("model", "optimizer", "ema"))
        checkpoint.renew(copy, state, calibrated, keep=2)
        found = checkpoint.read_tensors(copy.checkpoint(4), "model")
        assert all(torch.equal(found[name], calibrated[name]) for name in calibrated)
        checkpoint.check_whole(copy.checkpoint(4), ("model", "optimizer", "ema"))
