"""The check of learning rates at the ends of a ladder: the parabola, the line between the ends, and
the runs, whose process loop is a known curve here."""

import json
import math
from dataclasses import replace

import pytest

from nanozoo_core.comparing.compare.plan import Member, make_plan
from nanozoo_core.comparing.scale import cost, rate_check
from nanozoo_core.comparing.scale import plan as ladder_plan
from nanozoo_core.comparing.scale.optimum import between, optimum, vertex
from nanozoo_core.comparing.scale.plan import make_ladder
from nanozoo_core.comparing.scale.request import parse
from nanozoo_core.files import write_json
from nanozoo_core.training.plan import describe_time
from nanozoo_core.training.run_folder import RunFolder


def curve(best, places=(-1, 0, 1), bend=0.03):
    return {place: 2 + bend * (place - best) ** 2 for place in places}


@pytest.mark.parametrize("best", [-0.9, -0.5, 0.0, 0.2, 0.5, 0.9])
def test_the_best_rate_of_a_parabola_comes_back(best):
    found = optimum(curve(best))
    assert found.place == pytest.approx(best, abs=1e-12)
    assert found.edge == 0
    assert found.passes == (abs(best) <= 0.5)
    assert found.next is None


def test_a_parabola_over_uneven_places():
    places = [-1.0, 0.5, 3.0]
    assert vertex(places, [(x - 0.7) ** 2 for x in places]) == pytest.approx(0.7)
    assert vertex(places, [1 - (x - 0.7) ** 2 for x in places]) is None
    assert vertex(places, [2 * x for x in places]) is None


def test_a_best_rate_beyond_what_was_tried_asks_for_one_place_more():
    first = optimum(curve(1.8))
    assert (first.place, first.edge, first.next) == (1.0, 1, 2)
    assert not first.passes
    again = optimum(curve(1.8, (-1, 0, 1, 2)))
    assert (again.place, again.edge) == (pytest.approx(1.8), 0)
    low = optimum({-1: 2.0, 0: 2.1, 1: 2.2})  # a line
    assert (low.edge, low.next) == (-1, -2)
    last = optimum(curve(9, range(-1, 4)))
    assert (last.place, last.edge, last.next) == (3.0, 1, None)


def test_a_rate_that_diverged_is_no_part_of_a_parabola():
    assert optimum({-1: 2.1, 0: 2.0, 1: math.inf}).place == 0
    assert optimum({-1: 2.0, 0: 2.1, 1: math.inf}).next == -2
    assert optimum({-1: 2.0, 0: math.inf, 1: math.inf}).next == -2
    assert optimum(dict.fromkeys((-1, 0, 1), math.inf)) is None


def test_between_the_ends_the_logarithm_of_the_rate_is_a_line_over_that_of_the_size():
    assert between((1e5, 1e7), (0.2, 1.2), 1e6) == pytest.approx(0.7)
    assert between((1e5, 1e7), (0.2, 1.2), 1e5) == 0.2
    assert between((1e5, 1e7), (0.2, 1.2), 1e8) == pytest.approx(1.2)
    assert between((1e5, 1e5), (0.2, 1.2), 1e6) == 0.2


