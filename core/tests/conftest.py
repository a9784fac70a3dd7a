"""Announces the toy model of toy_zoo/ as an installed package, here and in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOY_ZOO = str(Path(__file__).parent / "toy_zoo")
sys.path.insert(0, TOY_ZOO)
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [TOY_ZOO, os.environ.get("PYTHONPATH", "")])
)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twenty small text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        words = [f"word{(number * 7 + i * i) % 23}" for i in range(400)]
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes to a temporary folder, shared by the tests of one run."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    previous = os.environ.get("NANOZOO_CACHE")
    os.environ["NANOZOO_CACHE"] = str(folder)
    yield
    if previous is None:
        del os.environ["NANOZOO_CACHE"]
    else:
        os.environ["NANOZOO_CACHE"] = previous


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python -m nanozoo_core.<module> arguments` in a temporary folder."""

    def run(module: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"nanozoo_core.{module}", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | changes,
        )

    return run
