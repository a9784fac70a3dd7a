"""The tensors of a checkpoint as they lie on disk, to be read whole or block by block.

A checkpoint keeps each kind of tensors (model, optimizer, ema) in one file `KIND.safetensors`, or
in a folder `KIND/` of shards that the ranks have written: the format of torch's
`HuggingFaceStorageReader`. A shard's header says where in the whole each of its blocks begins, so
that any number of processes can read what any other number has written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanozoo_core import tensor_files
from nanozoo_core.errors import CheckpointError, first_line
from nanozoo_core.training.integrity import DamagedCheckpointError

SHARDS = "shard-*.safetensors"
Place = tuple[slice, ...]


def files_of(path: Path, stem: str) -> list[Path]:
    """The files of one kind of tensors of a checkpoint folder.

    Raises: DamagedCheckpointError when there are none; CheckpointError for a pickle.
    """
    if (path / stem).is_dir():
        found = sorted((path / stem).glob(SHARDS))
        if not found:
            raise DamagedCheckpointError(f"{path} is not a checkpoint: it has no shards in {stem}")
        return found
    return [_single_file(path, stem)]


def _single_file(path: Path, stem: str) -> Path:
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


def damaged(file: Path, error: Exception) -> DamagedCheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return DamagedCheckpointError(f"{file} is truncated or damaged: {reason}")


@dataclass(frozen=True)
class _Block:
    """A part of a tensor in one file."""

    file: Path
    opened: Any
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass
class StoredTensor:
    """One tensor, of which any block can be read: `stored[place]` with a slice for each axis."""

    name: str
    dtype: torch.dtype
    is_table: bool
    """Whether it may hold the logarithm of 0."""
    shape: torch.Size
    """Of the whole."""
    blocks: list[_Block] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether its blocks, which never overlap, make up the whole."""
        return sum(math.prod(block.sizes) for block in self.blocks) == math.prod(self.shape)

    def whole(self) -> Tensor:
        return self[tuple(slice(0, size) for size in self.shape)]

    def __getitem__(self, place: Place) -> Tensor:
        """Raises: DamagedCheckpointError when a file cannot be read, NonFiniteError for values of a
        run that has diverged."""
        found = torch.empty([axis.stop - axis.start for axis in place], dtype=self.dtype)
        for block in self.blocks:
            here, there = [], []
            for axis, begin, size in zip(place, block.offsets, block.sizes, strict=True):
                first, last = max(axis.start, begin), min(axis.stop, begin + size)
                here.append(slice(first - axis.start, last - axis.start))
                there.append(slice(first - begin, last - begin))
            if all(axis.start < axis.stop for axis in there):
                found[tuple(here)] = self._read(block, tuple(there))
        return found

    def _read(self, block: _Block, place: Place) -> Tensor:
        try:
            if not place:
                part = block.opened.get_tensor(self.name)
            else:
                part = block.opened.get_slice(self.name)[place]
        except (SafetensorError, OSError, ValueError) as error:
            raise damaged(block.file, error) from error
        tables = {self.name} if self.is_table else frozenset()
        tensor_files.require_finite({self.name: part}, block.file, logarithms=tables)
        return part


StoredTensors = Mapping[str, StoredTensor]


@contextmanager
def stored_tensors(
    path: Path, stem: str, *, tables: Set[str] = frozenset()
) -> Iterator[StoredTensors]:
    """One kind of tensors of a checkpoint, by name; its files are open inside the block.

    Args: tables: names of those that may hold the logarithm of 0.

    Raises: DamagedCheckpointError for files that are missing, truncated or incomplete;
        CheckpointError for a pickle.
    """
    found: dict[str, StoredTensor] = {}
    with ExitStack() as files:
        for file in files_of(path, stem):
            try:
                opened = files.enter_context(safe_open(file, framework="pt"))
                _add(found, file, opened, tables)
            except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
                raise damaged(file, error) from error
        for name, tensor in found.items():
            if not tensor.is_complete:
                raise DamagedCheckpointError(
                    f"{path / stem} lacks a part of {name}: a shard is missing"
                )
        yield found


def _add(found: dict[str, StoredTensor], file: Path, opened: Any, tables: Set[str]) -> None:
    """Adds what one file holds."""
    places = tensor_files.places_in(opened.metadata())
    for name in opened.keys():  # noqa: SIM118  (it is no mapping)
        part = opened.get_slice(name)
        sizes, dtype = tuple(part.get_shape()), tensor_files.TYPES[part.get_dtype()]
        offsets, whole = ((0,) * len(sizes), sizes) if places is None else places[name]
        stored = found.setdefault(
            name, StoredTensor(name, dtype, name in tables, torch.Size(whole))
        )
        stored.blocks.append(_Block(file, opened, offsets, sizes))


def by_file(stored: StoredTensors, names: Set[str]) -> dict[Path, set[str]]:
    """Which of some tensors each file holds."""
    found: dict[Path, set[str]] = {}
    for name in names:
        for block in stored[name].blocks:
            found.setdefault(block.file, set()).add(name)
    return found
