"""Checkpoints that a kill at any moment cannot spoil, and that load without running any code.

A checkpoint is a folder `step_000040` with `model.safetensors`, `optimizer.safetensors`,
`ema.safetensors` where weights are averaged, and `state.json`. It is written under another name,
flushed to disk and renamed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nanozoo_core import tensor_files
from nanozoo_core.errors import CheckpointError, NanozooError, first_line
from nanozoo_core.files import UNFINISHED, remove_unfinished
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.sharding import gather_whole
from nanozoo_core.training.claim import Claim
from nanozoo_core.training.integrity import DamagedCheckpointError, check_files
from nanozoo_core.training.run_folder import RunFolder, TrainState, read_state, write_state
from nanozoo_core.training.signals import without_interrupts

log = logging.getLogger(__name__)

NOUNS = {"model": "model", "optimizer": "state of the optimiser", "ema": "average of the weights"}


def stems(*, is_averaged: bool) -> tuple[str, ...]:
    """The names of the files of a checkpoint that hold tensors."""
    return ("model", "optimizer", *(("ema",) if is_averaged else ()))


def check_whole(path: Path, stems: tuple[str, ...], *, verify: bool = True) -> None:
    """Looks at a checkpoint's files without loading them.

    Raises: DamagedCheckpointError when one is missing, truncated or no such file, or is not as it
        was written unless told not to `verify`; CheckpointError for a pickle.
    """
    try:
        state = read_state(path, verify=verify)
    except CheckpointError as error:
        raise DamagedCheckpointError(str(error)) from error
    for stem in stems:
        file = _tensor_file(path, stem)
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error
    if verify:
        check_files(path, state, [f"{stem}.safetensors" for stem in stems])


def newest_whole(run: RunFolder, stems: tuple[str, ...], *, verify: bool = True) -> int:
    """The step of the newest checkpoint whose files can be read; a newer one that cannot is warned
    of.

    Raises: CheckpointError when there is none, or one is a pickle.
    """
    first: CheckpointError | None = None
    run.latest_checkpoint()
    for step in reversed(run.checkpoint_steps()):
        try:
            check_whole(run.checkpoint(step), stems, verify=verify)
        except DamagedCheckpointError as error:
            first = first or error
            continue
        if first is not None:
            log.warning("%s; going on from step %d, the newest that is whole", first, step)
        return step
    assert first is not None
    raise first


def best_whole(run: RunFolder, stems: tuple[str, ...], *, verify: bool = True) -> int:
    """As `newest_whole`, of the checkpoint with the lowest validation score; that newest one where
    none was scored, or the best is damaged."""
    newest = newest_whole(run, stems, verify=verify)
    best = read_state(run.checkpoint(newest), verify=verify).best_step
    if best is None or not run.checkpoint(best).is_dir():
        return newest
    try:
        check_whole(run.checkpoint(best), stems, verify=verify)
    except DamagedCheckpointError as error:
        log.warning("%s; going on from step %d, the newest that is whole", error, newest)
        return newest
    return best


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once: a tied parameter goes under its first name."""
    parameters = {name: gather_whole(p.detach()) for name, p in model.named_parameters()}
    kept = set(model.state_dict(keep_vars=True))
    buffers = {name: gather_whole(b) for name, b in model.named_buffers() if name in kept}
    return {name: t.cpu().contiguous() for name, t in (parameters | buffers).items()}


def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copies `tensors` into the model in place.

    Raises: CheckpointError when names, shapes or types are those of another model.
    """
    targets = dict(model.named_parameters())
    kept = set(model.state_dict(keep_vars=True))
    targets |= {name: b for name, b in model.named_buffers() if name in kept}  # type: ignore[misc]
    _check_fit(targets, tensors, source)
    with torch.no_grad():
        for name, target in targets.items():
            copy_into(target, tensors[name])


def _check_fit(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises: CheckpointError when names, shapes or types differ."""
    missing = sorted(targets.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - targets.keys())
    if missing or foreign:
        what = f"lacks {missing[0]}" if missing else f"holds the unknown {foreign[0]}"
        raise CheckpointError(f"{source} is a checkpoint of another model: it {what}")
    for name, target in targets.items():
        there, here = tensors[name], target
        if there.shape != here.shape:
            raise CheckpointError(
                f"{source} is a checkpoint of another model: {name} has shape "
                f"{list(there.shape)} there and {list(here.shape)} here"
            )
        # Buffers may be of another precision, where a device lacks one.
        if there.dtype != here.dtype and isinstance(here, nn.Parameter):
            raise CheckpointError(
                f"{source} is a checkpoint of another model: {name} has type "
                f"{_type(there)} there and {_type(here)} here"
            )


