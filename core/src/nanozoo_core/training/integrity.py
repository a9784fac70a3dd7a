"""Whether the files of a run are those that it has written, by the digests in its checkpoints.

state.json has the digests of all files of its checkpoint, of the run's tokenizer, of the settings
that decide what the weights mean, and of itself; config.yaml ends with its own. They tell of damage
and of mistakes; they are no seal against an attacker, who could write them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanozoo_core.data.cache import file_digest
from nanozoo_core.data.tokenizers import TOKENIZER_FILE
from nanozoo_core.errors import CheckpointError
from nanozoo_core.training.resumable_settings import kept_digest
from nanozoo_core.training.run_folder import RunFolder, TrainState, read_state

ON_PURPOSE = "if it was changed on purpose, use --no-verify, or resume_files=accept of train"


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing, cut short or changed: an older one may be whole."""


def check_files(checkpoint: Path, state: TrainState, names: Sequence[str]) -> None:
    """Compares files of a checkpoint with their digests, each once for as long as it does not
    change.

    Raises: DamagedCheckpointError for the first that is another.
    """
    listed = {name: digests for name, digests in (state.files or {}).items() if name in names}
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        found = list(pool.map(lambda name: file_digest(checkpoint / name), listed))
    for digest, (name, written) in zip(found, listed.items(), strict=True):
        if digest not in written:
            raise DamagedCheckpointError(
                f"{checkpoint / name} is not as it was written; use another checkpoint, or "
                f"{ON_PURPOSE}"
            )


def check_config(folder: RunFolder) -> None:
    """Raises: CheckpointError when config.yaml is not as it was written."""
    if not folder.is_config_whole:
        raise CheckpointError(f"{folder.config_path} is not as it was written; {ON_PURPOSE}")


def check_run(folder: RunFolder, state: TrainState) -> None:
    """Compares the settings and the tokenizer of a run with what a checkpoint says of them.

    Raises: CheckpointError when they differ.
    """
    path = folder.path / TOKENIZER_FILE
    if state.tokenizer is not None and path.is_file() and file_digest(path) != state.tokenizer:
        raise CheckpointError(f"{path} is not the tokenizer that the run has used; {ON_PURPOSE}")
    if state.settings not in (None, kept_digest(folder.read_config())):
        raise CheckpointError(
            f"{folder.config_path} has other settings than those with which step {state.step} was "
            f"trained; {ON_PURPOSE}"
        )


def note_run(folder: RunFolder, state: TrainState) -> None:
    """Sets in `state` what `check_run` compares."""
    path = folder.path / TOKENIZER_FILE
    state.settings = kept_digest(folder.read_config())
    state.tokenizer = file_digest(path) if path.is_file() else None


def newest_state(folder: RunFolder) -> TrainState | None:
    """That of the newest checkpoint that has a readable one."""
    for step in reversed(folder.checkpoint_steps()):
        try:
            return read_state(folder.checkpoint(step))
        except CheckpointError:
            continue
    return None
