"""`nanozoo probe` from its words to its matrix, with the toy of core, which reads bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nanozoo_core
from nanozoo_core.comparing.compare import execute as shared
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.probing import execute, member, report
from nanozoo_core.probing.command import probe
from nanozoo_core.probing.member import Member, read_member, run, write_plan
from nanozoo_core.probing.request import Request, parse
from nanozoo_core.probing.results import collect
from nanozoo_core.probing.tasks import TASKS

SMALL = (
    "models=toy",
    "tokens=600",
    "samples=32",
    "rates=1e-3",
    "tasks=parity,copying",
    "control=none",
)


def members_of(*words: str, is_long: bool = False) -> tuple[Member, ...]:
    return parse([*SMALL, *words], is_long=is_long).members


# -- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("tasks=party", "tasks=party must be of parity"),
        ("parity.longest=99", "must leave room for 3 more in parity.length=64"),
        ("parity.lngest=9", "did you mean 'longest'?"),
        ("star.degree=2", "which tasks= does not name"),
        ("parity.longest=2.5", "parity.longest=2.5 must be a whole number"),
        ("tasks=restore restore.perturbation=shout", "must be one of ant_speak, drop"),
        ("loss=some", "loss=some must be one of answers, all"),
        ("coding=bits", "coding=bits must be one of plain, spell"),
        ("rates=0", "rates=0 must be positive numbers"),
        ("rates=1e-3,1e-3", "none of them twice"),
        ("control=gpt9", "control=gpt9 must be none"),
        ("optim.lr=1", "all models have one optimiser"),
        ("data.seq_len=9", "the data are those of tasks="),
        ("seed=3", "the seeds are those of seeds="),
        ("model_cfg.nothing=1", "toy, parity: "),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        members_of(*word.split())
    assert sentence in str(caught.value)


def test_nothing_to_probe_is_said() -> None:
    with pytest.raises(ConfigError, match="nothing to probe: give models=A,B"):
        parse([])


def test_every_model_trains_on_every_task_at_every_rate() -> None:
    found = members_of("rates=1e-3,2e-3", "decays=0,0.1", "seeds=2", "models=toy,other:toy")
    assert len(found) == 2**5
    assert {(m.lr, m.weight_decay) for m in found} == {
        (1e-3, 0.0), (1e-3, 0.1), (2e-3, 0.0), (2e-3, 0.1)}  # fmt: skip
    assert len({m.file for m in found}) == len(found)


def test_a_long_probe_has_larger_tasks_and_a_folder_of_its_own() -> None:
    quick, long = (
        parse(["models=toy", "control=none"], is_long=is_long) for is_long in (False, True)
    )
    assert (quick.members[0].knobs["longest"], long.members[0].knobs["longest"]) == (8, 16)
    assert quick.folder != long.folder
    assert long.members[0].tokens > 10 * quick.members[0].tokens


def test_all_models_have_one_optimiser_and_the_window_of_the_task() -> None:
    one = members_of("tasks=star", "rates=2e-3")[0]
    config = one.resolved(one.source())
    optim = config.training.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", 2e-3, 0.1)
    assert config.model_cfg.seq_len == one.source().length == 40
    assert config.model_cfg.vocab_size == 258


def test_a_quick_probe_says_what_no_model_learns_in_it() -> None:
    request = parse(["models=toy", "control=none", "tasks=recall,hops,parity"])
    (sentence,) = report.warnings(request)
    assert sentence.startswith("recall, hops: no model learns these in a quick probe")
    assert (
        report.warnings(parse(["models=toy", "control=none", "tasks=recall"], is_long=True)) == []
    )


def test_a_task_of_text_keeps_the_chunks_of_the_model() -> None:
    """Words can be compressed, and symbols drawn one by one cannot."""
    restore, parity = (small(task) for task in ("restore", "parity"))
    forms = {}
    for one in (restore, parity):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(member, "compose", lambda form, chosen: form)
            forms[one.task] = one.resolved(one.source())
    assert forms["restore"].is_text
    assert not forms["parity"].is_text


# -- one training --------------------------------------------------------------------------------


def small(task: str, **changes: Any) -> Member:
    one = members_of(f"tasks={task}")[0]
    return dataclasses.replace(one, **changes)


def test_a_training_is_a_function_of_its_settings() -> None:
    one = small("star", tokens=1280, samples=16)
    first, second = run(one, tell=str), run(one, tell=str)
    timed = {"seconds"}
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }
    other = run(dataclasses.replace(one, seed=1), tell=str)
    assert other["curve"] != first["curve"] or other["modes"] != first["modes"]


def test_a_toy_learns_what_it_can() -> None:
    """Words of one bit, whose parity is the bit: far above chance, after seconds."""
    one = small("parity", tokens=150_000, lr=1e-2, windows=16)
    one = dataclasses.replace(one, knobs=one.knobs | {"longest": 1, "length": 16})
    found = run(one, tell=str)
    assert found["untrained"] < 0.6
    assert found["score"] > 0.95
    assert found["leak"] is None


@pytest.mark.parametrize("task", ["parity", "copying", "bridge", "induction"])
def test_an_untrained_model_is_at_chance_or_below(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "train", _nothing_learned)
    found = run(small(task, samples=64), tell=str)
    bar = max(found["chance"], found["guess"])
    assert found["score"] <= bar + 4 * max(found["standard_error"], 0.03)


def _nothing_learned(*_: object, accuracy: Callable[[], float], **__: object) -> Any:
    from nanozoo_core.probing.training import Learned

    return Learned(0, 0.0, ((0, accuracy()),))


def test_a_length_beyond_the_context_is_not_asked() -> None:
    """n/a with the reason, and no zero."""
    found = run(small("parity", tokens=1), tell=str)
    assert "reads at most" in found["beyond"]["64 bits"]["not_asked"]
    assert "accuracy" in found["beyond"]["8 bits"]


# -- the command ---------------------------------------------------------------------------------


def test_the_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after one training, it keeps it; a second call trains the other, a third none."""
    monkeypatch.chdir(tmp_path)
    started: list[Member] = []

    def start(plan: Path, number: int, one: Member, *_: object) -> Any:
        """In this process, which is quicker; the second time, Ctrl-C."""
        if len(started) == 1:
            started.clear()
            raise KeyboardInterrupt
        started.append(one)
        one.path.parent.mkdir(parents=True, exist_ok=True)
        member.main(plan, number)
        return shared.Running(number, one, SimpleNamespace(poll=lambda: 0, returncode=0))  # type: ignore[arg-type]

    monkeypatch.setattr(shared, "_start", start)
    with pytest.raises(shared.Interrupted, match="nanozoo probe models=toy"):
        probe(SMALL)
    kept = list(tmp_path.glob("runs/probe/cells/*/*.json"))
    assert [path.parent.name for path in kept] == ["parity"]
    written = kept[0].stat().st_mtime_ns
    found = probe(SMALL)
    assert [one.task for one in started] == ["copying"]
    assert kept[0].stat().st_mtime_ns == written
    assert found.failures == {}
    assert [(row["model"], row["task"]) for row in found.rows()] == [
        ("toy", "parity"), ("toy", "copying")]  # fmt: skip
    folder = tmp_path / "runs/probe"
    assert (folder / "matrix.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((folder / "result.json").read_text())
    assert {cell["task"] for cell in stored["cells"]} == {"parity", "copying"}
    assert "## copying" in (folder / "report.md").read_text()
    with pytest.raises(CheckpointError, match="is of samples=32, and now samples=16"):
        probe([*SMALL, "samples=16"])


def finished_row(score: float, tuning: float, **changes: Any) -> dict[str, Any]:
    row = {
        "score": score, "tuning": tuning, "guess": 0.2, "chance": 0.1, "standard_error": 0.01,
        "leak": None, "weight_decay": 0.1, "headline": "accuracy", "steps": 1, "tokens": 1,
        "seconds": 1.0, "ended_by_clock": False,
    }  # fmt: skip
    return row | changes


def collected(
    monkeypatch: pytest.MonkeyPatch, rows: dict[float, dict[str, Any]]
) -> tuple[Request, Any]:
    request = parse(["models=toy", "tasks=parity", "rates=1e-3,2e-3", "control=none"])
    monkeypatch.setattr(
        "nanozoo_core.probing.results.finished",
        lambda m: None if m.lr not in rows else rows[m.lr] | {"settings": m.settings()},
    )
    (cell,) = collect(request, {})
    return request, cell


def test_the_rate_is_chosen_by_samples_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {1e-3: finished_row(0.6, tuning=0.9), 2e-3: finished_row(0.8, tuning=0.7)}
    _, cell = collected(monkeypatch, rows)
    assert cell.score == 0.6
    assert cell.normalised == pytest.approx(0.5)
    assert cell.is_learned


def test_what_is_no_score_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    leaky = finished_row(0.99, tuning=1.0, leak="reads the future: it does")
    request, cell = collected(monkeypatch, {1e-3: leaky})
    assert cell.score is None
    assert not cell.is_learned
    assert report.text_of(cell) == "leaks"
    assert "toy, parity: reads the future" in report.describe(request, [cell])
    _, missing = collected(monkeypatch, {})
    assert report.text_of(missing) == "n/a"


def test_a_training_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = members_of("tasks=parity")[0]
    broken = dataclasses.replace(one, overrides=("model_cfg.num_heads=7",))
    failures = execute.run_members(tmp_path, [broken], jobs=1, command="")
    (sentence,) = failures.values()
    assert "model_cfg.num_heads=7" in sentence


def test_a_plan_holds_its_members(tmp_path: Path) -> None:
    members = list(members_of("seeds=2"))
    write_plan(tmp_path / "plan.json", members)
    assert [read_member(tmp_path / "plan.json", n) for n in range(len(members))] == members


def test_python_probes_as_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "nanozoo_core.probing.command.probe",
        lambda words, **options: asked.update(words=list(words), **options),
    )
    nanozoo_core.probe(["toy"], tasks=["parity"], seeds=2, long=True, parity={"longest": 4})
    assert {"models=[toy]", "tasks=[parity]", "seeds=2", "parity.longest=4"} <= set(asked["words"])
    assert asked["is_long"]


def test_every_task_has_a_number_of_its_own() -> None:
    assert len({kind.number for kind in TASKS.values()}) == len(TASKS)


def test_all_are_all_models_and_all_tasks() -> None:
    request = parse(["models=all", "tasks=all", "control=toy", "rates=1e-3", "jobs=2"])
    assert "toy" in request.labels
    assert request.control == "toy"
    assert [task.name for task in request.tasks] == [*TASKS]
