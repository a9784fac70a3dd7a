"""The parts of a search that are plain arithmetic: the space, the bars, and what effort finds."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import Any

import pytest

from nanozoo_core.comparing.tune.effort import (
    agreement,
    best_interval,
    expected_best,
    unbiased_best,
)
from nanozoo_core.comparing.tune.pruning import Reports, bars, checks
from nanozoo_core.comparing.tune.report import Audit
from nanozoo_core.comparing.tune.request import parse
from nanozoo_core.comparing.tune.space import Space, make_space
from nanozoo_core.comparing.tune.trial import Pruned, Watch
from nanozoo_core.config import TrainingConfig, from_defaults
from nanozoo_core.errors import ConfigError

SIX = [2.0, 1.5, 1.7, 1.6, 1.9, 1.4]


@pytest.mark.parametrize("n", range(1, 7))
def test_expected_bests_are_those_of_all_draws(n: int) -> None:
    repeated = [min(draw) for draw in itertools.product(SIX, repeat=n)]
    assert expected_best(SIX, n) == pytest.approx(statistics.mean(repeated), rel=1e-12)
    sets = [min(draw) for draw in itertools.combinations(SIX, n)]
    assert unbiased_best(SIX, n) == pytest.approx(statistics.mean(sets), rel=1e-12)


def test_one_draw_expects_the_mean_and_all_of_them_the_lowest() -> None:
    assert unbiased_best(SIX, 1) == pytest.approx(statistics.mean(SIX))
    assert unbiased_best(SIX, 6) == pytest.approx(min(SIX))
    assert expected_best(SIX, 6) > min(SIX)


def test_of_normal_scores_the_best_of_all_is_found_without_bias() -> None:
    """B = n = 24 standard normal scores, whose lowest is -1.948 in the mean; means and deviations
    of both estimates over many draws."""
    generator = random.Random(0)
    draws = [[generator.gauss(0, 1) for _ in range(24)] for _ in range(1500)]
    unbiased = [unbiased_best(draw, 24) for draw in draws]
    biased = [expected_best(draw, 24) for draw in draws]
    assert statistics.mean(unbiased) == pytest.approx(-1.948, abs=0.04)
    assert statistics.mean(biased) == pytest.approx(-1.75, abs=0.04)
    assert statistics.stdev(unbiased) == pytest.approx(0.50, abs=0.03)
    assert statistics.stdev(biased) == pytest.approx(0.41, abs=0.03)


def test_an_interval_of_the_best_holds_the_truth_about_as_often_as_it_says() -> None:
    """The best of two standard normal scores is -1/sqrt(pi) in the mean."""
    generator = random.Random(1)
    held = 0
    for _ in range(40):
        scores = [generator.gauss(0, 1) for _ in range(24)]
        low, high = best_interval(scores, 2) or (0.0, 0.0)
        held += low <= -(math.pi**-0.5) <= high
    assert 0.85 <= held / 40 <= 1.0
    assert best_interval(SIX, 2) is None  # more than a quarter of the scores
    assert best_interval([1.0] * 4, 1) == (1.0, 1.0)


def test_agreement_is_kendalls() -> None:
    assert agreement([1, 2, 3], [4, 5, 6]) == 1
    assert agreement([1, 2, 3], [6, 5, 4]) == -1
    assert agreement([1, 2, 3], [4, 6, 5]) == pytest.approx(1 / 3)


def space(which: str = "core", tokens: float = 1e7, **settings: Any) -> Space:
    config = from_defaults(TrainingConfig, model="any", **{"model_cfg": {}, **settings})
    return make_space(config, which=which, tokens=tokens, roles=["embedding", "vector"])


def names(found: Space) -> list[str]:
    return [dimension.name for dimension in found.dimensions]


def test_the_core_space_is_rates_batch_and_decay() -> None:
    assert names(space()) == ["matrix_lr", "lr", "batch_tokens", "decay_fraction"]
    adamw = space(optim={"name": "adamw", "schedule": "cosine"})
    assert names(adamw) == ["lr", "batch_tokens"]
    full = names(space("full"))
    assert "embedding_ratio" in full
    assert "head_ratio" not in full  # the model has no such parameters
    assert {"warmup", "has_weight_decay", "weight_decay", "one_minus_beta2"} <= set(full)


def test_batches_leave_a_run_its_steps_and_fit_the_windows() -> None:
    def sizes(**changes: Any) -> tuple[Any, ...]:
        return next(d.choices for d in space(**changes).dimensions if d.name == "batch_tokens")

    assert sizes() == (1024, 2048, 4096, 8192, 16384)
    assert sizes(tokens=2048 * 200) == (1024, 2048, 8192)  # the committed one stays
    assert sizes(data={"seq_len": 2048}) == (2048, 4096, 8192, 16384)
    assert "batch_tokens" not in names(space(tokens=100))


def test_a_point_becomes_settings_and_the_roles_keep_their_ratio() -> None:
    found = space("full", optim={"lr": 0.01, "adamw": {"head_lr": 0.002}})
    point = found.default | {"lr": 0.02, "embedding_ratio": 3.0, "has_weight_decay": 0.0}
    overrides = dict(word.split("=") for word in found.overrides(point))
    assert float(overrides["optim.lr"]) == 0.02
    assert float(overrides["optim.adamw.embedding_lr"]) == pytest.approx(0.06)
    assert float(overrides["optim.adamw.head_lr"]) == pytest.approx(0.004)
    assert float(overrides["optim.muon.weight_decay"]) == 0
    assert overrides["train.batch_tokens"] == "8192"
    on = dict(word.split("=") for word in found.overrides(point | {"has_weight_decay": 1.0}))
    assert float(on["optim.muon.weight_decay"]) == 0.02


def test_shares_span_the_axes() -> None:
    for dimension in space("full").dimensions:
        places = [dimension.at(share) for share in (0.0, 0.2, 0.5, 0.999999)]
        assert places == sorted(places)
        assert places[0] == dimension.low
        assert places[-1] == pytest.approx(dimension.high, rel=1e-3)
    matrix = space().dimensions[0]
    assert matrix.at(0.5) == pytest.approx((0.003 * 0.1) ** 0.5)
    assert matrix.is_at_edge(0.09)
    assert not matrix.is_at_edge(0.03)


def test_a_range_is_moved_and_always_holds_the_committed_recipe() -> None:
    moved = space(tune={"ranges": {"lr": {"low": 0.01, "high": 1.0}}}, optim={"lr": 0.005})
    lr = moved.dimensions[1]
    assert (lr.low, lr.high, lr.default) == (0.005, 1.0, 0.005)
    sizes = space(tune={"ranges": {"batch_tokens": {"low": 4000, "high": 9000}}}).dimensions[2]
    assert sizes.choices == (4096, 8192)
    assert sizes.value(sizes.default) == 8192


OWN = {"key": "model_cfg.width", "low": 1, "high": 9}


def test_own_keys_are_read_from_the_models_yaml() -> None:
    keys = {
        "width": OWN | {"whole": True, "default": 4},
        "form": {"key": "model_cfg.form", "choices": ["round", "flat"]},
        "clip": {"key": "train.grad_clip", "low": 0.1, "high": 10, "log": True},
    }
    found = space(model_cfg={"width": None, "form": "flat"}, tune={"keys": keys})
    assert [d.name for d in found.dimensions if d.is_own] == ["width", "form", "clip"]
    assert found.default["width"] == 4
    assert found.default["form"] == 1
    written = found.overrides(found.default | {"width": 7.0, "form": 0.0, "clip": 0.5})
    assert written[-3:] == ["model_cfg.width=7", 'model_cfg.form="round"', "train.grad_clip=0.5"]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"keys": {f"k{n}": OWN for n in range(4)}}, "tune.keys has 4 keys .* may have 3"),
        ({"keys": {"lr": OWN}}, "tune.keys.lr: a name must be .* tune.ranges.lr moves"),
        ({"keys": {"k": OWN | {"key": "data.seq_len"}}}, "key=data.seq_len must be a setting of"),
        ({"keys": {"k": {"key": "model_cfg.width", "low": 3}}}, "needs either low and high"),
        ({"keys": {"k": OWN | {"low": 0, "log": True}}}, "log=true, which needs low above 0"),
        ({"keys": {"k": OWN}}, "model_cfg.width is not a setting of any"),
        ({"ranges": {"batch": {"low": 1, "high": 2}}}, "tune.ranges.batch is none of the shared"),
        ({"ranges": {"lr": {"low": 2, "high": 1}}}, "low=2.0 must be below high=1.0"),
    ],
)
def test_a_wrong_declaration_is_refused(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(tune=tune)


# -- ending early --------------------------------------------------------------------------------


def test_no_check_lies_in_a_warmup_or_a_decay() -> None:
    assert list(checks(longest_warmup=0.1, longest_decay=0.5)) == [2, 3, 4]
    assert list(checks(longest_warmup=0.02, longest_decay=0.2)) == [2, 3, 4, 5, 6]
    assert list(checks(longest_warmup=0.2, longest_decay=0.5)) == [4]
    assert list(checks(longest_warmup=0.0, longest_decay=0.0)) == [2, 3, 4, 5, 6, 7]
    assert not checks(longest_warmup=0.1, longest_decay=1.0)
    cosine = space(optim={"schedule": "cosine"})
    assert not checks(longest_warmup=0.02, longest_decay=cosine.longest_decay)
    assert space().longest_decay == 0.5
    assert space("full").longest_warmup == 0.1


def earlier(*scores: float, pruned: int = 0) -> list[Reports]:
    """Trials that reported once; the last of them were ended there."""
    return [Reports({2: s}, n >= len(scores) - pruned) for n, s in enumerate(scores)]


def test_the_bar_is_the_median_of_all_and_a_slack() -> None:
    found = bars(earlier(2.0, 3.0, 4.0, 9.0, 9.0, pruned=2), CHECKS, trials=24, at_once=1)
    assert found == {2: pytest.approx(4.0 * 1.02)}  # without the pruned ones it would be 3.0
    assert bars(earlier(2.0, 3.0), CHECKS, trials=24, at_once=1) == {}
    assert bars(earlier(2.0, 3.0, 4.0), range(3, 5), trials=24, at_once=1) == {}


def test_at_most_half_of_the_trials_end_early() -> None:
    many = earlier(*[2.0] * 24, pruned=11)
    assert bars(many, CHECKS, trials=24, at_once=1)
    assert not bars(many, CHECKS, trials=24, at_once=2)


CHECKS = range(2, 5)


def test_a_late_winner_within_the_slack_goes_on_and_what_is_behind_it_ends() -> None:
    found = bars(earlier(2.0, 2.0, 2.0), CHECKS, trials=24, at_once=1)
    watch = Watch({number * 10: bar for number, bar in found.items()})
    watch({"step": 20, "val_bpb": 2.03})  # it crosses the others later
    watch({"step": 20, "train_bpb": 3.0})
    watch({"step": 10, "val_bpb": 3.0})  # no check
    watch({"step": 80, "val_bpb": 3.0})
    for behind in (2.05, None):  # null stands for what is not finite
        with pytest.raises(Pruned, match="step 20 scores"):
            watch({"step": 20, "val_bpb": behind})


def test_an_audit_says_where_pruning_was_unsafe() -> None:
    last = {1: 2.0, 2: 2.1, 3: 2.2, 4: 2.3, 5: 2.4}
    safe = Audit(last, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.4}, (5,))
    assert not safe.is_unsafe
    assert Audit(last, {1: 1.0, 2: 1.1, 3: 1.4, 4: 1.3, 5: 1.2}, (5,)).is_unsafe  # among the best
    assert Audit(last, {1: 1.4, 2: 1.3, 3: 1.2, 4: 1.1, 5: 1.0}, ()).is_unsafe


# -- the command ---------------------------------------------------------------------------------


def test_a_command_is_read() -> None:
    request = parse(
        ["models=toy", "control=vanilla", "trials=6", "jobs=3", "budget=tokens:1e5", "seed=5",
         "toy.optim.name=adamw", "optim.warmup=0.1", "prune=median", "folder=here"]
    )  # fmt: skip
    assert [entrant.label for entrant in request.base.entrants] == ["toy", "vanilla"]
    assert (request.trials, request.batch, request.is_pruned) == (6, 3, True)
    assert request.base.entrants[0].overrides == ("optim.name=adamw",)
    assert request.base.overrides == ("optim.warmup=0.1",)
    assert request.fresh_seeds == (6, 7)
    assert list(request.test_seeds) == [8, 9]
    assert request.budget_name == "tokens_100000"
    quiet = parse(["models=toy"])
    assert (quiet.is_pruned, quiet.batch, quiet.space, quiet.storage) == (False, 1, "core", None)
    assert str(quiet.base.folder) == "runs/tune/bytes_1e06"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trials=3"], "nothing to tune"),
        (["models=toy", "budget=seconds:9"], "budget=seconds:9 must be the same amount of work"),
        (["models=toy", "budget=own"], "budget=own must be the same amount of work"),
        (["models=toy", "trials=1"], "trials=1 must be at least 2"),
        (["models=toy", "prune=mean"], "prune=mean must be one of off, median"),
        (["models=toy", "eval.split=all"], "'eval.split=all': a search scores"),
        (["models=toy", "toy.eval.split=all"], "'toy.eval.split=all': a search scores"),
        (["models=toy", "seed=-1"], "seed=-1 must be a whole number"),
        (["models=toy", "trils=3"], "called 'trils'"),
    ],
)
def test_a_wrong_command_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words)
