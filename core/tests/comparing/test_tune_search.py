"""A search with a function in place of trainings: what it proposes, and that it goes on."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from nanozoo_core.comparing.tune import points
from nanozoo_core.comparing.tune.confirm import choose, finalists
from nanozoo_core.comparing.tune.pruning import GRID
from nanozoo_core.comparing.tune.search import Round, search
from nanozoo_core.comparing.tune.space import Space, make_space
from nanozoo_core.comparing.tune.study import (
    NOTHING_LEARNED,
    Outcome,
    State,
    Study,
    Told,
    Trial,
    open_storage,
)
from nanozoo_core.config import TrainingConfig, from_defaults
from nanozoo_core.errors import ConfigError

CHECKS = range(2, 5)


def toy_space() -> Space:
    config = from_defaults(TrainingConfig, model="any", model_cfg={})
    return make_space(config, which="core", tokens=1e7, roles=[])


SPACE = toy_space()
OPTIMUM = {"matrix_lr": 0.05, "lr": 0.004}


def score(point: Mapping[str, float]) -> float:
    """A bowl on logarithmic axes, whose lowest place is planted."""
    away = sum(math.log(point[name] / best) ** 2 for name, best in OPTIMUM.items())
    return 2 + 0.1 * away + (point["decay_fraction"] - 0.3) ** 2


def run(trial: Trial) -> Outcome:
    """A training that comes down to its score evenly, unless it passes a bar."""
    end = score(trial.point)
    reports = {}
    for number in range(1, GRID):
        reports[number] = end + 0.2 * (GRID - number)
        if reports[number] > trial.bars.get(number, math.inf):
            return Outcome("pruned", reports[number], reports, tokens=number / GRID)
    return Outcome("complete", end, reports, tokens=1.0)


def train(asked: Round) -> dict[str, dict[int, Outcome]]:
    return {name: {trial.number: run(trial) for trial in trials} for name, trials in asked.items()}


def a_study(storage: Any, *, trials: int = 20, name: str = "toy") -> Study:
    return Study(name, SPACE, storage, trials=trials, seed=7, checks=CHECKS)


def in_memory() -> Any:
    return optuna.storages.InMemoryStorage()


@pytest.fixture(scope="module")
def plain() -> list[Told]:
    """A search in pairs that nothing disturbs."""
    study = a_study(in_memory())
    search([study], train, batch=2)
    return study.told()


def test_the_planted_optimum_is_found(plain: list[Told]) -> None:
    assert [one.number for one in plain] == list(range(20))
    best = min(plain, key=lambda one: one.score)
    assert plain[0].point == SPACE.default  # the committed recipe comes first
    assert best.score < 2.05 < plain[0].score
    assert min(one.score for one in plain[10:]) < min(one.score for one in plain[:10])
    assert sum(one.outcome.state == "pruned" for one in plain) > 2
    assert all(one.outcome.state == "complete" for one in plain[:10])  # which are random


def test_the_order_in_which_trainings_end_is_without_effect(plain: list[Told]) -> None:
    for seed in (1, 2):
        order = random.Random(seed)

        def shuffled(asked: Round, order: random.Random = order) -> dict[str, dict[int, Outcome]]:
            found = train(asked)
            return {name: dict(order.sample(list(o.items()), len(o))) for name, o in found.items()}

        study = a_study(in_memory())
        search([study], shuffled, batch=2)
        assert study.told() == plain


def test_a_search_that_was_killed_goes_on_as_if_it_was_not(plain: list[Told]) -> None:
    storage = in_memory()
    trained: list[int] = []
    kills = [5, 12, 13]

    def killed(asked: Round) -> dict[str, dict[int, Outcome]]:
        numbers = [trial.number for trial in asked["toy"]]
        if kills and kills[0] in numbers:
            kills.pop(0)
            raise KeyboardInterrupt
        trained.extend(numbers)
        return train(asked)

    while True:
        study = a_study(storage)  # of a new process
        try:
            search([study], killed, batch=2)
        except KeyboardInterrupt:
            running = [t.number for t in study._trials() if not t.state.is_finished()]
            assert len(running) == 2
            continue
        break
    assert not kills
    assert study.told() == plain
    assert trained == list(range(20))  # each once, under its number


@pytest.mark.parametrize("where", ["asking", "enqueued", "telling"])
def test_a_kill_inside_a_batch_leaves_what_is_taken_up(
    plain: list[Told], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = in_memory()
    study = a_study(storage)

    def stopping(asked: Round) -> dict[str, dict[int, Outcome]]:
        if asked["toy"][0].number == 14:
            raise KeyboardInterrupt
        return train(asked)

    if where == "telling":
        with pytest.raises(KeyboardInterrupt):
            search([study], stopping, batch=2)
        trial, other = study.ask(2)  # the first of the two is told
        study.tell({trial.number: run(trial)})
        assert a_study(storage).ask(2) == [other]  # with the same bars
    else:
        calls = []
        kind, name = (Study, "_suggest") if where == "asking" else (Study, "_set_sampler")
        original: Callable[..., Any] = getattr(kind, name)

        def dies(self: Study, *arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 30:
                raise KeyboardInterrupt
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(kind, name, dies)
            with pytest.raises(KeyboardInterrupt):
                search([study], train, batch=2)
    again = a_study(storage)
    search([again], train, batch=2)
    assert again.told() == plain


def test_sqlite_keeps_a_search_and_gives_the_same(plain: list[Told], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = Study("toy", SPACE, open_storage(url), trials=20, seed=7, checks=CHECKS)
    for _ in range(2):
        first.tell(train({"toy": first.ask(2)})["toy"])
    left = first.ask(2)
    again = Study("toy", SPACE, open_storage(url), trials=20, seed=7, checks=CHECKS)
    assert again.ask(2) == left
    assert again.told() == plain[:4]
    assert left[0].point == plain[4].point


def test_models_share_their_first_points_and_advance_together() -> None:
    rounds: list[dict[str, int]] = []

    def watching(asked: Round) -> dict[str, dict[int, Outcome]]:
        rounds.append({name: trials[0].number for name, trials in asked.items()})
        return train(asked)

    storage = in_memory()
    studies = [a_study(storage, trials=6, name=name) for name in ("one", "other")]
    search(studies, watching, batch=3)
    assert rounds == [{"one": 0, "other": 0}, {"one": 3, "other": 3}]
    one, other = (study.told() for study in studies)
    assert [told.point for told in one[:3]] == [told.point for told in other[:3]]
    shares = points.shares(["lr", "mine"], seed=7, number=1)
    assert shares["lr"] == points.shares(["matrix_lr", "lr"], seed=7, number=1)["lr"]
    assert 0 <= min(shares.values()) <= max(shares.values()) < 1


@pytest.mark.parametrize("state", ["diverged", "refused"])
def test_what_cannot_train_is_noted_and_the_search_goes_on(state: State) -> None:
    def some(asked: Round) -> dict[str, dict[int, Outcome]]:
        found = train(asked)["toy"]
        lowest = NOTHING_LEARNED if state == "diverged" else None
        odd = {n: Outcome(state, lowest, why="so") for n in found if n % 2}
        return {"toy": found | odd}

    study = a_study(in_memory(), trials=8)
    search([study], some, batch=1)
    told = study.told()
    assert [one.outcome.state for one in told] == ["complete", state] * 4
    assert finalists(told) == sorted([0, 2, 4, 6], key=lambda n: told[n].score)[:3]


def test_a_storage_that_cannot_be_opened_is_told_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"storage=nosuch://me:\.\.\.@host/db cannot be opened"):
        open_storage("nosuch://me:secret@host/db")


def test_the_second_look_undoes_the_winners_curse() -> None:
    """24 recipes that are equal, scores with noise of 1: the lowest of a search looks 1.9 better
    than it is, and what is reported is not."""
    noise = random.Random(0)
    gains, naive = [], []
    for _ in range(300):
        first = {n: noise.gauss(0, 1) for n in range(24)}
        told = [Told(n, {}, Outcome("complete", value)) for n, value in first.items()]
        fresh = {n: [noise.gauss(0, 1), noise.gauss(0, 1)] for n in finalists(told)}
        chosen = choose(fresh)
        test = {n: statistics.mean(noise.gauss(0, 1) for _ in range(2)) for n in {0, chosen}}
        gains.append(test[0] - test[chosen])
        naive.append(min(first.values()))
    assert abs(statistics.mean(gains)) < 0.3
    assert statistics.mean(naive) < -1.7
