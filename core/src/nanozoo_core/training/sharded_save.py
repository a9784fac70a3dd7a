"""Checkpoints that every rank writes a part of: nothing is gathered, and no rank holds the whole.

`model/`, `optimizer/` and `ema/` in the checkpoint's folder hold the shards, each a safetensors
file of blocks of one rank. Names and headers are those of torch.distributed.checkpoint's
`HuggingFaceStorageWriter(save_distributed=True)`, and its reader takes them.

A save goes on beside the training: the blocks are copied, a thread of each rank brings them to the
disk, and once all have, rank 0 gives the checkpoint its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from nanozoo_core import tensor_files
from nanozoo_core.errors import CheckpointError, NanozooError
from nanozoo_core.files import UNFINISHED, remove_unfinished
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.build import OptimizerSet
from nanozoo_core.optim.sharding import Pieces
from nanozoo_core.tensor_files import Place
from nanozoo_core.training import checkpoint
from nanozoo_core.training.claim import Claim
from nanozoo_core.training.ema import WeightAverage
from nanozoo_core.training.run_folder import TrainState
from nanozoo_core.training.signals import without_interrupts


def should_shard(setting: Literal["auto", True, False], strategy: str, ranks: Ranks) -> bool:
    """auto writes shards where the model lies in shards."""
    return ranks.world_size > 1 and strategy == "fsdp" if setting == "auto" else setting


@dataclass(frozen=True)
class _Shard:
    """What one file holds: blocks by the names of their tensors, and the place of each."""

    name: str  # within the checkpoint's folder
    tensors: dict[str, Tensor]
    places: dict[str, Place]


def all_pieces(
    model: nn.Module, optimizers: OptimizerSet, average: WeightAverage
) -> dict[str, Pieces]:
    """What this rank has of all that a checkpoint holds beside the counters, by kind."""
    found: dict[str, Pieces] = {
        "model": checkpoint.model_pieces(model),
        "optimizer": optimizers.pieces(),
    }
    return found | ({"ema": average.pieces()} if average.is_kept else {})


def copied_shards(kind: str, pieces: Pieces, rank: int) -> list[_Shard]:
    """Copies on the CPU of what a rank writes: its own blocks, and on rank 0 what all have. A file
    takes one block of each tensor, so that there are as many as the most of any."""
    written = {
        name: [piece for piece in parts if rank == 0 or not piece.is_shared]
        for name, parts in pieces.items()
    }
    count = max(map(len, written.values()), default=0)
    shards = []
    for number in range(count):
        mine = {name: parts[number] for name, parts in written.items() if number < len(parts)}
        name = f"{kind}/shard-{rank + 1:05d}-model-{number + 1:05d}-of-{count:05d}.safetensors"
        tensors = {key: piece.tensor.detach().to("cpu", copy=True) for key, piece in mine.items()}
        places = {key: Place(piece.offsets, piece.whole) for key, piece in mine.items()}
        shards.append(_Shard(name, tensors, places))
    return shards


class ShardedSave:
    """One checkpoint on its way to the disk. Making one and `finish` are collectives."""

    def __init__(
        self,
        claim: Claim,
        state: TrainState,
        pieces: dict[str, Pieces],
        *,
        ranks: Ranks,
        tables: Set[str] = frozenset(),
    ) -> None:
        """Copies the pieces, and begins to write.

        Args: tables: of the model's tensors, those that may hold the logarithm of 0.

        Raises: on every rank, CheckpointError when the folder cannot be written or is there no
            more, NonFiniteError for weights that are not finite.
        """
        self.state, self.folder, self._ranks = replace(state), claim.folder, ranks
        final = self.folder.checkpoint(state.step)
        self._temporary = self.folder.checkpoints_path / f"{UNFINISHED}{final.name}"
        shards: list[_Shard] = []
        problem: NanozooError | None = None
        try:
            for kind, of_kind in pieces.items():
                of_rank = copied_shards(kind, of_kind, ranks.rank)
                allowed = tables if kind == "model" else frozenset()
                for shard in of_rank:
                    what = f"the {checkpoint.NOUNS[kind]}"
                    tensor_files.require_finite(shard.tensors, what, logarithms=allowed)
                shards += of_rank
            if ranks.is_main:
                claim.check_in_place()
                self._make_folder(list(pieces))
        except NanozooError as error:
            problem = error
        self._raise_anywhere(problem)
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[dict[str, str]] = pool.submit(self._write, shards)
        pool.shutdown(wait=False)

    @property
    def is_written(self) -> bool:
        """Whether this rank has done its part."""
        return self._written.done()

    def finish(self, *, keep: int) -> None:
        """Waits for all ranks, gives the checkpoint its name and removes the older ones beyond
        `keep`.

        Raises: on every rank, CheckpointError when the disk of any refuses; older checkpoints are
            then untouched.
        """
        with without_interrupts():
            problem: NanozooError | None = None
            digests: dict[str, str] = {}
            try:
                digests = self._written.result()
            except OSError as error:
                problem = self._refused(error)
            of_ranks = self._ranks.gather(digests)
            try:
                self._raise_anywhere(problem)
                if self._ranks.is_main:
                    self._conclude({k: v for found in of_ranks for k, v in found.items()}, keep)
            except NanozooError as error:
                problem = error
                if self._ranks.is_main:
                    shutil.rmtree(self._temporary, ignore_errors=True)
            self._raise_anywhere(problem)

    def _make_folder(self, kinds: list[str]) -> None:
        try:
            remove_unfinished(self.folder.checkpoints_path)
            for kind in kinds:
                (self._temporary / kind).mkdir(parents=True)
        except OSError as error:
            raise self._refused(error) from error

    def _write(self, shards: list[_Shard]) -> dict[str, str]:
        """Returns: the digests of the files, by name."""
        digests = {}
        for shard in shards:
            file = self._temporary / shard.name
            digests[shard.name] = tensor_files.write_tensors(file, shard.tensors, shard.places)
        return digests

    def _conclude(self, digests: dict[str, str], keep: int) -> None:
        lost = [name for name in digests if not (self._temporary / name).is_file()]
        if lost:
            raise CheckpointError(
                f"the shard {lost[0]} of step {self.state.step} is not in {self._temporary}: all "
                f"ranks must write to one folder; choose run_dir on storage that they share, or "
                f"checkpoint.sharded=false"
            )
        self.state.files = {name: [digest] for name, digest in digests.items()}
        try:
            checkpoint.conclude(self.folder, self.state, self._temporary, keep=keep)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> CheckpointError:
        return checkpoint.not_written(self.folder, self.state.step, error)

    def _raise_anywhere(self, problem: NanozooError | None) -> None:
        """Raises the first problem of any rank on all of them."""
        for found in self._ranks.gather(problem):
            if found is not None:
                raise found


def is_due(pending: ShardedSave, ranks: Ranks, device: torch.device) -> bool:
    """Whether all ranks have written; the same on every rank."""
    return not float(ranks.max(torch.tensor([float(not pending.is_written)], device=device)))
