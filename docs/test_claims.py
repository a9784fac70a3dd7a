"""The table of claims: its rules, and that its page is what its scores say."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
import claims

from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.probing import request as probing
from nanozoo_core.probing.member import DEPTHS, Member
from nanozoo_core.probing.task import TEST

CLAIMS = claims.load()
GAIN = replace(CLAIMS[0], report="", effect=("b", "a"), at_least=0.02, parity=False, covered=True)
PARITY = replace(GAIN, parity=True, margin=0.015, at_least=0.0)
STUDENT = {(0.95, 2): 4.302653, (0.95, 3): 3.182446, (0.95, 4): 2.776445, (0.9, 4): 2.131847}
"""Two-sided quantiles by level and degrees of freedom, from a table."""


def scores(**bpbs: list[float]) -> list[claims.Score]:
    return [
        claims.Score(label, bpb, 0.0, seed)
        for label, seeds in bpbs.items()
        for seed, bpb in enumerate(seeds)
    ]


def of_tool(tool: str) -> list[claims.Claim]:
    """Those with a command of their own."""
    return [claim for claim in CLAIMS if claim.tool == tool and not claim.report]


@pytest.mark.parametrize("claim", of_tool(claims.COMPARE), ids=lambda claim: claim.name)
def test_a_claim_is_a_comparison_that_has_what_its_effect_names(claim: claims.Claim) -> None:
    request = parse(claim.words)
    named = {label for names in claim.effect for label in names.split("|")}
    assert named <= {entrant.label for entrant in request.entrants}
    assert len(request.seeds) >= 3
    for entrant in request.entrants:
        request.resolve(entrant)
    assert claim.at_least >= 0
    assert (claim.margin > 0) == claim.parity


def test_a_claim_has_a_command_or_a_report_that_has_what_its_effect_names() -> None:
    for claim in CLAIMS:
        assert bool(claim.command) != bool(claim.report)
        if claim.report:
            found = claims.read_scores(claims.kept(claim).read_text(encoding="utf-8"))
            named = {label for names in claim.effect for label in names.split("|")}
            assert named <= {score.label for score in found}
            assert len({score.seed for score in found}) >= 3
            assert claim.at_least >= 0
            assert (claim.margin > 0) == claim.parity


def test_a_claim_of_a_report_names_it_and_the_means_of_its_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains nothing, and other entrants of the report are not told."""
    monkeypatch.setattr(claims, "REPORTS", tmp_path)
    claim = replace(GAIN, name="x", command="", report="tuned", effect=("b", "a"))
    (tmp_path / "tuned").mkdir()
    lines = ["label,val_bpb,val_standard_error,seed,dtype,torch"]
    lines += [f"{label},{bpb},,0,bfloat16,2" for label, bpb in (("a", 1.5), ("b", 1.7), ("c", 9))]
    claims.kept(claim).write_text("\n".join(lines), encoding="utf-8")
    claims.run(claim, [])
    text = claims.details(claim)
    assert "[the report](report/tuned/report.md)" in text
    assert "```" not in text
    assert "Means over 1 seed: a 1.500, b 1.700." in text


def longest(member: Member) -> float:
    """Tokens that the model of a training reads."""
    config = member.resolved(member.source())
    model = load_adapter(config.training.model).make_model(config.model_cfg)
    return getattr(model, "max_context", None) or float("inf")


@pytest.mark.parametrize("claim", of_tool(claims.PROBE), ids=lambda claim: claim.name)
def test_a_probe_asks_what_its_effect_names(claim: claims.Claim) -> None:
    """One task, at places that its report has, with seeds enough and no clock that decides."""
    request = probing.parse(claim.words)
    (task,) = request.tasks
    samples = [task.tested().sample(0, TEST, index) for index in range(200)]
    groups = {f"{task.group_name} {group}" for sample in samples for group in sample.groups}
    places = {"", *task.tests_beyond(), *groups, *(f"depth {depth}" for depth in DEPTHS)}
    for names in claim.effect:
        for name in names.split("|"):
            label, _, place = name.partition("@")
            assert label in request.labels
            assert place in places
            if place in task.tests_beyond():
                one = next(member for member in request.members if member.label == label)
                assert longest(one) >= task.tests_beyond()[place].length
    assert len({member.seed for member in request.members}) >= 3
    assert all(member.seconds >= 600 for member in request.members)
    assert claim.at_least >= 0
    assert (claim.margin > 0) == claim.parity


