from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.errors import CheckpointError
from nanozoo_core.training.run_folder import RunFolder, Sample, Samples, read_state


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    misleading = Sample("def", "def f():\n--- prompt: 'x'\n--- shown\n")
    samples = Samples((Sample("", "caf\xe9\n"), misleading), shown="[de][f ]")
    run.write_samples(samples)
    assert run.read_samples() == samples


def test_samples_are_written_for_people_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_samples(Samples((Sample("", "abc"), Sample("de", "def")), shown="[a]"))
    text = run.samples_text_path.read_text()
    assert text == "--- prompt: ''\nabc\n\n--- prompt: 'de'\ndef\n\n--- shown\n[a]\n"


def test_a_run_with_samples_only_as_text_has_none_as_data(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.samples_text_path.write_text("--- prompt: ''\nabc\n")
    assert run.read_samples() == Samples()


def test_a_folder_says_how_far_its_run_came(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not run.is_run
    with pytest.raises(CheckpointError, match="is not a run folder"):
        run.read_config()
    with pytest.raises(CheckpointError, match="no checkpoint to continue from"):
        run.latest_checkpoint()
    run.checkpoint(7).mkdir(parents=True)
    run.checkpoint(12).mkdir()
    (run.checkpoints_path / ".writing-step_000020").mkdir()
    run.write_config({"model": "toy", "seed": 1})
    assert run.is_run
    assert run.read_config() == {"model": "toy", "seed": 1}
    assert run.checkpoint_steps() == [7, 12]
    assert run.latest_checkpoint() == run.checkpoint(12)
    with pytest.raises(CheckpointError, match="train resume="):
        run.read_result()
    run.write_result({"val_bpb": 2.0})
    assert run.is_finished
    assert run.read_result() == {"val_bpb": 2.0}


def test_metrics_end_at_a_line_cut_off_by_a_kill(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    rows = [row_of(step=1, loss=2.5), row_of(step=2, loss=None)]
    run.write_metrics(rows)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_metrics() == rows


def row_of(**values: object) -> dict[str, Any]:
    return {"tokens": 8, "bytes": 9, "flops": 1.0, "seconds": 0.5} | values


@pytest.mark.parametrize("key", ["step", "tokens", "bytes", "flops", "seconds", "val_bpb"])
@pytest.mark.parametrize("value", ["2.5", [2.5], math.inf])
def test_metrics_hold_numbers(tmp_path: Path, key: str, value: object) -> None:
    """What a flipped bit leaves is no row: plots and reports take every number as one."""
    run = RunFolder(tmp_path)
    whole = row_of(step=1, loss=2.5, val_bpb=2.0)
    lines = [json.dumps(row) for row in (whole, whole | {key: value})]
    run.metrics_path.write_text("\n".join(lines))
    assert len(run.read_metrics()) == (2 if key == "val_bpb" and value == math.inf else 1)
    missing = {name: number for name, number in whole.items() if name != key}
    run.metrics_path.write_text(json.dumps(missing))
    assert len(run.read_metrics()) == (1 if key == "val_bpb" else 0)


@pytest.mark.parametrize("content", ["", '{"val_bpb": 2', "[]"])
def test_a_half_written_result_is_none(tmp_path: Path, content: str) -> None:
    run = RunFolder(tmp_path)
    run.result_path.write_text(content)
    assert not run.is_finished
    with pytest.raises(CheckpointError, match=r"result.json is damaged .*train resume="):
        run.read_result()


def test_damaged_files_are_one_sentence_each(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for path, read in (
        (run.samples_path, run.read_samples),
        (run.data_path, run.read_data),
        (tmp_path / "state.json", lambda: read_state(tmp_path)),
    ):
        for content in (b"", b"\xff", b'{"texts": [1]}', b'{"fingerprint": 1}', b"[[]]"):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=rf"{path.name} is damaged [^\n]*$"):
                read()
    whole = json.dumps(row_of(step=1))
    run.metrics_path.write_bytes(whole.encode() + b'\n{"loss": 2}\n\xff\n')
    assert run.read_metrics() == [row_of(step=1)]
