"""The table of claims: its rules, and that its page is what its scores say."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import claims

from nanozoo_core.comparing.compare.request import parse

CLAIMS = claims.load()
GAIN = replace(CLAIMS[0], effect=("b", "a"), at_least=0.02, parity=False, covered=True)
PARITY = replace(GAIN, parity=True, margin=0.015, at_least=0.0)
STUDENT = {(0.95, 3): 3.182446, (0.95, 4): 2.776445, (0.9, 4): 2.131847}
"""Two-sided quantiles by level and degrees of freedom, from a table."""


def scores(**bpbs: list[float]) -> list[claims.Score]:
    return [claims.Score(label, bpb, 0.0) for label, seeds in bpbs.items() for bpb in seeds]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_is_a_comparison_that_has_what_its_effect_names(claim: claims.Claim) -> None:
    request = parse(claim.words)
    named = {label for names in claim.effect for label in names.split("|")}
    assert named <= {entrant.label for entrant in request.entrants}
    assert len(request.seeds) >= 3
    for entrant in request.entrants:
        request.resolve(entrant)
    assert claim.at_least >= 0
    assert (claim.margin > 0) == claim.parity


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