@pytest.fixture(scope="module")
def asked(corpus, tmp_path_factory):
    """A request and its places at three rungs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        request = parse(
            ["models=toy", "control=toy", "rungs=0.012,0.1,0.3", "tokens=7680,12800,15360",
             "budgets=1/2", "seeds=1", "rates=checked", "data.corpus=text",
             f"data.path='{corpus}'", "device=cpu"]
        )  # fmt: skip
        return request, make_ladder(request)


def planned(request):
    """In place of the plan of a comparison, the composed settings left out."""
    seed = request.seeds[0]
    return [
        Member(one.label, "toy", seed, (), one.overrides, {},
               request.folder / "runs" / f"{one.label}_{seed}")
        for one in request.entrants
    ], {}  # fmt: skip


def faked(best_of):
    """In place of the processes: the score of a run by its rung and the logarithm of its rate's
    factor. None is a run that fails."""
    trained = []

    def run_members(plan, members, **_):
        failures = {}
        for member in members:
            run = RunFolder(member.folder)
            if run.is_finished:
                continue
            rung, factor = member.label.removeprefix("toy.").split(".rate")
            score = best_of(rung, math.log2(float(factor)))
            trained.append(member)
            if score is None:
                failures[member.name] = "no luck"
                continue
            run.path.mkdir(parents=True)
            write_json(member.beside("json"), {"settings": member.settings})
            run.result_path.write_text(json.dumps({"val_bpb": score}))
        return failures

    return run_members, trained


def checked(asked, folder, monkeypatch, best_of, *, plan=planned):
    request, ladder = asked
    run, trained = faked(best_of)
    monkeypatch.setattr(rate_check, "run_members", run)
    monkeypatch.setattr(ladder_plan, "make_plan", plan)
    found = rate_check.check_rates(replace(request, folder=folder), ladder.places)
    return ladder, found, trained


def test_ends_that_pass_leave_the_rates_as_they_are(asked, tmp_path, monkeypatch):
    ladder, found, trained = checked(
        asked, tmp_path, monkeypatch, lambda _, at: 2 + 0.1 * (at - 0.4) ** 2, plan=make_plan
    )
    assert found.places == ladder.places
    assert len(trained) == 6
    whole = [round(place.steps[0.5] * 2) for place in ladder.places]
    assert [one.settings["train"]["max_steps"] for one in trained] == [
        *[whole[0] // 4] * 3,
        *[whole[2] // 4] * 3,
    ]
    for one, factor in zip(trained, [0.5, 1, 2] * 2, strict=True):
        optim = one.settings["optim"]
        assert optim["muon"]["lr"] == pytest.approx(0.02 * factor)
        assert optim["lr"] == pytest.approx(0.003 * factor)
        assert optim["adamw"]["embedding_lr"] == pytest.approx(0.003 * factor)
        assert one.settings["eval"]["split"] == "tune"
        assert one.seed == 2  # not 0, with which the ladder trains
    _, again, trained = checked(asked, tmp_path, monkeypatch, lambda *_: 1 / 0)
    assert again.ends == found.ends
    assert not trained
    request, speeds = replace(asked[0], folder=tmp_path), dict.fromkeys(asked[0].rungs, 1e9)
    assert rate_check.seconds_left(request, ladder.places, speeds) == 0
    RunFolder(tmp_path / "runs" / "toy.0.3.rate2_2").result_path.unlink()
    last = ladder.places[2].step_flops * ladder.places[2].steps[0.5] / 2 / 1e9
    assert rate_check.seconds_left(request, ladder.places, speeds) == pytest.approx(last)


def test_other_optima_are_interpolated_and_used(asked, tmp_path, monkeypatch):
    best = {"0.012": 0.0, "0.3": -1.6}
    ladder, found, trained = checked(
        asked, tmp_path, monkeypatch, lambda rung, at: 2 + 0.1 * (at - best[rung]) ** 2
    )
    assert len(trained) == 7  # a fourth of the rate besides
    sizes = [math.log(place.size.counts.n) for place in ladder.places]
    middle = -1.6 * (sizes[1] - sizes[0]) / (sizes[2] - sizes[0])
    exponents = [math.log2(place.factor) for place in found.places]
    assert exponents == pytest.approx([0, middle, -1.6], abs=1e-9)
    rates = dict(word.split("=") for word in found.places[2].rates)
    assert float(rates["optim.muon.lr"]) == pytest.approx(0.02 * 2**-1.6, rel=1e-5)
    table = rate_check.rows(found)
    assert table[0] == ["model", "rung", "x 0.25", "x 0.5", "x 1", "x 2", "best", "used"]
    assert table[1][-2:] == ["x 1", "x 1"]
    assert table[2][2] == "2.0160"
    assert table[2][-2:] == ["x 0.33 (moved)", "x 0.33"]
    assert not rate_check.notes(found)


def test_what_the_check_cannot_say_is_said(asked, tmp_path, monkeypatch):
    def scores(rung, at):
        return 2 - 0.1 * at if rung == "0.012" else (None if at == 1 else 2.0)

    ladder, found, _ = checked(asked, tmp_path, monkeypatch, scores)
    assert found.places == ladder.places
    assert list(found.failures) == ["toy.0.3.rate2_2"]
    assert "2.0000" in rate_check.rows(found)[2]
    first, second = rate_check.notes(found)
    assert "of toy at rung 0.012 may be higher than all that were tried" in first
    assert "rung 0.3 could not be checked" in second


def test_runs_that_diverge_leave_a_score_that_is_infinite(asked, tmp_path, monkeypatch):
    _, found, _ = checked(
        asked, tmp_path, monkeypatch, lambda _, at: math.inf if at > 0 else 2 + 0.1 * (at + 1) ** 2
    )
    assert found.ends[0].scores == {-2: 2.1, -1: 2.0, 0: 2.1, 1: math.inf}
    assert [place.factor for place in found.places] == [0.5] * 3
    stored = json.loads(json.dumps(rate_check.as_json(found)))
    assert stored["ends"][0]["scores"]["2"] is None
    assert stored["factors"][1] == {"model": "toy", "rung": "0.1", "factor": 0.5}


def test_the_cost_of_the_check_stands_in_the_plan(asked):
    request, ladder = asked
    speeds = {"0.012": 1e9, "0.1": 1e9, "0.3": 2e9}
    first, _, last = ladder.places
    flops = [3 * place.step_flops * place.steps[0.5] / 2 for place in (first, last)]
    seconds = flops[0] / 1e9 + flops[1] / 2e9
    assert rate_check.seconds_of(ladder.places, speeds) == pytest.approx(seconds)
    text = cost.table(request, ladder, speeds)
    assert f"check of the learning rates: 6 runs, {sum(flops):.2e} FLOPs" in text
    whole = cost.seconds_of(ladder.places, speeds, seeds=1) + seconds
    assert f"time: {describe_time(math.ceil(whole))} one after another" in text
    assert "check of the" not in cost.table(replace(request, rates="carried"), ladder, speeds)
