"""A whole comparison: trainings in processes of their own, and the report."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanozoo_core.comparing.compare.member import settings_for
from nanozoo_core.comparing.compare.outputs import write_report
from nanozoo_core.comparing.compare.page import page
from nanozoo_core.comparing.compare.plan import make_plan
from nanozoo_core.comparing.compare.report import Report, markdown
from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.comparing.compare.results import collect, read_run
from nanozoo_core.comparing.compare.tables import results_csv
from nanozoo_core.config import schema
from nanozoo_core.errors import CheckpointError
from nanozoo_core.training.run_folder import RunFolder, Sample, Samples

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def words(corpus: Path) -> list[str]:
    """A comparison of two variants and one that cannot train."""
    return [
        "models=toy,wide:toy,broken:toy",
        "wide.model_cfg.model_dim=32",
        "broken.optim.lr=1e30",
        "broken.optim.muon.lr=1e30",
        "budget=steps:6",
        "seeds=1",
        "data.corpus=text",
        f"data.path='{corpus}'",
        "log.tensorboard=false",
    ]


@pytest.mark.slow
def test_compare_trains_reports_and_goes_on(
    words: list[str], command: object, tmp_path: Path
) -> None:
    # wide has been interrupted before.
    folder = tmp_path / "runs/compare/steps_6"
    members, _ = make_plan(parse([*words, f"folder={folder}"]))
    wide = members[1]
    wide.folder.parent.mkdir(parents=True)
    stopped = command(
        "train", *wide.source, *wide.overrides, f"run_dir={wide.folder}", "train.stop_after=4"
    )
    assert stopped.returncode == 0, stopped.stderr
    seconds = (wide.folder / "metrics.jsonl").read_text().splitlines()[3]

    first = command("commands.cli", "compare", *words)
    assert first.returncode == 1
    assert "error: broken_0: the " in first.stderr
    assert "is not finite at step" in first.stderr
    assert (wide.folder / "metrics.jsonl").read_text().splitlines()[3] == seconds
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["label"] for row in rows] == ["toy", "wide"]
    assert {row["steps"] for row in rows} == {"6"}
    report = (folder / "report.md").read_text()
    assert "## Failed" in report
    header, *places = [line.split(" | ") for line in report.splitlines() if " | " in line]
    assert [place[header.index("optimiser")] for place in places[:2]] == ["muon", "muon"]
    for name in ("report.html", "ranking.png", "curves.png"):
        assert (folder / name).stat().st_size > 5000

    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    again = command(
        "commands.cli", "compare", words[0].replace(",broken:toy", ""), *words[1:2], *words[4:]
    )
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs are there already" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/result.json")}


@pytest.mark.slow
def test_a_stopped_comparison_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    words = [words[0].split(",")[0], "budget=steps:100000", *words[5:]]
    process = subprocess.Popen(
        [sys.executable, "-m", "nanozoo_core.commands.cli", "compare", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    run = tmp_path / "runs/compare/steps_100000/runs/toy_0"
    for _ in range(600):
        if (run / "checkpoints").is_dir() and any((run / "checkpoints").glob("step_*")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: stopped; the same command goes on where it was: nanozoo compare" in said
    log = run.with_name("toy_0.log").read_text()
    assert "stopped at step" in log  # the training ended by itself, its checkpoint written


@pytest.mark.slow
def test_hydras_launchers_train_the_members(words: list[str], command: Command) -> None:
    words = ["models=toy,broken:toy", *words[2:5], "seeds=1", *words[6:]]
    done = command("commands.cli", "compare", *words, "hydra/launcher=basic")
    assert done.returncode == 1
    assert "error: broken_0: " in done.stderr
    assert "is not finite at step" in done.stderr
    assert "| 1 | toy |" in done.stdout
    unknown = command("commands.cli", "compare", *words, "hydra/launcher=nowhere", "folder=other")
    assert "Hydra could not launch the runs with hydra/launcher=nowhere" in unknown.stderr


def make_run(folder: Path, *, seed: int = 0, bpb: float = 2.0, **config: object) -> Path:
    """A finished run folder without its training."""
    folder.mkdir(parents=True)
    result = {
        "model": "toy", "params": 1000, "val_bpb": bpb, "val_bound": "exact", "val_bytes": 1000,
        "val_tokens": 1000, "data_fingerprint": "abc", "train_bytes": 5000, "train_seconds": 2.0,
        "train_flops": 1e9, "peak_memory_bytes": 2**30, "seed": seed, "device": "cpu",
        "baselines_bpb": {"zlib": 2.5}, "git_commit": None,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    settings = {
        "model": "toy",
        "seed": seed,
        "data": {"seq_len": 32},
        "optim": {"name": "adamw"},
        **config,
    }
    (folder / "config.yaml").write_text(json.dumps(settings))

    def spent(n: int) -> dict[str, float]:
        return {"step": n, "tokens": n, "bytes": 1000 * n, "flops": 1e6 * n, "seconds": n}

    rows = [spent(n) | {"train_bpb": 4.0 - n / 10} for n in (1, 2, 3)]
    rows.append(spent(3) | {"val_bpb": bpb})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    RunFolder(folder).write_samples(Samples((Sample("", "</script><b>hello"),)))
    return folder


def test_finished_runs_join_by_their_settings(tmp_path: Path) -> None:
    folders = (
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", seed=0, optim={"lr": 1.0}),
    )
    entries, failures = collect([], folders)
    assert not failures
    assert [(e.label, [r.seed for r in e.runs]) for e in entries] == [
        ("toy", [0, 1]), ("toy_2", [0])
    ]  # fmt: skip
    (tmp_path / "c" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="train resume="):
        read_run(tmp_path / "c", "c", "train")


def test_the_page_needs_nothing_else_and_escapes_what_models_write(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(n), seed=n, bpb=2 + n / 100) for n in range(2)]
    entries, _ = collect([], tuple(runs))
    report = Report("A <title>", "nanozoo compare x", entries, {"b_0": "a & b"})
    text = page(report)
    assert "{{" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "A &lt;title&gt;" in text
    assert "a &amp; b" in text
    assert "<b>hello" not in text
    embedded = text.split('id="data">')[1].split("</script>")[0]
    data = json.loads(embedded)
    assert data["samples"] == [{"prompt": "''", "texts": {"toy": "</script><b>hello"}}]
    assert [point["bpb"] for point in data["entries"][0]["train"]] == [3.9, 3.8, 3.7]
    assert data["baselines"] == {"zlib": 2.5}
    assert "zlib 2.500" in markdown(report)


def test_what_others_write_is_text_in_markdown_and_csv(tmp_path: Path) -> None:
    evil = "<script>x</script> [a](javascript:b) | ``` \x1b[2J\n# y"
    run = make_run(tmp_path / "a", optim={"name": evil})
    result = json.loads((run / "result.json").read_text())
    result |= {"device": evil, "git_commit": "=cmd()", "diagnostics": {"@SUM(1)": -1.5}}
    result["baselines_bpb"] = {evil: 2.5}
    (run / "result.json").write_text(json.dumps(result))
    entries, _ = collect([], (run,))
    command = "train '```\n<b>'"
    entry = replace(entries[0], runs=(replace(entries[0].runs[0], command=command),))
    text = markdown(Report(evil, command, [entry], {evil: evil}))
    assert "\x1b" not in text
    outside = re.sub(r"^````sh\n.*?^````$", "", text, flags=re.DOTALL | re.MULTILINE)
    outside = outside.replace("```` train '``` <b>' ````", "")
    assert not re.search(r"<\w|`|\[a\]|^# y", outside.replace("![", ""), re.MULTILINE)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in table}) == 1
    rows = list(csv.DictReader(results_csv(entries).splitlines()))
    assert rows[0]["git_commit"] == "'=cmd()"
    assert rows[0]["diagnostics.@SUM(1)"] == "-1.5"
    assert "'@" not in results_csv(entries)


@pytest.mark.parametrize(("key", "value"), [("seed", None), ("val_bpb", "2"), ("val_bytes", [])])
def test_a_result_that_lacks_something_is_one_sentence(
    tmp_path: Path, key: str, value: object
) -> None:
    run = make_run(tmp_path / "a")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key: value}))
    with pytest.raises(CheckpointError, match=rf"result\.json is damaged: its {key} is "):
        read_run(run, "a", "train")


def test_a_report_of_failures_alone(tmp_path: Path) -> None:
    report = Report("none", "nanozoo compare x", [], {"b_0": "it broke"})
    assert "it broke" in page(report)
    assert "it broke" in markdown(report)


def test_runs_that_diverged_are_failures_and_the_report_is_valid(tmp_path: Path) -> None:
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad", bpb=math.nan)
    with (good / "metrics.jsonl").open("a") as file:  # as they were once written
        spent = '"tokens": 1, "bytes": 1, "flops": 1, "seconds": 1'
        file.write(f'{{"step": 4, {spent}, "train_bpb": NaN}}\n')
    (member,), _ = make_plan(parse(["models=toy", "seeds=1", f"folder={tmp_path}"]))
    make_run(member.folder, bpb=math.inf)
    entries, failures = collect([member], (good, bad))
    assert [(entry.label, len(entry.runs)) for entry in entries] == [("toy", 1)]
    assert failures.keys() == {str(bad), member.name}
    assert all("has diverged" in text for text in failures.values())
    folder = tmp_path / "report"
    write_report(folder, Report("x", "nanozoo compare x", entries, failures))
    embedded = (folder / "report.html").read_text().split('id="data">')[1].split("</script>")[0]
    data = json.loads(embedded, parse_constant=pytest.fail)
    assert len(data["entries"][0]["train"]) == 3
    assert (folder / "curves.png").stat().st_size > 5000
    places, failed = (folder / "report.md").read_text().split("## Failed")
    assert "| nan" not in places
    assert f"- {bad}: " in failed


def test_a_member_starts_goes_on_or_is_done(tmp_path: Path) -> None:
    (member,), _ = make_plan(parse(["models=toy", "seeds=1", f"folder={tmp_path}"]))
    start = settings_for(member)
    assert start is not None
    assert start.training.run_dir == str(member.folder)
    assert schema.to_dict(start.training)["model_cfg"] == member.settings["model_cfg"]
    member.folder.mkdir(parents=True)
    run = RunFolder(member.folder)
    run.config_path.write_text("died before its first checkpoint")
    member.beside("json").write_text("{}")
    assert settings_for(member) == start
    run.checkpoint(5).mkdir(parents=True)
    run.write_config(schema.to_dict(start.training))
    on = settings_for(member)
    assert on is not None
    assert on.training.resume == str(member.folder)
    run.write_result({})
    assert settings_for(member) is None
