from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core import tensor_files
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.errors import CheckpointError, NonFiniteError
from nanozoo_core.training import checkpoint, runs
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import Trainer, train


def settings(corpus: Path, folder: Path, *changes: str) -> list[str]:
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("log.tensorboard=false", f"run_dir='{folder}'", *changes),
    ]


def run(corpus: Path, folder: Path, *changes: str) -> Path:
    composed = compose_config(settings(corpus, folder, *changes))
    return train(resolve(composed)).folder


def resume(folder: Path, **changes: Any) -> None:
    train(resolve(RunFolder(folder).read_config() | {"resume": str(folder)} | changes))


def rows(folder: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in RunFolder(folder).read_metrics() if key in row]


@pytest.fixture
def half(corpus: Path, tmp_path: Path) -> Path:
    """A run of 8 steps stopped after 4, with checkpoints at 2 and 4."""
    return run(corpus, tmp_path / "half", "train.stop_after=4")


@pytest.mark.parametrize("changes", [(), ("train.ema=0.5",), ("optim.name=adamw",)])
def test_split_run_equals_whole_run(corpus: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    whole = run(corpus, tmp_path / "whole", *changes)
    split = run(corpus, tmp_path / "split", *changes, "train.stop_after=3")
    assert not (split / "result.json").exists()
    resume(split)
    stems = ["model", "optimizer"] + ["ema"] * ("train.ema=0.5" in changes)
    for stem in stems:
        one = checkpoint.read_tensors(RunFolder(whole).latest_checkpoint(), stem)
        two = checkpoint.read_tensors(RunFolder(split).latest_checkpoint(), stem)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert rows(whole) == rows(split)
    assert rows(whole, "bytes") == rows(split, "bytes")


def test_micro_steps_do_not_change_the_training(corpus: Path, tmp_path: Path) -> None:
    whole = rows(run(corpus, tmp_path / "a"))
    parts = rows(run(corpus, tmp_path / "b", "train.micro_batch_tokens=32"))
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(parts), rtol=1e-5, atol=0)


def test_seed_decides_the_run(corpus: Path, tmp_path: Path) -> None:
    first = rows(run(corpus, tmp_path / "a"))
    assert first == rows(run(corpus, tmp_path / "b"))
    assert first != rows(run(corpus, tmp_path / "c", "seed=1"))


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("train.max_steps=3", 3),
        ("train.max_tokens=600", 4),
        ("train.max_bytes=400", 3),
        ("train.max_flops=1", 1),
    ],
)
def test_first_budget_reached_ends_the_run(
    corpus: Path, tmp_path: Path, budget: str, steps: int
) -> None:
    """128 bytes a step, a few of them separators."""
    folder = run(corpus, tmp_path / "run", budget)
    assert RunFolder(folder).read_result()["steps"] == steps


def test_budget_in_seconds_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    folder = run(corpus, tmp_path / "run", "train.max_steps=null", "train.max_seconds=0.05")
    result = RunFolder(folder).read_result()
    assert result["steps"] >= 1
    assert result["train_seconds"] >= 0.05


def test_loss_falls_and_scores_agree_with_compression_order(corpus: Path, tmp_path: Path) -> None:
    folder = run(corpus, tmp_path / "run", "train.max_steps=60", "eval.every=20")
    losses = rows(folder)
    assert losses[0] == pytest.approx(math.log(258), abs=0.05)
    assert losses[-1] < losses[0] - 1
    assert len(rows(folder, "val_bpb")) == 3


def test_non_finite_loss_stops_before_the_weights(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanozoo_core.default_model_adapter import DefaultModelAdapter

    plain = DefaultModelAdapter.training_loss

    def poisoned(self: Any, model: Any, batch: Any, step: Any) -> Any:
        loss = plain(self, model, batch, step)
        return type(loss)(loss.value * float("nan")) if step.number == 5 else loss

    monkeypatch.setattr(DefaultModelAdapter, "training_loss", poisoned)
    composed = compose_config(settings(corpus, tmp_path / "run"))
    trainer = Trainer(resolve(composed), ranks_of_one())
    with pytest.raises(NonFiniteError, match=r"loss is not finite at step 5.*step_000004"):
        trainer.run([])
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def ranks_of_one() -> Any:
    from nanozoo_core.machine.ranks import Ranks

    return Ranks()


def test_resumed_run_keeps_model_data_and_seed(half: Path) -> None:
    with pytest.raises(CheckpointError, match=r"seed=5 differs from the run in .* which has 0"):
        resume(half, seed=5)
    deeper = RunFolder(half).read_config()["model_cfg"] | {"num_layers": 2}
    with pytest.raises(CheckpointError, match=r"model_cfg.num_layers=2 differs"):
        resume(half, model_cfg=deeper)


def test_finished_run_is_not_continued(half: Path) -> None:
    resume(half)
    with pytest.raises(CheckpointError, match="already reached its budget"):
        resume(half)


def test_metrics_after_the_checkpoint_are_cut_on_resume(half: Path) -> None:
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 99}\n{"step": 6, "lo')
    resume(half)
    steps = [row["step"] for row in RunFolder(half).read_metrics() if "loss" in row]
    assert steps == list(range(1, 9))


def test_old_checkpoints_go_and_the_best_stays(corpus: Path, tmp_path: Path) -> None:
    folder = run(corpus, tmp_path / "run", "train.max_steps=12", "checkpoint.keep=2")
    assert RunFolder(folder).checkpoint_steps() == [10, 12]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "optimizer.safetensors"])
