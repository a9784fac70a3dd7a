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
    with pytest.raises(RuntimeError, match="nanozoo_toy"):
        train_in_processes(
            overrides,
            log=tmp_path / "log",
            num_processes=num_processes,
            without=["nanozoo_toy"],
        )
