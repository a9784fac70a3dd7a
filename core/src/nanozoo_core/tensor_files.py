"""Files of tensors in the safetensors format, and the gate that no NaN passes on its way to disk or
back.

A file is the length of a header as 8 little-endian bytes, the header as JSON, and the bytes of the
tensors in the order of the header. It is written from the tensors as they lie in memory, without a
copy of them, and a second thread digests it meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from nanozoo_core.errors import NonFiniteError
from nanozoo_core.files import whole_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint16: "U16",  # what Muon keeps beside bfloat16 weights
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {name: dtype for dtype, name in DTYPES.items()}
SHARDING = "DCP_SHARDING_INFO"  # the key under which torch.distributed.checkpoint keeps offsets
ALIGNMENT = 8  # of the first tensor, as the format asks


class Place(NamedTuple):
    """Where a block lies in a larger tensor."""

    offsets: tuple[int, ...]
    whole: tuple[int, ...]  # the shape of the larger one; torch's reader does not need it


Places = Mapping[str, Place]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], places: Places | None = None) -> str:
    """Writes tensors as one file; what they share of memory is written for each.

    Args: places: of each in the whole, if they are blocks of larger tensors.

    Returns: the sha256 of the file, 64 hex digits.
    Raises: WriteError.
    """
    parts = _parts(tensors, places)
    with ThreadPoolExecutor(1) as pool, whole_file(path) as file:
        digest = pool.submit(_sha256, parts)
        for part in parts:
            file.write(part)
    return digest.result()


def digest_of(tensors: Mapping[str, Tensor], places: Places | None = None) -> str:
    """The sha256 of the file that `write_tensors` would write."""
    return _sha256(_parts(tensors, places))


def places_in(metadata: Mapping[str, str] | None) -> dict[str, Place] | None:
    """Of a file's metadata, the places of its blocks; None for a file of whole tensors.

    Raises: ValueError, LookupError or TypeError for another form.
    """
    if not metadata or SHARDING not in metadata:
        return None
    found = dict(json.loads(metadata[SHARDING]))
    return {
        name: Place(tuple(map(int, about["saved_offsets"])), tuple(map(int, about["whole"])))
        for name, about in found.items()
    }


def _parts(tensors: Mapping[str, Tensor], places: Places | None) -> list[memoryview]:
    # Wide types first, so that each tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    whole = {name: tensors[name].detach().cpu().contiguous() for name in names}
    return [_head(whole, places), *(_bytes_of(tensor) for tensor in whole.values())]


def _head(tensors: Mapping[str, Tensor], places: Places | None) -> memoryview:
    metadata = {"format": "pt"}
    if places is not None:
        saved = {
            name: {"saved_offsets": places[name].offsets, "whole": places[name].whole}
            for name in tensors
        }
        metadata |= {"DCP_VERSION": "1.0", SHARDING: json.dumps(saved, separators=(",", ":"))}
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        kind, shape = DTYPES[tensor.dtype], list(tensor.shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % ALIGNMENT)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes_of(tensor: Tensor) -> memoryview:
    """A view: numpy knows no bfloat16, but bytes of any type."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _sha256(parts: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises: SafetensorError, OSError or ValueError when it is missing, truncated or of another kind.
    """
    return load_file(path)


def read_blocks(path: Path) -> tuple[dict[str, Tensor], dict[str, Place] | None]:
    """The tensors of a file, and their places in the whole if they are blocks of larger ones.

    Raises: as `read_tensors`.
    """
    with safe_open(path, framework="pt") as opened:
        places = places_in(opened.metadata())
    return read_tensors(path), places


def require_finite(
    tensors: Mapping[str, Tensor], what: object, *, logarithms: Set[str] = frozenset()
) -> None:
    """The gate.

    Args:
        what: holds the tensors, as the subject of the error.
        logarithms: names of those that may hold the logarithm of 0, as a model's tables do.

    Raises: NonFiniteError for the first tensor with a NaN or an infinity.
    """
    for name, tensor in tensors.items():
        # A sum is finite only if all summands are, and takes one pass.
        if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
            continue
        wrong = tensor.isnan() | tensor.isposinf() if name in logarithms else ~tensor.isfinite()
        if bool(wrong.any()):
            count, first = int(wrong.sum()), float(tensor[wrong][0])
            raise NonFiniteError(
                f"{what} is not finite: {count} of the {tensor.numel()} values of {name} are "
                f"{first} or the like"
            )


__all__ = ["SafetensorError", "read_tensors", "require_finite", "write_tensors"]
