"""Trials as trainings of the toy, in this process and by the whole command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.comparing.compare.results import Entry, Run
from nanozoo_core.comparing.tune.audit import audit
from nanozoo_core.comparing.tune.candidates import Candidate, make_candidates
from nanozoo_core.comparing.tune.command import tune
from nanozoo_core.comparing.tune.confirm import Choice
from nanozoo_core.comparing.tune.recipe import write_recipe
from nanozoo_core.comparing.tune.report import spent
from nanozoo_core.comparing.tune.request import parse
from nanozoo_core.comparing.tune.study import Outcome, Told, Trial
from nanozoo_core.comparing.tune.trial import train_trial
from nanozoo_core.comparing.tune.trials import Trainer, Trainings, read_outcome
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.errors import CheckpointError, ConfigError, WriteError

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def words(corpus: Path, tmp_path: Path) -> list[str]:
    return [
        "models=toy",
        "budget=steps:40",
        f"folder={tmp_path / 'search'}",
        f"recipes={tmp_path / 'recipes'}",
        "data.corpus=text",
        f"data.path='{corpus}'",
        "data.val_fraction=0.4",
        "eval.bytes=500",
        "checkpoint.every=0",
    ]


class HereTrainings(Trainings):
    """In this process."""

    def train(self, members: Any) -> None:
        for member in members:
            train_trial(member)


def trainer_of(candidate: Candidate, tmp_path: Path) -> Trainer:
    here = HereTrainings(tmp_path / "search", jobs=1, command="nanozoo tune", total=9)
    return Trainer({"toy": candidate}, here, seed=0)


def test_a_trial_reports_ends_behind_a_bar_and_can_be_audited(
    words: list[str], tmp_path: Path
) -> None:
    (candidate,) = make_candidates(parse([*words, "prune=median"]))
    assert list(candidate.checks) == [2, 3, 4]
    train = trainer_of(candidate, tmp_path)
    point = candidate.space.default
    changed = point | {"lr": point["lr"] * 1.7}
    whole = train({"toy": [Trial(0, point, {})]})["toy"][0]
    assert whole.state == "complete"
    assert list(whole.reports) == [1, 2, 3, 4, 5, 6, 7]
    assert whole.tokens == candidate.tokens == 40 * 128

    ended = train({"toy": [Trial(1, changed, {3: 0.5})]})["toy"][1]
    assert (ended.state, list(ended.reports)) == ("pruned", [1, 2, 3])
    assert ended.score == ended.reports[3]
    assert ended.tokens == 15 * 128
    training = candidate.member(1, changed, seed=0, split="tune")
    train_trial(training.member)  # it has ended
    assert read_outcome(training) == ended

    told = [Told(0, point, whole), Told(1, changed, ended)]
    found = audit(candidate, told, train.trainings, seed=0)
    assert found is not None
    assert found.audited == (1,)
    assert found.last_check[1] == read_outcome(training).reports[4]
    finished = read_outcome(training)
    assert found.final == {0: whole.score, 1: finished.score}
    assert (finished.state, finished.tokens) == ("complete", whole.tokens)
    assert spent(told, found)["tokens"] == 2 * whole.tokens
    assert {n: finished.reports[n] for n in (1, 2, 3)} == ended.reports


def test_a_trial_that_may_not_end_early_is_scored_at_its_end_alone(
    words: list[str], tmp_path: Path
) -> None:
    (candidate,) = make_candidates(parse(words))
    trial = Trial(0, candidate.space.default, {})
    outcome = trainer_of(candidate, tmp_path)({"toy": [trial]})["toy"][0]
    assert (outcome.state, outcome.reports) == ("complete", {})


def test_a_diverged_and_a_refused_trial_are_outcomes(words: list[str], tmp_path: Path) -> None:
    huge = "tune.ranges.lr={low:1e-3,high:1e30}"
    (candidate,) = make_candidates(parse([*words, huge]))
    train = trainer_of(candidate, tmp_path)
    point = candidate.space.default
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanozoo_core.comparing.tune.space.ROLES", ())
        found = train({"toy": [Trial(1, point | {"lr": 1e30, "matrix_lr": 0.1}, {}),
                               Trial(2, point | {"decay_fraction": 7.0}, {})]})["toy"]  # fmt: skip
    assert found[1].state == "diverged"
    assert found[1].tokens < candidate.tokens
    assert found[2].state == "refused"
    assert "optim.decay_fraction=7.0 must be in [0, 1]" in found[2].why


def test_a_recipe_trains_what_was_chosen(words: list[str], tmp_path: Path) -> None:
    (candidate,) = make_candidates(parse([*words, "space=full", "toy.optim.adamw.head_lr=0.001"]))
    point = candidate.space.default | {"lr": 0.0123456789, "decay_fraction": 0.3}
    _, config, steps = candidate.settings(5, point)
    assert config.training.optim.warmup == max(1, round(point["warmup"] * steps))  # in steps
    result = {"val_bpb": 2.0, "data_fingerprint": "abc"}
    entry = Entry("toy", (Run("toy", 3, tmp_path, result, [], (), "train"),))
    told = [Told(5, point, Outcome("complete", 2.0))]
    choice = Choice(candidate, told, 5, {5: [2.0]}, entry, entry)
    path = write_recipe(tmp_path / "r", "steps_40", choice, command="nanozoo tune ...", seed=0)
    assert path.name == "toy-steps_40.yaml"
    found = resolve(compose_config([], recipe=path)).training
    for section in ("model_cfg", "data", "train", "optim"):
        assert getattr(found, section) == getattr(config.training, section)
    assert found.eval == resolve(compose_config(["model=toy"])).training.eval
    text = path.read_text()
    assert text.startswith("# Found by `nanozoo tune` on ")
    assert "#   nanozoo tune ..." in text
    path.write_text("# mine\n")
    with pytest.raises(WriteError, match="was not written by nanozoo tune"):
        write_recipe(tmp_path / "r", "steps_40", choice, command="x", seed=0)


def test_an_own_key_may_not_make_another_model(words: list[str]) -> None:
    key = "tune.keys.wide={key:model_cfg.mlp_ratio,low:4,high:5,whole:true}"
    with pytest.raises(ConfigError, match=r"toy: tune.keys.wide: .*=5 changes the parameters by"):
        make_candidates(parse([*words, key]))


def test_a_folder_keeps_to_one_search(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanozoo_core.comparing.tune.command._go_on", lambda *parts: None)
        words = [*words, "storage=sqlite://"]
        tune(words)
        with pytest.raises(CheckpointError, match=r"a search with trials=24, and now trials=12"):
            tune([*words, "trials=12"])
        with pytest.raises(CheckpointError, match=r"with models.toy.settings.optim.lr=0.003"):
            tune([*words, "optim.lr=0.004"])
    assert json.loads((folder / "search.json").read_text())["batch"] == 1


def test_without_optuna_one_sentence_says_what_is_missing(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs the package optuna; install nanozoo-core\[tune"):
        tune(words)


@pytest.mark.slow
def test_a_stopped_search_goes_on_and_gives_the_same_trials(
    words: list[str], command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "search"
    own = ["models=toy", "trials=4", "batch=2", "seeds=1", "budget=tokens:10000"]
    words = [*own, *words[2:-1]]
    process = subprocess.Popen(
        [sys.executable, "-m", "nanozoo_core.commands.cli", "tune", *words, "jobs=2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for _ in range(3000):
        if (folder / "runs/toy.t02_0/checkpoints").is_dir():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: stopped; the same command goes on where it was: nanozoo tune" in said
    again = command("commands.cli", "tune", *words, "jobs=2")
    assert again.returncode == 0, again.stderr
    assert "2 of 4 trials are there already" in again.stdout
    for name in ("report.html", "report.md", "search-toy.png", "effort-toy.png"):
        assert (folder / name).stat().st_size > 1000
    other = [word.replace(str(folder), str(tmp_path / "alone")) for word in words]
    alone = command("commands.cli", "tune", *other, OMP_NUM_THREADS="1")
    assert alone.returncode == 0, alone.stderr

    def trials(place: Path) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((place / "trials.json").read_text())["toy"]
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert trials(folder) == trials(tmp_path / "alone")
    assert [row["batch"] for row in trials(folder)] == [0, 0, 1, 1]
    recipe = tmp_path / "recipes/toy-tokens_10000.yaml"
    assert resolve(compose_config([], recipe=recipe)).training.train.max_tokens == 10000
