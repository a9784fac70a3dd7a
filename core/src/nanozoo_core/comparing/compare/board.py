"""Finished runs that a comparison's folder takes in from elsewhere, without their weights: a folder
that grows run by run, as in a git repository to which several people add theirs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nanozoo_core.comparing.compare.plan import first_difference, kept_settings
from nanozoo_core.comparing.entrants import as_label, labelled
from nanozoo_core.config.overrides import as_written
from nanozoo_core.errors import CheckpointError, ConfigError, WriteError
from nanozoo_core.training.run_folder import RunFolder

ADDED = "added"  # the folder with the copies; beside it `runs`, with those that were trained here
TAKEN = ("config_path", "result_path", "metrics_path", "samples_path")


def add_run(board: Path, text: str) -> Path:
    """Copies what a report needs of a finished run into the board's folder, unless it is there.

    Args: text: RUN or LABEL:RUN.
    Returns: the copy.
    Raises: CheckpointError when the run is not finished, or other settings have that label and
        seed; WriteError.
    """
    label, folder = labelled(text)
    run = RunFolder(folder)
    config, result = run.read_config(), run.read_result()
    label = label or as_label(str(config["model"]))
    copy = board / ADDED / f"{label}_{result['seed']}"
    if copy.exists():
        there = RunFolder(copy).read_config()
        old_settings, new_settings = (kept_settings(as_written(each)) for each in (there, config))
        different = first_difference(old_settings, new_settings)
        if different is None:
            return copy
        key, old, new = different
        raise CheckpointError(
            f"{copy} holds a run with {key}={old}, and {folder} has {key}={new}; give it another "
            f"name, as in --add NAME:{folder}"
        )
    try:
        copy.mkdir(parents=True)
        for name in TAKEN:
            if (path := getattr(run, name)).is_file():
                shutil.copyfile(path, copy / path.name)
    except OSError as error:
        shutil.rmtree(copy, ignore_errors=True)
        raise WriteError.at(copy, error) from error
    return copy


def runs_of(board: Path, parts: Sequence[str] = ("runs", ADDED)) -> dict[Path, str]:
    """The finished runs in a comparison's folder, each with its label."""
    found = {}
    for part in parts:
        for folder in sorted((board / part).glob("*_*")):
            if RunFolder(folder).is_finished:
                found[folder] = folder.name.rpartition("_")[0]
    return found


def finished_runs(texts: Sequence[str]) -> dict[Path, str | None]:
    """The runs that are meant by RUN, LABEL:RUN, or a folder with runs below it, each with its
    label where it has one.

    Raises: ConfigError for a folder in which there is none.
    """
    found: dict[Path, str | None] = {}
    for text in texts:
        label, folder = labelled(text)
        if RunFolder(folder).is_run:
            found[folder] = label
            continue
        inside: dict[Path, str | None] = {**runs_of(folder)}
        if not inside:
            places = sorted(path.parent for path in folder.glob("**/result.json"))
            inside = dict.fromkeys(places, label)
        if not inside:
            raise ConfigError(f"{folder} is no run, and no finished run lies in it")
        found |= inside
    return found
