"""`nanozoo show RUN`."""

from __future__ import annotations

from pathlib import Path

from nanozoo_core.training.describe import describe_run
from nanozoo_core.training.run_folder import RunFolder


def test_a_result_is_shown_as_values(tmp_path: Path) -> None:
    result = {"model": "toy", "params": 137152, "val_bpb": 2.8543196, "mfu": None, "flops": 2e9}
    result |= {"baselines_bpb": {"zlib": 3.69976}, "shape": [1024, 0.5], "is_whole": True}
    RunFolder(tmp_path).write_result(result)
    assert describe_run(tmp_path, text=None).splitlines() == [
        *("model: toy", "params: 137,152", "val_bpb: 2.85432", "mfu: -", "flops: 2,000,000,000"),
        *("baselines_bpb.zlib: 3.69976", "shape: 1,024, 0.5", "is_whole: true"),
    ]
