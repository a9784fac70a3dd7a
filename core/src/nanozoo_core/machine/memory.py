"""How much memory a device has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nanozoo_core.errors import ConfigError

GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none


@contextmanager
def addressable(sizes: str) -> Iterator[None]:
    """For building a model: says so where one of its tensors is larger than an address space.

    Args: sizes: the model and its settings, for the error.

    Raises: ConfigError.
    """
    try:
        yield
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise ConfigError(
            f"{sizes} has a tensor of more than 2^63 numbers; use smaller sizes"
        ) from error


def total_memory_bytes(device: torch.device) -> int | None:
    """All that a device has, whether it is in use or not; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    try:
        return min(found, int(GROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return found
