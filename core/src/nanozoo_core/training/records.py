"""The rows that a run logs, to its folder, TensorBoard and Weights & Biases; and their plot."""

from __future__ import annotations

import functools
import logging
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanozoo_core.config import LogConfig
from nanozoo_core.config.overrides import as_written
from nanozoo_core.data.prepare import AnyData
from nanozoo_core.data.tokenizers import save_tokenizer
from nanozoo_core.errors import CheckpointError, WriteError
from nanozoo_core.files import JsonLines, null_if_not_finite, remove_unfinished, whole_file
from nanozoo_core.training.run_data import RunData
from nanozoo_core.training.run_folder import RunFolder, TrainState
from nanozoo_core.training.sinks import Sink, TensorBoard
from nanozoo_core.training.tracking import WeightsAndBiases

log = logging.getLogger(__name__)


OnRow = Callable[[dict[str, Any]], None]


class RunRecords:
    """Writes one run's files; every method does nothing on ranks other than 0."""

    def __init__(
        self, folder: RunFolder, log: LogConfig, *, is_main: bool, on_row: OnRow | None = None
    ) -> None:
        """Args: on_row: is told each row that is logged."""
        self.folder = folder
        self.is_main = is_main
        self._on_row = on_row
        self._log = log
        self._metrics: JsonLines | None = None
        self._sinks: list[Sink] = []

    def open(
        self,
        config: dict[str, Any],
        *,
        resumed: TrainState | None,
        is_trained: bool,
        data: AnyData,
    ) -> None:
        """Creates the folder, or takes it back to where the run goes on.

        Args:
            resumed: what a run that goes on had done at its checkpoint.
            is_trained: only the end of the run is still to be done, its last validation included.

        Raises: WriteError, CheckpointError when the folder cannot be written.
        """
        if not self.is_main:
            return
        folder = self.folder
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder.path)
            folder.result_path.unlink(missing_ok=True)  # of a run that now trains on
            if resumed is None:
                save_tokenizer(data.vocabulary, folder.path)
            if resumed is None or RunData.read(folder) != RunData.of(data):
                RunData.of(data).write(folder)
            rows = []
            if resumed is not None:
                rows = [row for row in folder.read_metrics() if row["step"] <= resumed.step]
            # A validation that the checkpoint does not know of is done again.
            if resumed is not None and (is_trained or resumed.validated_step != resumed.step):
                rows = [r for r in rows if r["step"] < resumed.step or "val_bpb" not in r]
            folder.write_metrics(rows)
            is_same = folder.is_config_whole and folder.read_config() == config
            if resumed is None or not is_same:  # last: what has one is a run
                folder.write_config(config)
            self._metrics = JsonLines(folder.metrics_path)
        except WriteError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"the run folder {folder} cannot be written: {error.strerror or error}"
            ) from error
        if self._log.tensorboard:
            step = None if resumed is None else resumed.step
            self._sinks.append(Sink("TensorBoard", lambda: TensorBoard(folder, resumed_step=step)))
        if self._log.wandb:
            start = functools.partial(WeightsAndBiases, folder, self._log, as_written(config))
            self._sinks.append(Sink("Weights & Biases", start))

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row to the metrics, and its numbers to TensorBoard and W&B."""
        if not self.is_main:
            return
        assert self._metrics is not None
        finite = null_if_not_finite(row)
        self._metrics.append(finite)
        if self._on_row is not None:
            self._on_row(finite)
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        for sink in self._sinks:
            sink.log(numbers, row["step"])

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result and the plot."""
        if not self.is_main:
            return
        self.folder.write_result(result)
        plot_if_possible(self.folder)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        for sink in self._sinks:
            sink.close()


def plot_if_possible(folder: RunFolder) -> None:
    """`plot_losses`, or a warning where there is no room for the picture."""
    try:
        plot_losses(folder)
    except WriteError as error:
        log.warning("%s", error)


def plot_losses(folder: RunFolder) -> None:
    """Plots training and validation bits per byte against bytes read, into the run's folder."""
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the user

    rows = folder.read_metrics()
    train, val = (
        [(r["bytes"] / 1e6, r[key]) for r in rows if math.isfinite(r.get(key) or math.nan)]
        for key in ("train_bpb", "val_bpb")
    )
    figure = Figure(figsize=(7, 4.5), dpi=120)
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.6, label="training")
    if val:
        axes.plot(*zip(*val, strict=True), "o-", color="tab:orange", label="validation")
        lowest = min(y for _, y in val)
        axes.set_title(f"{'/'.join(folder.path.parts[-2:])}: {lowest:.3f} bits per byte")
    values = [y for _, y in train + val]
    if values and max(values) > 3 * min(values):
        axes.set_ylim(top=3 * min(values))
    axes.set_xlabel("training text read (MB)")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    if train or val:
        axes.legend()
    figure.tight_layout()
    with whole_file(folder.loss_picture_path) as file:
        figure.savefig(file, format="png")


SOURCES = (":/*.py", ":/*.yaml", ":/*.toml", ":/uv.lock")
"""What of a source tree decides a result."""


def git_commit() -> str | None:
    """The commit of the source tree this package runs from, with "-dirty" behind it where code or
    settings differ from it; None when git does not track the tree."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            found = subprocess.run(
                ["git", *arguments],
                cwd=here.parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() if found.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", here.name):
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", *SOURCES)
    return f"{commit}-dirty" if commit and changed else commit