def test_truncated_checkpoint_is_one_sentence(half: Path, name: str) -> None:
    for checkpoint_folder in (half / "checkpoints").iterdir():
        path = checkpoint_folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"step_000004/{name} is (truncated or )?damaged"):
        resume(half)


def test_pickle_is_never_loaded(half: Path) -> None:
    path = RunFolder(half).latest_checkpoint() / "model.safetensors"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        resume(half)
    path.rename(path.with_name("model.pt"))
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        runs.load_run(half, device="cpu")


@pytest.mark.parametrize("length", [0x280, 0x4B50])
def test_no_length_of_its_header_makes_a_checkpoint_a_pickle(tmp_path: Path, length: int) -> None:
    """A file begins with that length, here as a pickle and as an archive would."""
    path = tmp_path / "model.safetensors"
    tensor_files.write_tensors(path, {"weight": torch.arange(3.0)})
    bare = int.from_bytes(path.read_bytes()[:8], "little")
    name = "weight" + "t" * (length - bare)
    tensor_files.write_tensors(path, {name: torch.arange(3.0)})
    head = path.read_bytes()[:2]
    assert head[:1] == b"\x80" or head == b"PK"
    assert torch.equal(checkpoint.read_tensors(tmp_path, "model")[name], torch.arange(3.0))


def test_checkpoint_of_another_shape_is_refused(half: Path, corpus: Path, tmp_path: Path) -> None:
    wide = run(corpus, tmp_path / "wide", "model_cfg.model_dim=32", "train.stop_after=2")
    for path in (half / "checkpoints").iterdir():
        shutil.rmtree(path)
    shutil.copytree(RunFolder(wide).latest_checkpoint(), half / "checkpoints" / "step_000002")
    with pytest.raises(CheckpointError, match="other settings than those with which step 2 was"):
        resume(half)
    with pytest.raises(CheckpointError, match="checkpoint of another model"):
        resume(half, resume_files="accept")


def test_full_disk_keeps_earlier_checkpoints(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tensor_files.write_tensors

    def full(path: Path, tensors: Any) -> str:
        if "step_000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, tensors)

    monkeypatch.setattr(tensor_files, "write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints"):
        run(corpus, tmp_path / "run")
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step_000002"]


def start(corpus: Path, folder: Path, *changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nanozoo_core.train", *settings(corpus, folder, *changes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_steps(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 600
    while len(RunFolder(folder).checkpoint_steps()) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_kill_leaves_a_loadable_checkpoint(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = start(corpus, folder, "train.max_steps=100000", "checkpoint.every=1")
    wait_for_steps(folder, 2)
    child.kill()
    child.communicate()
    newest = RunFolder(folder).checkpoint_steps()[-1]
    assert runs.load_run(folder, device="cpu").state.step == newest
    resume(folder, train=RunFolder(folder).read_config()["train"] | {"max_steps": newest + 2})
    assert RunFolder(folder).read_result()["steps"] == newest + 2


def test_sigterm_saves_and_says_how_to_resume(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = start(corpus, folder, "train.max_steps=100000", "checkpoint.every=1")
    wait_for_steps(folder, 2)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 128 + signal.SIGTERM
    assert f"train resume={folder}" in out
    assert "Traceback" not in err
    last = RunFolder(folder).read_metrics()[-1]["step"]
    assert RunFolder(folder).checkpoint_steps()[-1] == last


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "ema"), [("muon", 0.5), ("adamw", 0.0)])
def test_sharded_training_equals_one_process(
    corpus: Path, tmp_path: Path, optimizer: str, ema: float
) -> None:
    changes = [f"optim.name={optimizer}", f"train.ema={ema}"]
    changes += ["model_cfg.model_dim=32", "checkpoint.every=3"]
    alone = run(corpus, tmp_path / "one", *changes)
    folder = tmp_path / "two"
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "-m", "nanozoo_core.train"),
            *settings(corpus, folder, *changes, "distributed.strategy=fsdp"),
        ],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    torch.testing.assert_close(
        torch.tensor(rows(folder)), torch.tensor(rows(alone)), rtol=1e-5, atol=0
    )
    for stem in ["model"] + ["ema"] * (ema > 0):
        one = checkpoint.read_tensors(RunFolder(alone).latest_checkpoint(), stem)
        two = checkpoint.read_tensors(RunFolder(folder).latest_checkpoint(), stem)
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)
    assert (folder / "samples.txt").exists()