def check_average(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Raises: CheckpointError when the averages are not those of all parameters and no others."""
    _check_fit(dict(model.named_parameters()), tensors, source / "ema.safetensors")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def copy_into(target: Tensor, source: Tensor) -> None:
    """target.copy_(source) where target may be sharded and source is whole."""
    mesh = getattr(target, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(
            source.to(target.device),
            mesh,
            target.placements,  # type: ignore[attr-defined]
        )
    target.copy_(source)


def table_names(model: nn.Module) -> Set[str]:
    """Its buffers, which may hold the logarithm of 0."""
    return {name for name, _ in model.named_buffers()}


def save(
    run: RunFolder,
    state: TrainState,
    tensors: dict[str, dict[str, Tensor]],
    *,
    keep: int,
    tables: Set[str] = frozenset(),
) -> Path:
    """Writes a checkpoint and removes the older ones beyond `keep`, sparing the best and the last
    good one.

    Args:
        tensors: per file stem (model, optimizer, ema), tensors by name.
        tables: of the model's tensors, those that may hold the logarithm of 0.

    Raises: CheckpointError when the disk refuses, NonFiniteError for weights that are not finite;
        older checkpoints are then untouched.
    """
    for stem, content in tensors.items():
        allowed = tables if stem == "model" else frozenset()
        tensor_files.require_finite(content, f"the {NOUNS[stem]}", logarithms=allowed)
    final = run.checkpoint(state.step)
    temporary = run.checkpoints_path / f"{UNFINISHED}{final.name}"
    try:
        remove_unfinished(run.checkpoints_path)
        temporary.mkdir(parents=True)
        state.files = {}
        for stem, content in tensors.items():
            digest = tensor_files.write_tensors(temporary / f"{stem}.safetensors", content)
            state.files[f"{stem}.safetensors"] = [digest]
        write_state(temporary, state)
        _flush(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _flush(run.checkpoints_path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {state.step} cannot be written to {run.checkpoints_path}: "
            f"{_reason(error)}; earlier checkpoints are untouched, and train resume={run} goes on"
        ) from error
    _remove_old(run, state, keep)
    return final


def renew(run: RunFolder, state: TrainState, model: dict[str, Tensor], *, keep: int) -> None:
    """Replaces the model and the state in the checkpoint of `state.step`, each at once, and removes
    what has become too old.

    Args: model: its tensors, of which the end of a run changes only what calibration sets: a kill
        between the two files leaves a checkpoint from which the run finishes to the same bits.
    Raises: CheckpointError when the disk refuses; the checkpoint is then as it was.
    """
    folder = run.checkpoint(state.step)
    try:
        with without_interrupts():
            remove_unfinished(folder)
            digest, name = tensor_files.digest_of(model), "model.safetensors"
            files = read_state(folder, verify=False).files or {}
            if files.get(name) != [digest]:
                either = [*files.get(name, []), digest]
                write_state(folder, replace(state, files=files | {name: either}))
                tensor_files.write_tensors(folder / name, model)
            state.files = files | {name: [digest]}
            write_state(folder, state)
            _flush(folder)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be written: {_reason(error)}; it is as it was, and "
            f"train resume={run} goes on"
        ) from error
    _remove_old(run, state, keep)


def _remove_old(run: RunFolder, state: TrainState, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`, the one just written, the best and the last
    good one."""
    spared = {*run.checkpoint_steps()[-keep:], state.step, state.best_step, state.last_good_step}
    for step in run.checkpoint_steps():
        if step not in spared:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)


def save_on_main(
    claim: Claim,
    state: TrainState,
    tensors: dict[str, dict[str, Tensor]],
    *,
    keep: int,
    ranks: Ranks,
    tables: Set[str] = frozenset(),
) -> None:
    """`save` on rank 0, into the folder that is claimed.

    Raises: on every rank, its errors; CheckpointError when the folder is there no more.
    """
    problem: NanozooError | None = None
    if ranks.is_main:
        try:
            claim.check_in_place()
            with without_interrupts():
                save(claim.folder, state, tensors, keep=keep, tables=tables)
        except NanozooError as error:
            problem = error
    problem = ranks.broadcast(problem)
    if problem is not None:
        raise problem


def read_tensors(path: Path, stem: str, *, tables: Set[str] = frozenset()) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint folder; never unpickles.

    Args: tables: names of those that may hold the logarithm of 0.

    Raises: CheckpointError for a missing, truncated or foreign file; NonFiniteError for the file of
        a run that has diverged.
    """
    file = _tensor_file(path, stem)
    try:
        tensors = tensor_files.read_tensors(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    tensor_files.require_finite(tensors, file, logarithms=tables)
    return tensors


def _tensor_file(path: Path, stem: str) -> Path:
    """The path of a file of tensors. Raises: CheckpointError when it is missing or a pickle."""
    file = path / f"{stem}.safetensors"
    if not file.is_file():
        pickles = [p.name for p in path.glob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]
        if pickles:
            raise CheckpointError(
                f"{path / pickles[0]} is a pickle, which can run code when it is loaded; "
                f"only safetensors files are read, and {file.name} is missing"
            )
        raise DamagedCheckpointError(f"{path} is not a checkpoint: it has no {file.name}")
    with file.open("rb") as stream:
        head = stream.read(9)
    # Behind the eight bytes of its length, which may be any, the header is JSON.
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise CheckpointError(
            f"{file} is a pickle, which can run code when it is loaded; "
            f"only safetensors files are read"
        )
    return file


def _damaged(file: Path, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{file} is truncated or damaged: {_reason(error)}")


def _flush(path: Path) -> None:
    is_folder = path.is_dir()
    try:  # Windows flushes only what is open for writing, and opens no folder at all
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
