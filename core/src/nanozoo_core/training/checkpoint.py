"""Checkpoints that a kill at any moment cannot spoil, and that load without running any code.

A checkpoint is a folder `step_000040` with `model.safetensors`, `optimizer.safetensors`,
`ema.safetensors` where weights are averaged, and `state.json`; `sharded_save` writes folders of
shards in place of the files. It is written under another name, flushed to disk and renamed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from nanozoo_core import tensor_files
from nanozoo_core.errors import CheckpointError, NanozooError, first_line
from nanozoo_core.files import UNFINISHED, remove_unfinished
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.sharding import Pieces, Readable, fill, gather_whole, pieces_of
from nanozoo_core.training.claim import Claim
from nanozoo_core.training.integrity import DamagedCheckpointError, check_files
from nanozoo_core.training.run_folder import RunFolder, TrainState, read_state, write_state
from nanozoo_core.training.signals import without_interrupts
from nanozoo_core.training.stored_tensors import by_file, stored_tensors

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
    names = [name for name in state.files or {} if name.partition("/")[0].split(".")[0] in stems]
    for name in names:
        if "/" in name and not (path / name).is_file():  # a shard
            raise DamagedCheckpointError(f"{path} is not a checkpoint: it has no {name}")
    for stem in stems:
        with stored_tensors(path, stem):
            pass
    if verify:
        check_files(path, state, names)


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
    named = dict(model.named_parameters()) | buffers(model)
    return {name: gather_whole(t.detach()).cpu().contiguous() for name, t in named.items()}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """The persistent ones, by name."""
    kept = set(model.state_dict(keep_vars=True))
    return {name: b for name, b in model.named_buffers() if name in kept}


def model_pieces(model: nn.Module) -> Pieces:
    """What of `model_tensors` lies on this rank, without a copy and without communication."""
    named = dict(model.named_parameters()) | buffers(model)
    return {name: pieces_of(tensor.detach()) for name, tensor in named.items()}


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Readable], source: Path) -> None:
    """Copies whole tensors into the model in place; a sharded one takes its blocks of them.

    Raises: CheckpointError when names, shapes or types are those of another model.
    """
    _check_fit(dict(model.named_parameters()) | buffers(model), tensors, source)
    fill(model_pieces(model), tensors)


def _check_fit(
    targets: Mapping[str, Tensor], tensors: Mapping[str, Readable], source: Path
) -> None:
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


def check_average(model: nn.Module, tensors: Mapping[str, Readable], source: Path) -> None:
    """Raises: CheckpointError when the averages are not those of all parameters and no others."""
    _check_fit(dict(model.named_parameters()), tensors, source / "ema.safetensors")


def _type(tensor: Readable) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
        conclude(run, state, temporary, keep=keep)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise not_written(run, state.step, error) from error
    return final


def conclude(run: RunFolder, state: TrainState, temporary: Path, *, keep: int) -> None:
    """Makes the checkpoint of `state.step` of a folder that holds its tensors, and removes the
    older ones beyond `keep`. Raises: OSError."""
    final = run.checkpoint(state.step)
    write_state(temporary, state)
    _flush(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _flush(run.checkpoints_path)
    _remove_old(run, state, keep)


def not_written(run: RunFolder, step: int, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint of step {step} cannot be written to {run.checkpoints_path}: "
        f"{_reason(error)}; earlier checkpoints are untouched, and train resume={run} goes on"
    )


def renew(run: RunFolder, state: TrainState, buffers: Mapping[str, Tensor], *, keep: int) -> None:
    """Replaces the buffers and the state in the checkpoint of `state.step`, each file at once, and
    removes what has become too old.

    Args: buffers: of the model, which are all that calibration sets: a kill between two files
        leaves a checkpoint from which the run finishes to the same bits.
    Raises: CheckpointError when the disk refuses or the checkpoint is damaged; it is then as it
        was.
    """
    folder = run.checkpoint(state.step)
    try:
        with without_interrupts():
            files = read_state(folder, verify=False).files or {}
            with stored_tensors(folder, "model", tables=buffers.keys()) as stored:
                changed = by_file(stored, buffers.keys())
            for file, names in changed.items():
                remove_unfinished(file.parent)
                content, places = tensor_files.read_blocks(file)
                content |= {name: buffers[name] for name in names}
                digest = tensor_files.digest_of(content, places)
                name = file.relative_to(folder).as_posix()
                if files.get(name) != [digest]:
                    either = [*files.get(name, []), digest]
                    write_state(folder, replace(state, files=files | {name: either}))
                    tensor_files.write_tensors(file, content, places)
                files = files | {name: [digest]}
            remove_unfinished(folder)
            state.files = files
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
    """The tensors of one kind of a checkpoint folder, whole; never unpickles.

    Args: tables: names of those that may hold the logarithm of 0.

    Raises: CheckpointError for a missing, truncated or foreign file; NonFiniteError for the file of
        a run that has diverged.
    """
    with stored_tensors(path, stem, tables=tables) as stored:
        return {name: tensor.whole() for name, tensor in stored.items()}


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
