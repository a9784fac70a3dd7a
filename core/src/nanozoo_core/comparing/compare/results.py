"""Finished runs, read back and put together: one `Entry` for each line of the report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.plan import Member, kept_settings
from nanozoo_core.comparing.entrants import as_label
from nanozoo_core.config.overrides import as_written
from nanozoo_core.errors import CheckpointError, NonFiniteError
from nanozoo_core.training.run_folder import RunFolder, Sample

NEEDED: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("seed", "val_bytes", "val_tokens"), int),
    **dict.fromkeys(("val_bound", "data_fingerprint"), str),
    **dict.fromkeys(("val_bpb", "train_bytes", "train_seconds"), (int, float)),
}
"""What a report reads of every result.json."""


@dataclass(frozen=True)
class Run:
    """One finished training. `command` trains it again."""

    label: str
    seed: int
    folder: Path
    result: dict[str, Any]
    rows: list[dict[str, Any]]
    samples: tuple[Sample, ...]
    command: str

    @property
    def bpb(self) -> float:
        return float(self.result["val_bpb"])


@dataclass(frozen=True)
class Multiplier:
    """FLOPs that the control needs for a score over those that the model took; above 1 the model
    saves compute.

    `bound` is ">" or "<" where no budget of the control is as good, or as bad, and ">=" where the
    model's score is an upper bound. `interval` is the one of 95 percent that the seeds leave, None
    where there is one seed each, at a bound, and for the control, which is 1 by definition.
    """

    value: float
    bound: str = ""
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        sign = f"{self.bound} " if self.bound else ""
        margin = ""
        if self.interval is not None:
            low, high = self.interval
            margin = f" ({low:.2f} to {high:.2f})"
        return f"{sign}{self.value:.2f}{margin}"


@dataclass(frozen=True)
class Entry:
    """All seeds of one label."""

    label: str
    runs: tuple[Run, ...]
    tried: dict[float, float] = field(default_factory=dict)
    """Bits per byte of the first seed by the factor on the learning rates, where the comparison
    tried several; the best of them trained all seeds."""
    multiplier: Multiplier | None = None
    """Of compute, where the comparison has a control."""

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0].result

    @property
    def is_bound(self) -> bool:
        return bool(self.first["val_bound"] == "upper")

    @property
    def bpbs(self) -> list[float]:
        return [run.bpb for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.mean(self.bpbs)

    @cached_property
    def text(self) -> tuple[str, int, str]:
        """What was scored: the data, how many bytes, and which split of the validation documents
        (`eval.split`); only entries with the same are compared."""
        split = str(self.first.get("val_split", "all"))  # older results say nothing of it
        return str(self.first["data_fingerprint"]), int(self.first["val_bytes"]), split

    def median(self, key: str) -> float | None:
        """Of a number in result.json over the seeds; None where it is not known."""
        values = [run.result.get(key) for run in self.runs]
        known = [float(value) for value in values if value is not None]
        return statistics.median(known) if known else None

    @property
    def bytes_per_second(self) -> float:
        return statistics.median(
            run.result["train_bytes"] / run.result["train_seconds"] for run in self.runs
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings that all runs share: those of the first."""
        return RunFolder(self.runs[0].folder).read_config()

    @cached_property
    def config_text(self) -> str:
        """The same as the file of the run has them."""
        path = RunFolder(self.runs[0].folder).config_path
        return path.read_text(encoding="utf-8", errors="replace")

    @property
    def family(self) -> str:
        """What kind of model it is; a result of an older version tells the model alone."""
        return str(self.first.get("family") or self.first.get("model") or self.label)

    @property
    def optimizer(self) -> str:
        return str(self.config["optim"]["name"])

    @property
    def context_bytes(self) -> float:
        """The text that a window holds on average: what the model can look back on."""
        config = self.config
        per_token = self.first["val_bytes"] / self.first["val_tokens"]
        return float(config["data"]["seq_len"] * per_token)


def read_run(folder: Path, label: str, command: str) -> Run:
    """Raises: CheckpointError when the folder holds no finished run; NonFiniteError for one that
    has diverged."""
    run = RunFolder(folder)
    result = run.read_result()
    for key, kind in NEEDED.items():
        if not isinstance(result.get(key), kind):
            raise CheckpointError(
                f"{run.result_path} is damaged: its {key} is {result.get(key)!r}; leave out the "
                f"run, or train it again"
            )
    return Run(
        label=label,
        seed=result["seed"],
        folder=folder,
        result=result,
        rows=run.read_metrics(),
        samples=run.read_samples().texts,
        command=command,
    )


def collect(
    members: Sequence[Member], folders: Sequence[Path], labels: Mapping[Path, str] | None = None
) -> tuple[list[Entry], dict[str, str]]:
    """Entries of the members that are done, then of other run folders, which must be; and a
    sentence for each that has diverged, by name.

    Folders of one label belong to one entry when they differ in nothing but their seed that decides
    a result.

    Args: labels: of folders that are not called after their model.
    """
    labels = labels or {}
    found: dict[str, list[Run]] = {}
    failures: dict[str, str] = {}
    for member in members:
        if RunFolder(member.folder).is_finished:
            try:
                run = read_run(member.folder, member.label, member.command)
            except NonFiniteError as error:
                failures[member.name] = str(error)
                continue
            found.setdefault(member.label, []).append(run)
    settings: dict[str, dict[str, Any]] = {}
    for folder in folders:
        config = RunFolder(folder).read_config()
        label = first = labels.get(folder) or as_label(str(config["model"]))
        taken = 1
        own = kept_settings(as_written(config))
        while label in found and settings.get(label) != own:
            taken += 1
            label = f"{first}_{taken}"
        command = f"train --config {RunFolder(folder).config_path}"
        try:
            run = read_run(folder, label, command)
        except NonFiniteError as error:
            failures[str(folder)] = str(error)
            continue
        settings[label] = own
        found.setdefault(label, []).append(run)
    return [Entry(label, tuple(runs)) for label, runs in found.items()], failures
