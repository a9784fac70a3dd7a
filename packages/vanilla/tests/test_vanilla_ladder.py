"""The control on the rungs of `nanozoo scale`, to the digit."""

import pytest

from nanozoo_core.comparing.scale.ladder import at_rung, rung_of
from nanozoo_core.comparing.scale.plan import make_ladder
from nanozoo_core.comparing.scale.request import parse

REQUEST = parse(["models=vanilla"])


def size(name, *words):
    rung = rung_of(name)

    def resolve(more):
        return REQUEST.resolve(REQUEST.control, [*words, *more])

    return at_rung(resolve, rung, match="body", target=rung.body)


@pytest.mark.parametrize(
    ("name", "body", "n", "flops"),
    [
        ("0.1", 98_304, 163_840, 1_376_256),
        ("0.3", 331_776, 430_080, 3_465_216),
        ("1", 983_040, 1_114_112, 8_650_752),
        ("2", 1_843_200, 2_007_040, 14_991_360),
    ],
)
def test_the_counts_of_the_rungs(name, body, n, flops):
    counts = size(name).counts
    assert (counts.body, counts.n, counts.flops_per_token) == (body, n, flops)
    assert counts.head_share == pytest.approx(6 * (n - body) / flops)


@pytest.mark.slow
def test_the_plan_of_the_whole_ladder():
    """Its tokens, and the bill in FLOPs; the control has a budget more at either end."""
    places = make_ladder(REQUEST).places
    assert [place.steps[1.0] * 4096 for place in places] == pytest.approx(
        [3.3e6, 8.6e6, 22.3e6, 20.1e6], rel=0.01
    )
    assert [min(place.steps) for place in places] == [1 / 16, 1 / 8, 1 / 8, 1 / 8]
    assert [max(place.steps) for place in places] == [1, 1, 1, 2]
    assert [place.bill_flops for place in places[1:3]] == pytest.approx([3.5e13, 2.26e14], rel=0.01)
