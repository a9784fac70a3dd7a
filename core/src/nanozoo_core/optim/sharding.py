"""Whole tensors from sharded ones and back, for the parts of the code that need whole matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A block of a tensor that lies on this rank."""

    tensor: Tensor
    """The block itself: what is written into it is written into the state of the run."""
    offsets: tuple[int, ...]
    """Where it begins, along each axis of the whole."""
    whole: tuple[int, ...]
    """The shape of the whole."""
    is_shared: bool = False
    """Whether all ranks have the same."""

    @property
    def place(self) -> tuple[slice, ...]:
        """The block in a tensor of the whole's shape."""
        return block(self.offsets, self.tensor.shape)


Pieces = Mapping[str, list[Piece]]


class Readable(Protocol):
    """A whole tensor, or one on disk that is read block by block."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, place: tuple[slice, ...]) -> Tensor: ...


def block(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """An index of the block that begins at `offsets`."""
    return tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))


def pieces_of(tensor: Tensor) -> list[Piece]:
    """What of a tensor lies on this rank, without a copy and without communication: a DTensor's
    shard, or nothing where that is empty; any other tensor whole."""
    if not hasattr(tensor, "full_tensor"):
        return [Piece(tensor, (0,) * tensor.ndim, tuple(tensor.shape), is_shared=True)]
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    local = tensor.to_local()
    (chunk,) = tensor.__create_chunk_list__()  # what DTensor offers torch.distributed.checkpoint
    return [Piece(local, tuple(chunk.offsets), tuple(tensor.shape))] if local.numel() else []


@torch.no_grad()
def fill(pieces: Pieces, tensors: Mapping[str, Readable]) -> None:
    """Copies into each piece its block of the whole tensor of that name."""
    for name, parts in pieces.items():
        for piece in parts:
            piece.tensor.copy_(tensors[name][piece.place])


def gather_whole(tensor: Tensor) -> Tensor:
    """The whole of a DTensor on every rank (a collective); other tensors as they are."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def shard_like(whole: Tensor, reference: Tensor) -> Tensor:
    """This rank's part of `whole`, laid out as the DTensor `reference`; needs no communication.
    With an ordinary `reference` it is `whole` itself."""
    if not hasattr(reference, "full_tensor"):
        return whole
    # Imported late: torch can be built without it.
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(reference, DTensor)
    mesh = reference.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=reference.placements)


@contextmanager
def keep_marks(model: nn.Module) -> Iterator[None]:
    """Around `fully_shard`, which makes parameters anew: puts `muon_split` and the like back."""
    marks = {
        name: {key: value for key, value in vars(p).items() if key.startswith("muon_")}
        for name, p in model.named_parameters()
    }
    yield
    for name, parameter in model.named_parameters():
        for key, value in marks[name].items():
            setattr(parameter, key, value)
