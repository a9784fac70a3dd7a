"""Training and writing where Python is as on Windows, as far as that can be imitated."""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanozoo_core.commands import cli, train
from nanozoo_core.machine import device
from nanozoo_core.training.run_folder import RunFolder

PEAK = 123_456_789


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module resource, no open folder, and no flush of what is open for reading."""
    os_open, os_fsync = os.open, os.fsync

    def open_file(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return os_open(path, flags, *rest, **options)

    def flush(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        os_fsync(descriptor)

    def tell_memory(process: Any, counters: Any, size: int) -> int:
        assert size == 72  # of PROCESS_MEMORY_COUNTERS on 64 bits
        counters._obj.peak = PEAK
        return 1

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", flush)
    library = SimpleNamespace(
        kernel32=SimpleNamespace(GetCurrentProcess=lambda: -1),
        psapi=SimpleNamespace(GetProcessMemoryInfo=tell_memory),
    )
    monkeypatch.setattr(ctypes, "windll", library, raising=False)


class Console(io.BytesIO):
    """What a console in cp1252 was given, as stdout and stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        for name in ("stdout", "stderr"):
            stream = io.TextIOWrapper(self, encoding="cp1252", newline="", write_through=True)
            monkeypatch.setattr(sys, name, stream)


@pytest.mark.usefixtures("windows")
def test_a_run_trains_and_writes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(monkeypatch)  # only now: pytest sets its own before every test
    words = ["--model", "toy", "data.corpus=text", f"data.path='{corpus}'", "log.tensorboard=false"]
    words += ["run_dir=here", "train.max_steps=2", "checkpoint.every=1"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    train.main()
    assert RunFolder(Path("here")).read_result()["peak_memory_bytes"] == PEAK
    length = len(console.getvalue())
    cli.main(["generate", "here", "--prompt", "caf\u00e9 \U0001f600", "--max-tokens", "200"])
    shown = console.getvalue()[length:].decode("cp1252")
    assert shown.startswith("caf\u00e9 ?")  # and what else the model writes, most of it no text
    assert "\x1b" not in shown


@pytest.mark.usefixtures("windows")
def test_device_needs_no_module_that_windows_lacks() -> None:
    again = importlib.reload(device)
    assert again.peak_memory_bytes(torch.device("cpu")) == PEAK
