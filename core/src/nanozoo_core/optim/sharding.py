"""Whole tensors from sharded ones and back, for the parts of the code that need whole matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


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
