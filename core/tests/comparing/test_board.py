"""Reports of finished runs, and a folder that takes in the runs of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanozoo_core.commands.cli import main
from nanozoo_core.comparing.compare import outputs
from nanozoo_core.comparing.compare.board import add_run, finished_runs, runs_of
from nanozoo_core.comparing.compare.command import title
from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.training.run_folder import RunFolder


def write_run(folder: Path, *, model: str = "toy", seed: int = 0, lr: float = 0.1) -> Path:
    """A finished run folder without its training, with a file that stands for weights."""
    folder.mkdir(parents=True)
    result = {
        "model": model, "params": 1000, "val_bpb": 2.0 + seed / 100, "val_bound": "exact",
        "val_bytes": 1000, "val_tokens": 1000, "data_fingerprint": "abc", "train_bytes": 5000,
        "train_seconds": 2.0, "train_flops": 1e9, "seed": seed, "device": "cpu",
        "baselines_bpb": {}, "git_commit": None,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    config = {"model": model, "seed": seed, "data": {"seq_len": 32}, "run_dir": str(folder)}
    config["optim"] = {"name": "adamw", "lr": lr}
    (folder / "config.yaml").write_text(json.dumps(config))
    row = {"step": 1, "bytes": 1000, "flops": 1e6, "seconds": 1, "train_bpb": 3.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "checkpoints").mkdir()
    return folder


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and other tests look at them."""
    monkeypatch.setattr(outputs, "write_plots", lambda folder, groups: None)


def labels_in(report: Path) -> dict[str, str]:
    """The seeds of each label in report.md."""
    cells = [line.split(" | ") for line in report.read_text().splitlines() if " | " in line]
    return {row[1]: row[3] for row in cells[1:]}


def test_a_report_of_runs_and_of_folders_with_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_run(tmp_path / "mine")
    write_run(tmp_path / "all/gpt/today", model="other")
    write_run(tmp_path / "all/gpt/later", model="other", seed=1)
    out = tmp_path / "report"
    main(["report", f"best:{mine}", str(tmp_path / "all"), "--folder", str(out)])
    assert labels_in(out / "report.md") == {"best": "1", "other": "2"}
    assert (out / "configs/best.yaml").read_text() == (mine / "config.yaml").read_text()
    assert (out / "configs/other.yaml").is_file()
    said = capsys.readouterr().out
    assert "](configs/" not in said
    assert "](configs/best.yaml)" in (out / "report.md").read_text()
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "report/configs"), "--folder", str(out)])
    assert "is no run, and no finished run lies in it" in capsys.readouterr().err


def test_a_folder_grows_run_by_run(tmp_path: Path) -> None:
    board = tmp_path / "board"
    first = write_run(tmp_path / "a")
    main(["compare", "--add", str(first), f"folder={board}"])
    assert labels_in(board / "report.md") == {"toy": "1"}
    names = sorted(path.name for path in (board / "added/toy_0").iterdir())
    assert names == ["config.yaml", "metrics.jsonl", "result.json"]  # and no weights
    second, other = write_run(tmp_path / "b", seed=1), write_run(tmp_path / "c", lr=0.2)
    main(["compare", "--add", str(second), "--add", f"fast:{other}", f"folder={board}"])
    assert labels_in(board / "report.md") == {"toy": "2", "fast": "1"}
    before = (board / "added/toy_0/result.json").stat().st_mtime_ns
    main(["compare", "--add", str(first), f"folder={board}"])  # again: nothing changes
    assert labels_in(board / "report.md") == {"toy": "2", "fast": "1"}
    assert (board / "added/toy_0/result.json").stat().st_mtime_ns == before


def test_what_a_folder_trained_is_in_its_reports(tmp_path: Path) -> None:
    board = tmp_path / "board"
    write_run(board / "runs/wide_0", lr=0.3)
    write_run(board / "runs/wide_1", lr=0.3, seed=1)
    main(["compare", "--add", str(write_run(tmp_path / "a")), f"folder={board}"])
    assert labels_in(board / "report.md") == {"wide": "2", "toy": "1"}
    request = parse(["models=toy", f"folder={board}"])
    assert request.with_runs(runs_of(board, ("added",))).labels == {board / "added/toy_0": "toy"}


def test_a_name_holds_one_run_of_a_seed(tmp_path: Path) -> None:
    board = tmp_path / "board"
    add_run(board, str(write_run(tmp_path / "a")))
    other = write_run(tmp_path / "b", lr=0.2)
    with pytest.raises(CheckpointError, match=r"optim\.lr=0\.1, and .* has optim\.lr=0\.2; give"):
        add_run(board, str(other))
    unfinished = write_run(tmp_path / "c")
    (unfinished / "result.json").unlink()
    with pytest.raises(CheckpointError, match="holds no finished run"):
        add_run(board, f"late:{unfinished}")
    assert not (board / "added/late_0").exists()


def test_a_strange_name_of_a_model_stays_in_the_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", model="../../<b>")
    copy = add_run(tmp_path / "board", str(run))
    assert copy == tmp_path / "board/added/_b__0"
    main(["report", str(run), "--folder", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out/configs").iterdir()] == ["_b_.yaml"]


def test_runs_may_be_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    request = parse([f"runs='small:{run}'"])
    assert (request.runs, request.labels) == ((run,), {run: "small"})
    odd = write_run(tmp_path / "x:y")
    assert finished_runs([str(odd)]) == {odd: None}
    with pytest.raises(ConfigError, match="is no run"):
        finished_runs([f"small:{tmp_path / 'nowhere'}"])
    assert RunFolder(run).is_finished


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("bytes:3e6", "after 3 MB of text each"),
        ("tokens:1.2e6", "after 1.2 M tokens each"),
        ("steps:100", "after 100 steps each"),
        ("seconds:90", "after 90 seconds each"),
        ("flops:5e12", "after 5 T FLOPs each"),
        ("own", "each within its own budget"),
    ],
)
def test_a_title_is_in_peoples_words(budget: str, words: str) -> None:
    assert title(parse(["models=toy", f"budget={budget}"])).endswith(words)