def test_every_claim_has_a_tool() -> None:
    assert {claim.tool for claim in CLAIMS} == set(claims.TOOLS)


def test_the_page_is_what_the_scores_say() -> None:
    page = claims.PAGE.read_text(encoding="utf-8")
    assert claims.replaced(page, CLAIMS) == page


def test_names_are_unique() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_an_effect_is_students_with_the_spread_of_two_equal_groups() -> None:
    a, b = [1.52, 1.50, 1.53], [1.60, 1.57, 1.58]
    error = ((statistics.variance(a) + statistics.variance(b)) / 2 * (1 / 3 + 1 / 3)) ** 0.5
    for claim, level in ((GAIN, 0.95), (PARITY, 0.9)):
        found = claims.effect(claim, scores(a=a, b=b))
        assert found.mean == pytest.approx(0.2 / 3)
        assert found.high - found.low == pytest.approx(2 * STUDENT[level, 4] * error, rel=1e-5)
        assert found.low + found.high == pytest.approx(2 * found.mean)


def test_the_spread_is_pooled_over_all_entrants() -> None:
    a, b, c = [1.52, 1.50], [1.60, 1.57, 1.58], [2.0, 2.1]
    found = claims.effect(GAIN, scores(a=a, b=b, c=c))
    squares = sum(statistics.variance(x) * (len(x) - 1) for x in (a, b, c))
    error = (squares / 4 * (1 / 2 + 1 / 3)) ** 0.5
    assert found.half_width == pytest.approx(STUDENT[0.95, 4] * error, rel=1e-5)


def test_the_error_of_a_bound_is_added_and_the_best_of_several_taken() -> None:
    runs = scores(a=[1.5, 1.5], worse=[1.9, 1.9], b=[1.6, 1.6])
    runs[0] = replace(runs[0], error=0.02)
    found = claims.effect(replace(GAIN, effect=("b", "worse|a")), runs)
    assert found.mean == pytest.approx(0.1)
    assert found.half_width == pytest.approx(STUDENT[0.95, 3] * 0.01, rel=1e-5)


PROBED = replace(GAIN, tool=claims.PROBE, effect=("a", "b"))


def test_of_a_probe_the_better_answers_more() -> None:
    runs = scores(a=[0.9, 1.0, 0.8], b=[0.3, 0.3, 0.3], worse=[0.1, 0.1, 0.1])
    assert claims.effect(PROBED, runs).mean == pytest.approx(0.6)
    better = replace(PROBED, effect=("worse|a", "b"))
    assert claims.effect(better, runs).mean == pytest.approx(0.6)


def test_the_interval_of_a_probe_is_that_of_the_differences_by_seed() -> None:
    """Whatever is common to the seeds of both, and in whatever order they stand."""
    a, b = [0.9, 0.5, 0.7], [0.8, 0.3, 0.5]
    runs = scores(a=a, b=b, other=[0.0, 1.0, 0.0])
    runs[3:6] = reversed(runs[3:6])
    error = (statistics.variance(x - y for x, y in zip(a, b, strict=True)) / 3) ** 0.5
    found = claims.effect(PROBED, runs)
    assert found.half_width == pytest.approx(STUDENT[0.95, 2] * error, rel=1e-5)
    assert found.half_width < 0.2


def test_the_error_of_the_test_is_added_where_all_seeds_agree() -> None:
    runs = [replace(score, error=0.03) for score in scores(a=[0.9] * 3, b=[0.2] * 3)]
    found = claims.effect(PROBED, runs)
    error = (6 * 0.03**2 / 9) ** 0.5
    assert found.half_width == pytest.approx(STUDENT[0.95, 2] * error, rel=1e-5)


