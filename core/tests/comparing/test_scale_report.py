"""What a whole ladder says, from scores whose law is known."""

import json

import numpy as np
import pytest

from nanozoo_core.comparing.scale import report
from nanozoo_core.comparing.scale.collect import Collected
from nanozoo_core.comparing.scale.verdict import judge
from nanozoo_core.testing import scaling_worlds as worlds

TEXT = ("text", 1000)
CHEAPER = np.geomspace(1.2, 2.4, 4)


@pytest.fixture(scope="module")
def verdict():
    generator = np.random.default_rng(0)
    scores = {
        "control": worlds.ladder("control", generator, longer=True),
        "better": worlds.ladder("better", generator, cheaper=CHEAPER),
        "other": worlds.ladder("other", generator),
    }
    texts = dict.fromkeys(scores, TEXT) | {"other": ("text", 999)}
    return judge(Collected(scores, texts, ()), "control", copies=40)


def by_brute_force():
    """The multipliers of cheaper FLOPs by the law itself. They are less than the factors: at half
    of a rung's budget a smaller size, whose FLOPs are less cheap, is on the frontier."""
    sizes = np.geomspace(worlds.SIZES[0], worlds.SIZES[-1], 2001)
    costs = np.geomspace(1e11, 1e15, 4001)

    def frontier(per_token):
        each = np.exp(np.interp(np.log(sizes), np.log(worlds.SIZES), np.log(per_token)))
        tokens = costs[:, None] / each
        losses = worlds.E + worlds.A * sizes**-worlds.ALPHA + worlds.B * tokens**-worlds.BETA
        return losses.min(1)

    mine, theirs = frontier(worlds.FLOPS / CHEAPER), frontier(worlds.FLOPS)
    paid = worlds.FLOPS / CHEAPER * worlds.TOKENS / 2
    reached = np.interp(np.log(paid), np.log(costs), mine)
    return np.exp(np.interp(-reached, -theirs, np.log(costs))) / paid


def test_multipliers_and_their_trend_stand_in_the_report(verdict):
    one = verdict.against["better"]
    assert one.kind == "surface"
    assert [each.value for each in one.compute] == pytest.approx(by_brute_force(), rel=0.06)
    parts = report.sections(verdict, plan="plan", missing=["x is missing"])
    text = report.markdown(parts, command="nanozoo scale")
    for part in ("rises with scale", "## better against control", "x is missing", "by the hull",
                 "99", "largest residual"):  # fmt: skip
        assert part in text
    rows = report.multiplier_table(one)
    assert rows[0][3:] == [
        *("compute", "compute, by the hull", "compute, without any one rung"),
        *("seconds", "text", "weights"),
    ]
    low, high = one.compute[0].interval
    assert rows[1][3] == f"{one.compute[0].value:.3g} [{low:.3g}, {high:.3g}]"


def test_scores_of_another_text_are_no_part_of_it(verdict):
    assert "other" not in verdict.against
    assert any("other is left out: it was scored on 999 bytes" in note for note in verdict.notes)


def test_the_numbers_are_stored_in_full(verdict):
    stored = json.loads(json.dumps(report.as_json(verdict)))
    law = stored["models"]["better"]["surface"]
    assert law["alpha"] == verdict.estimates["better"].surface.alpha.tolist()
    first = stored["against"]["better"]["compute"][0]
    assert first["value"] == verdict.against["better"].compute[0].value
    assert first["interval"] == list(verdict.against["better"].compute[0].interval)


def test_a_trend_that_no_test_shows_is_called_none(verdict):
    sentence = report.trend_sentence(verdict.against["better"], is_significant=False)
    assert sentence.endswith("no trend shown")


def test_the_page_holds_all_of_the_report_in_one_file(verdict, tmp_path):
    """Text as text, whatever is in it, and the picture inside."""
    (tmp_path / "frontier.png").write_bytes(b"picture")
    parts = report.sections(verdict, plan="a < b & c", missing=["<script>x</script> is missing"])
    page = report.page(parts, command="nanozoo scale models='a<b'", folder=tmp_path)
    assert page.count("<h2>") == len(parts)
    assert page.count("<table>") == 4  # multipliers, laws, checks and scores
    for part in ("a &lt; b &amp; c", "&lt;script&gt;x&lt;/script&gt; is missing", "=&#x27;a&lt;b",
                 "data:image/png;base64,cGljdHVyZQ==", "better against control",
                 report.multiplier_table(verdict.against["better"])[1][3]):  # fmt: skip
        assert part in page
    assert "<script" not in page
    assert "http" not in page.replace("https://arxiv", "")
