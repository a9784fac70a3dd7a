from __future__ import annotations

from pathlib import Path

import pytest

from nanozoo_core.testing.processes import train_in_processes


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_failing_child_fails_the_test_with_its_words(
    corpus: Path, tmp_path: Path, num_processes: int
) -> None:
    overrides = [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        f"run_dir='{tmp_path / 'run'}'",
    ]
    with pytest.raises(RuntimeError, match=r"train\.max_stepz is not a setting"):
        train_in_processes(
            [*overrides, "++train.max_stepz=1"], log=tmp_path / "log", num_processes=num_processes
        )


def test_a_module_can_be_taken_away(corpus: Path, tmp_path: Path) -> None:
    overrides = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    with pytest.raises(RuntimeError, match="toy"):
        train_in_processes(overrides, log=tmp_path / "log", without=["nanozoo_toy"])