def test_one_seed_of_a_probe_leaves_no_interval() -> None:
    assert claims.effect(PROBED, scores(a=[0.9], b=[0.2])).half_width is None


TRAINING: dict[str, Any] = {
    "settings": {"label": "rd", "seed": 2, "lr": 2e-3}, "headline": "accuracy", "score": 0.5,
    "standard_error": 0.01, "guess": 0.3, "mode": "free", "steps": 9,
    "modes": {"free": {"accuracy": 0.5, "accuracy_error": 0.01, "group_name": "hops",
                       "by_group": {"1": 0.8, "2": 0.2}},
              "at once": {"not_asked": "it cannot"}},
    "beyond": {"length 128": {"accuracy": 0.4, "accuracy_error": 0.02}},
    "by_depth": {"16": {"accuracy": 0.6}},
}  # fmt: skip


def test_what_a_probe_found_is_kept_by_its_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "SCORES", tmp_path)
    claims.keep_answers(replace(PROBED, effect=("rd", "rd@length 128")), [TRAINING])
    found = claims.read_scores(claims.kept(PROBED).read_text(encoding="utf-8"))
    assert {score.label: score.value for score in found} == {
        "rd": 0.5, "rd@free": 0.5, "rd@length 128": 0.4, "rd@hops 1": 0.8, "rd@hops 2": 0.2,
        "rd@depth 16": 0.6,
    }  # fmt: skip
    assert {score.seed for score in found} == {2}
    assert [score.error for score in found] == [0.01, 0.01, 0.02, 0.0, 0.0, 0.0]
    with pytest.raises(SystemExit, match="rd@length 64 was not asked"):
        claims.keep_answers(replace(PROBED, effect=("rd", "rd@length 64")), [TRAINING])
    claim = replace(PROBED, effect=("rd@hops 1", "rd@hops 2"))
    text = claims.details(claim)
    assert "Means over 1 seed: rd 0.500, rd@hops 1 0.800, rd@hops 2 0.200. torch" in text
    assert "nanozoo probe" in text


@pytest.mark.parametrize(
    ("claim", "mean", "half_width", "expected"),
    [
        (GAIN, 0.03, 0.01, claims.SEEN),
        (GAIN, 0.015, 0.01, claims.NOT_VISIBLE),  # less than what was asked for
        (GAIN, 0.03, 0.04, claims.NOT_VISIBLE),
        (GAIN, 0.03, None, claims.NOT_VISIBLE),
        (GAIN, -0.03, 0.01, claims.CONTRADICTED),
        (replace(GAIN, covered=False), -0.03, 0.01, claims.NOT_VISIBLE),
        (PARITY, 0.004, 0.01, claims.SEEN),
        (PARITY, 0.004, 0.02, claims.NOT_VISIBLE),
        (PARITY, -0.03, 0.01, claims.CONTRADICTED),
        (PARITY, 0.03, 0.01, claims.CONTRADICTED),
        (PARITY, 0.02, 0.01, claims.NOT_VISIBLE),
        (replace(PARITY, covered=False), 0.03, 0.01, claims.NOT_VISIBLE),
    ],
)
def test_outcomes(
    claim: claims.Claim, mean: float, half_width: float | None, expected: str
) -> None:
    assert claims.outcome(claim, claims.Effect(mean, half_width)) == expected


def test_two_that_have_learned_nothing_are_not_level() -> None:
    claim = replace(PROBED, effect=("a", "b"), parity=True, margin=0.05, at_least=0.0)

    def told(value: float) -> str:
        rows = [replace(one, guess=0.2) for one in scores(a=[value] * 3, b=[value, 0.3, 0.3])]
        return claims.outcome(claim, claims.effect(claim, rows))

    assert told(0.3) == claims.NOT_VISIBLE
    claim = replace(claim, margin=2.0)
    assert told(0.59) == claims.NOT_VISIBLE  # the way from 0.2 to 1 is halved by 0.6
    assert told(0.61) == claims.SEEN
    assert claims.effect(claim, scores(a=[0.1] * 3, b=[0.1] * 3)).learned  # of bits per byte
