"""This process among those of a run: who it is, and small exchanges with the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanozoo_core.errors import LostRankError, NanozooError


@dataclass(frozen=True)
class Ranks:
    """This process among all; a single process is rank 0 of 1 and needs no process group."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, a small picklable object, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of each rank, a small picklable object, on every rank."""
        if self.world_size == 1:
            return [value]
        found = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: Tensor) -> Tensor:
        """The elementwise maximum of `values` over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def process_group(device: str, timeout_seconds: float) -> Iterator[Ranks]:
    """Joins the group that torchrun describes in the environment, if it does.

    Args: timeout_seconds: how long a process waits for the others.

    Raises: LostRankError where another one has ended or does not answer in that time. A
        NanozooError that leaves the block knows its rank, and which of its sentences no other says.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    use_cuda = device != "cpu" and torch.cuda.is_available()
    owns_group = not dist.is_initialized()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        if owns_group:
            dist.init_process_group(
                "nccl" if use_cuda else "gloo", timeout=timedelta(seconds=timeout_seconds)
            )
        if use_cuda:
            torch.cuda.set_device(local_rank)
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank)
    except NanozooError as error:
        _share_out(error)
        raise
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        lost = LostRankError(
            f"another process has ended, or has not answered for distributed.timeout_seconds="
            f"{timeout_seconds:g}; what it has said tells why, and a higher value waits longer"
        )
        _share_out(lost)
        raise lost from error
    finally:
        if owns_group and dist.is_initialized():
            dist.destroy_process_group()


def _share_out(error: NanozooError) -> None:
    """Each sentence is said by the rank that comes first to say it; that another one is lost only
    where none has said anything."""
    error.rank = int(os.environ["RANK"])
    if not dist.is_initialized():  # the processes have not found each other
        return
    store = dist.distributed_c10d._get_default_store()
    sentences = str(error).splitlines()
    try:
        if isinstance(error, LostRankError) and store.add("nanozoo/said", 0) > 0:
            error.unsaid = []
            return
        error.unsaid = [text for text in sentences if store.add(f"nanozoo/said/{text}", 1) == 1]
        store.add("nanozoo/said", len(error.unsaid))
    except RuntimeError:  # the store ended with its rank
        error.unsaid = None


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether it is that of a collective. Those of gloo have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
