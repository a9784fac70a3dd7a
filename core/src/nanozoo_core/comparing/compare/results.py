"""Finished runs, read back and put together: one `Entry` for each line of the report."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.plan import Member
from nanozoo_core.config import compose
from nanozoo_core.errors import CheckpointError
from nanozoo_core.training.records import read_metrics


@dataclass(frozen=True)
class Run:
    """One finished training. `command` trains it again."""

    label: str
    seed: int
    folder: Path
    result: dict[str, Any]
    rows: list[dict[str, Any]]
    samples: list[tuple[str, str]]
    command: str

    @property
    def bpb(self) -> float:
        return float(self.result["val_bpb"])


@dataclass(frozen=True)
class Entry:
    """All seeds of one label."""

    label: str
    runs: tuple[Run, ...]

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
    def text(self) -> tuple[str, int]:
        """What was scored; only entries with the same are compared."""
        return str(self.first["data_fingerprint"]), int(self.first["val_bytes"])

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
    def context_bytes(self) -> float:
        """The text that a window holds on average: what the model can look back on."""
        config = compose.stored_config(self.runs[0].folder)
        per_token = self.first["val_bytes"] / self.first["val_tokens"]
        return float(config["data"]["seq_len"] * per_token)


def read_run(folder: Path, label: str, command: str) -> Run:
    """Raises: CheckpointError when the folder holds no finished run."""
    path = folder / "result.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no finished run (no result.json); continue it with: "
            f"train resume={folder}"
        )
    result = json.loads(path.read_text())
    samples = folder / "samples.txt"
    return Run(
        label=label,
        seed=result["seed"],
        folder=folder,
        result=result,
        rows=read_metrics(folder),
        samples=split_samples(samples.read_text(encoding="utf-8")) if samples.is_file() else [],
        command=command,
    )


def split_samples(text: str) -> list[tuple[str, str]]:
    """(prompt, prompt with its continuation) of each part of samples.txt."""
    parts = re.split(r"^--- prompt: (.*)\n", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [(prompt, body.split("\n--- shown\n")[0].rstrip("\n")) for prompt, body in pairs]


def collect(members: list[Member], folders: tuple[Path, ...]) -> list[Entry]:
    """Entries of the members that are done, then of other run folders, which must be.

    Folders of one model belong to one entry when they differ in their seed alone.
    """
    found: dict[str, list[Run]] = {}
    for member in members:
        if (member.folder / "result.json").is_file():
            run = read_run(member.folder, member.label, member.command)
            found.setdefault(member.label, []).append(run)
    settings: dict[str, dict[str, Any]] = {}
    for folder in folders:
        config = compose.stored_config(folder)
        config = {key: value for key, value in config.items() if key != "seed"}
        label = str(config["model"])
        taken = 1
        while label in found and settings.get(label) != config:
            taken += 1
            label = f"{config['model']}_{taken}"
        settings[label] = config
        command = f"train --config {folder / 'config.yaml'}"
        found.setdefault(label, []).append(read_run(folder, label, command))
    return [Entry(label, tuple(runs)) for label, runs in found.items()]
