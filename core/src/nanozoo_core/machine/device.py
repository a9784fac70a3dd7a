"""Which device and precision a run uses, and what is known of the device."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from nanozoo_core.errors import ConfigError, OutOfMemoryError, first_line

log = logging.getLogger(__name__)

# Dense bfloat16 peak in FLOP/s by a part of the device's name (vendors' data sheets).
PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device asked for, or with auto the best one present.

    Raises: ConfigError when the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
        else:
            name = "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("device=cuda is not available on this machine; use device=auto")
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"this process is local rank {local_rank} but the machine has "
                f"{torch.cuda.device_count()} GPUs; lower --nproc-per-node"
            )
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps is not available on this machine; use device=auto")
    return torch.device(name)


def is_interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, to test them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require_gpu(setting: str, model: nn.Module) -> None:
    """Raises: ConfigError when `model`, of which `setting` asks for kernels, is on the CPU."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not is_interpreting():
        raise ConfigError(f"{setting} needs a GPU, and this run is on the CPU; leave it out")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The autocast precision. auto takes bfloat16 only on GPUs that are fast at it; on a CPU, where
    a training measures that first, it stands for float32. It never takes float16, whose range a
    model may leave: who has an older GPU asks for it.

    Raises: ConfigError where PyTorch cannot multiply in that precision on the device.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16
        log.warning(
            "%s has no fast bfloat16, so dtype=auto is float32; dtype=float16 is faster on it",
            torch.cuda.get_device_name(device),
        )
        return torch.float32
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if dtype != torch.float32 and not _can_multiply(device, dtype):
        raise ConfigError(
            f"dtype={name} is beyond device={device.type} with PyTorch {torch.__version__} on this "
            f"machine; use dtype=float32, or dtype=auto for the best that it has"
        )
    return dtype


def _can_multiply(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether autocast makes a product in `dtype`: where it cannot, it warns and does nothing, or
    the product is not there."""
    x = torch.ones(2, 2, device=device)
    try:
        with warnings.catch_warnings(), torch.autocast(device.type, dtype=dtype):
            warnings.simplefilter("ignore")
            return torch.mm(x, x).dtype == dtype
    except RuntimeError:
        return False


def should_compile(setting: Literal["auto", True, False], device: torch.device) -> bool:
    """auto compiles on CUDA only: on a CPU it gains a few percent after half a minute."""
    return device.type == "cuda" if setting == "auto" else bool(setting)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off inside of it, without losing the weights that it has cast."""
    return torch.autocast(device.type, enabled=False)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of the device, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_on_windows() -> int:
    """The largest working set of this process, by GetProcessMemoryInfo."""
    import ctypes

    sizes = ["peak", "now", "quota_peak_paged", "quota_paged", "quota_peak_other", "quota_other"]
    sizes += ["page_file", "page_file_peak"]

    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS of psapi.h
        _fields_ = [
            ("size", ctypes.c_uint32),
            ("num_page_faults", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in sizes),
        ]

    found = Counters()
    found.size = ctypes.sizeof(found)
    windows = getattr(ctypes, "windll")  # noqa: B009, other systems do not know it
    process = ctypes.c_void_p(windows.kernel32.GetCurrentProcess())
    windows.psapi.GetProcessMemoryInfo(process, ctypes.byref(found), found.size)
    return int(found.peak)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it tells of an allocation that failed, on whatever device. That of a CPU and that of
    an Apple GPU have no class of their own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(each in said for each in words)


def out_of_memory(error: BaseException) -> OutOfMemoryError:
    """What is said of one, where no training tells which of its settings to lower."""
    return OutOfMemoryError(
        f"out of memory; nanozoo evaluate takes a smaller batch_tokens=N, and --device names "
        f"another device ({first_line(error)})"
    )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_cpu_name()} ({torch.get_num_threads()} threads)"


def _cpu_name() -> str:
    """The processor and its widest vector instructions, which decide its speed here."""
    name = platform.processor() or platform.machine() or "cpu"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        name = found[1].strip() if found else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
