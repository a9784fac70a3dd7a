"""What the contract kit asks of a model under the trainer: resuming, two processes, no other
model's help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanozoo_core import registry
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.machine.environment import FORCED
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.testing.processes import train_in_processes
from nanozoo_core.testing.training import move
from nanozoo_core.training import checkpoint, runs
from nanozoo_core.training.budget import Budget
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import Trainer, train


class TrainingContract:
    """The part of `ModelContract` that trains whole runs."""

    model: str
    tiny: dict[str, Any]
    seq_len: int
    float16_tolerance = 2e-3  # relative, of a loss: the products of a few steps, rounded to 2^-11

    @pytest.fixture(scope="class")
    @classmethod
    def corpus(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A small text of its own, and a cache folder beside it."""
        folder = tmp_path_factory.mktemp("corpus")
        words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "it", "was", "flat"]
        generator = torch.Generator().manual_seed(0)
        for number in range(20):
            picks = torch.randint(len(words), (400,), generator=generator)
            text = " ".join(words[int(i)] for i in picks)
            (folder / f"{number}.txt").write_text(text + "\n")
        for number in range(60):  # shorter than a window, so that batches differ in their targets
            (folder / f"short{number}.txt").write_text(words[number % len(words)])
        return folder

    @pytest.fixture(autouse=True)
    def own_cache(self, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NANOZOO_CACHE", str(corpus.parent / "cache"))
        monkeypatch.setenv(FORCED, "float32")

    def overrides(self, corpus: Path, run_dir: Path, **changes: Any) -> list[str]:
        """A training of a few steps on the CPU."""
        model_cfg = {f"model_cfg.{key}": value for key, value in self.tiny.items()}
        settings = {
            "device": "cpu",
            "data.corpus": "text",
            "data.path": corpus,
            "data.tokenizer": "bytes",
            "data.seq_len": self.seq_len,
            "train.batch_tokens": 4 * self.seq_len,
            "train.micro_batch_tokens": 2 * self.seq_len,
            "train.max_steps": 8,
            "train.log_every": 1,
            "eval.bytes": 2000,
            "eval.every": 0,
            "eval.draws": 2,
            "checkpoint.every": 0,
            "log.tensorboard": False,
            "run_dir": run_dir,
        }
        joined = model_cfg | settings | changes
        return [f"model={self.model}", *(f"{k}={_as_text(v)}" for k, v in joined.items())]

    def run(self, overrides: list[str]) -> Path:
        return train(resolve(compose_config(overrides))).folder

    def losses(self, run: Path) -> list[float]:
        return [row["loss"] for row in RunFolder(run).read_metrics() if "loss" in row]

    def test_split_run_equals_whole_run(self, corpus: Path, tmp_path: Path) -> None:
        whole = self.run(self.overrides(corpus, tmp_path / "whole"))
        half = self.run(self.overrides(corpus, tmp_path / "half", **{"train.stop_after": 4}))
        self.resume(half)
        self.assert_same_end(whole, half)

    def assert_same_end(self, whole: Path, half: Path) -> None:
        """Both runs logged the same losses and ended with the same weights and state."""
        for stem in ("model", "optimizer"):
            one = checkpoint.read_tensors(RunFolder(whole).latest_checkpoint(), stem)
            two = checkpoint.read_tensors(RunFolder(half).latest_checkpoint(), stem)
            assert one.keys() == two.keys()
            different = [name for name in one if not torch.equal(one[name], two[name])]
            assert different == []
        assert self.losses(whole) == self.losses(half)

    def resume(self, run: Path) -> None:
        stored = RunFolder(run).read_config() | {"resume": str(run)}
        train(resolve(stored))

    def test_a_checkpoint_scores_as_the_run_did(self, corpus: Path, tmp_path: Path) -> None:
        folder = self.run(self.overrides(corpus, tmp_path / "run"))
        result = RunFolder(folder).read_result()
        score = runs.score(runs.load_run(folder, device="cpu"), {})
        assert score.bits_per_byte == pytest.approx(result["val_bpb"], rel=1e-9)

    def test_trains_in_float16_as_in_float32(self, corpus: Path, tmp_path: Path) -> None:
        exact, half = (
            self.train_a_little(corpus, tmp_path / dtype, dtype)[1]
            for dtype in ("float32", "float16")
        )
        torch.testing.assert_close(half, exact, rtol=self.float16_tolerance, atol=0)
        assert not torch.equal(half, exact)

    def test_an_overflow_in_float16_leaves_no_trace(self, corpus: Path, tmp_path: Path) -> None:
        """A step that is taken again with half the loss scale ends as if begun with it."""
        again, _ = self.train_a_little(corpus, tmp_path / "again", scale=2.0**32)
        scale = again.state.loss_scale
        assert scale < 2.0**32
        once, _ = self.train_a_little(corpus, tmp_path / "once", scale=scale)
        assert once.state == replace(again.state, seconds=once.state.seconds)
        one, two = (checkpoint.model_tensors(trainer.model) for trainer in (once, again))
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
        buffers = zip(once.model.buffers(), again.model.buffers(), strict=True)
        assert all(torch.equal(a, b) for a, b in buffers)

    def train_a_little(
        self, corpus: Path, run_dir: Path, dtype: str = "float16", *, scale: float | None = None
    ) -> tuple[Trainer, Tensor]:
        """One step with a loss scale that begins there, or four; the losses. The weights are moved
        first: at the start much of a gradient is zero."""
        overrides = self.overrides(corpus, run_dir, dtype=dtype)
        trainer = Trainer(resolve(compose_config(overrides)), Ranks())
        move(trainer.model, 0.05)
        if scale is not None:
            trainer.state.loss_scale = scale
        rows = [trainer.one_step() for _ in range(4 if scale is None else 1)]
        trainer.claim.release()
        return trainer, torch.tensor([row["loss"] for row in rows if row is not None])

    def test_training_is_branchable_only_where_it_reads_no_progress(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Near the start and near the end of a run a step does the same, where the adapter says
        so; the schedules of rates, which read it too, are flat here."""
        flat = {"optim.warmup": 1, "optim.decay_fraction": 0, "optim.muon.warmup_steps": 0}
        trainers = []
        for progress in (0.01, 0.99):
            monkeypatch.setattr(Budget, "progress", lambda *_, value=progress: value)
            overrides = self.overrides(corpus, tmp_path / f"{progress}", **flat)
            config = resolve(compose_config(overrides))
            if not load_adapter(self.model).is_branchable(config.model_cfg):
                return
            trainers.append(trainer := Trainer(config, Ranks()))
            trainer.one_step()
            trainer.one_step()
            trainer.claim.release()
        early, late = (checkpoint.model_tensors(one.model) for one in trainers)
        assert [name for name in early if not torch.equal(early[name], late[name])] == []

    # Models whose loss counts over the whole batch have it without the mark: elsewhere the trainer
    # alone is at work, which core's own tests split over processes.
    @pytest.mark.slow
    def test_two_processes_train_as_one(self, corpus: Path, tmp_path: Path) -> None:
        self.train_alone_and_together(corpus, tmp_path)

    def train_alone_and_together(
        self, corpus: Path, folder: Path, strategy: str | None = None, **changes: Any
    ) -> tuple[Path, Path]:
        """Runs with these changes in one process, its batches whole, and in two, whose losses
        agree; their folders."""
        changes = {"train.micro_batch_tokens": 4 * self.seq_len} | changes
        alone = self.run(self.overrides(corpus, folder / "one", **changes))
        if strategy is not None:
            changes = changes | {"distributed.strategy": strategy}
        overrides = self.overrides(corpus, folder / "two", **changes)
        train_in_processes(overrides, log=folder / "log", num_processes=2)
        one, two = self.losses(alone), self.losses(folder / "two")
        assert len(one) == len(two) > 0
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-5, atol=0)
        return alone, folder / "two"

    def test_needs_no_other_model(self, corpus: Path, tmp_path: Path) -> None:
        """Trains two steps in a process where importing any other model fails."""
        own = {registry.model_modules()[name] for name in (self.model, *self.builds_on())}
        others = sorted(set(registry.model_modules().values()) - own)
        if not others:
            pytest.skip("no other model is installed, so that every test here shows it")
        overrides = self.overrides(corpus, tmp_path / "run", **{"train.max_steps": 2})
        train_in_processes(overrides, log=tmp_path / "log", without=others)
        assert RunFolder(tmp_path / "run").is_finished

    def builds_on(self) -> tuple[str, ...]:
        """Models whose packages this one depends on."""
        return ()


def _as_text(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, Path):
        return f"'{value}'"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(_as_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_as_text(v)}" for k, v in value.items()) + "}"
    return str(value)
