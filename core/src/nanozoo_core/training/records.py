"""The rows that a run logs, to its folder, TensorBoard and Weights & Biases; and their plot."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

from nanozoo_core.config import LogConfig
from nanozoo_core.data.prepare import PreparedData
from nanozoo_core.data.tokenizers import save_tokenizer
from nanozoo_core.errors import CheckpointError
from nanozoo_core.training.run_data import RunData
from nanozoo_core.training.run_folder import RunFolder, TrainState
from nanozoo_core.training.tracking import start_wandb


class RunRecords:
    """Writes one run's files; every method does nothing on ranks other than 0."""

    def __init__(self, folder: RunFolder, log: LogConfig, *, is_main: bool) -> None:
        self.folder = folder
        self.is_main = is_main
        self._log = log
        self._metrics: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None

    def open(
        self,
        config: dict[str, Any],
        *,
        resumed: TrainState | None,
        is_trained: bool,
        data: PreparedData,
    ) -> None:
        """Creates the folder, or takes it back to where the run goes on.

        Args:
            resumed: what a run that goes on had done at its checkpoint.
            is_trained: only the end of the run is still to be done, its last validation included.

        Raises: CheckpointError when the folder cannot be written.
        """
        if not self.is_main:
            return
        folder = self.folder
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
            if resumed is None:
                save_tokenizer(data.vocabulary, folder.path)
            RunData.of(data).write(folder)
            rows = []
            if resumed is not None:
                rows = [row for row in folder.read_metrics() if row["step"] <= resumed.step]
            if resumed is not None and is_trained:
                rows = [r for r in rows if r["step"] < resumed.step or "val_bpb" not in r]
            folder.write_metrics(rows)
            folder.result_path.unlink(missing_ok=True)  # of a run that now trains on
            self._metrics = folder.metrics_path.open("a", buffering=1)
            if self._log.tensorboard:
                from tensorboardX import SummaryWriter

                purge = None if resumed is None else resumed.step + 1
                self._tensorboard = SummaryWriter(str(folder), purge_step=purge)
        except OSError as error:
            raise CheckpointError(
                f"the run folder {folder} cannot be written: {error.strerror or error}"
            ) from error
        if self._log.wandb:
            self._wandb = start_wandb(folder, self._log, config)

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row to the metrics, and its numbers to TensorBoard and W&B."""
        if not self.is_main:
            return
        try:
            self._metrics.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.folder.metrics_path} cannot be written: {error.strerror}"
            ) from error
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["step"])

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result and the plot."""
        if not self.is_main:
            return
        self.folder.write_result(result)
        plot_losses(self.folder)

    def close(self) -> None:
        for sink in (self._metrics, self._tensorboard):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()


def plot_losses(folder: RunFolder) -> None:
    """Plots training and validation bits per byte against bytes read, into the run's folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = folder.read_metrics()
    train = [(r["bytes"] / 1e6, r["train_bpb"]) for r in rows if r.get("train_bpb") is not None]
    val = [(r["bytes"] / 1e6, r["val_bpb"]) for r in rows if r.get("val_bpb") is not None]
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=120)
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.6, label="training")
    if val:
        axes.plot(*zip(*val, strict=True), "o-", color="tab:orange", label="validation")
        lowest = min(y for _, y in val if math.isfinite(y))
        axes.set_title(f"{'/'.join(folder.path.parts[-2:])}: {lowest:.3f} bits per byte")
    values = [y for _, y in train + val if math.isfinite(y)]
    if values and max(values) > 3 * min(values):
        axes.set_ylim(top=3 * min(values))
    axes.set_xlabel("training text read (MB)")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    if train or val:
        axes.legend()
    figure.tight_layout()
    figure.savefig(folder.loss_picture_path)
    plt.close(figure)


def git_commit() -> str | None:
    """The commit of the source tree this package runs from; None when git does not track it."""

    def git(*arguments: str) -> str | None:
        try:
            found = subprocess.run(
                ["git", *arguments],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() if found.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
    return git("rev-parse", "HEAD") if tracked else None
