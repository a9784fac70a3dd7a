"""The compute multiplier: known answers on a control whose law is known, and a comparison that
trains the control on other budgets."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nanozoo_core.comparing.compare.command import compare
from nanozoo_core.comparing.compare.multiplier import at_budgets, multiplied, multiplier
from nanozoo_core.comparing.compare.page import page
from nanozoo_core.comparing.compare.report import Report, markdown
from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.comparing.compare.results import Entry, Run
from nanozoo_core.errors import ConfigError

WORDS = ("models=vanilla,a:vanilla,b:vanilla", "control=vanilla", "control_budgets=0.25,0.5,2,4")
EXPONENT = 0.3  # of the control's law


def law(flops: float) -> float:
    return float(2.0 * (flops / 1e12) ** -EXPONENT)


def entry(
    label: str, flops: float, bpbs: Sequence[float], *, bound: str = "exact", text: str = "abc"
) -> Entry:
    def result(bpb: float) -> dict[str, object]:
        return {
            "val_bpb": bpb, "train_flops": flops, "val_bound": bound, "data_fingerprint": text,
            "val_bytes": 1000,
        }  # fmt: skip

    runs = tuple(
        Run(label, seed, Path("x"), result(bpb), [], (), "") for seed, bpb in enumerate(bpbs)
    )
    return Entry(label, runs)


def control(*, error: float = 0.0) -> list[Entry]:
    """Five budgets around 1e12 FLOPs, two seeds each, `error` above and below the law."""
    return [
        entry(label, factor * 1e12, [law(factor * 1e12) + error, law(factor * 1e12) - error])
        for label, factor in (
            ("vanilla", 1), ("vanilla.b0.25", 0.25), ("vanilla.b0.5", 0.5), ("vanilla.b2", 2),
            ("vanilla.b4", 4),
        )
    ]  # fmt: skip


def values(*others: Entry, error: float = 0.0) -> dict[str, str]:
    entries, _, _ = multiplied(parse(WORDS), [*control(error=error), *others])
    return {one.label: str(one.multiplier) for one in entries}


def test_what_costs_half_for_the_same_score_has_a_multiplier_of_two() -> None:
    found = values(entry("a", 0.7e12, [law(1.4e12)] * 2), entry("b", 3e12, [law(1e12)] * 2))
    assert found == {"vanilla": "1.00", "a": "2.00 (2.00 to 2.00)", "b": "0.33 (0.33 to 0.33)"}


def test_beyond_the_budgets_only_a_bound_is_told() -> None:
    found = values(entry("a", 1e12, [law(9e12)] * 2), entry("b", 1e12, [law(0.1e12)] * 2))
    assert (found["a"], found["b"]) == ("> 4.00", "< 0.25")


def test_a_score_that_is_a_bound_bounds_the_multiplier() -> None:
    good, bad = law(0.5e12), law(0.1e12)
    found = values(
        entry("a", 1e12, [good] * 2, bound="upper"), entry("b", 1e12, [bad] * 2, bound="upper")
    )
    assert (found["a"], found["b"]) == (">= 0.50", "None")
    found = values(entry("a", 1e12, [law(9e12)] * 2, bound="upper"))
    assert found["a"] == "> 4.00"


def test_the_interval_is_the_spread_of_both_scores_over_the_slope() -> None:
    """By hand: at a point of the control, of 2 seeds, the variance of the difference is s^2 (1/2 +
    1/2); here all entries differ by 2 e between seeds, so that s^2 = 2 e^2, with 7 degrees of
    freedom, whose quantile is 2.3646."""
    error, score = 0.004, law(2e12)
    entries, _, _ = multiplied(
        parse(WORDS),
        [
            *control(error=error),
            entry("a", 1e12, [score + error, score - error]),
            entry("b", 1e12, [1.5 + error, 1.5 - error]),
        ],
    )
    one = next(e.multiplier for e in entries if e.label == "a")
    assert one is not None
    assert one.interval is not None
    assert one.value == pytest.approx(2)
    low, high = one.interval
    log_error = 2**0.5 * error / score / EXPONENT
    assert math.log(high / 2) == pytest.approx(2.3646 * log_error, rel=1e-4)
    assert math.log(2 / low) == pytest.approx(2.3646 * log_error, rel=1e-4)


def test_between_two_budgets_both_count() -> None:
    """In the middle of two points of 2 seeds their variances count a quarter each."""
    middle = math.sqrt(law(1e12) * law(2e12))
    curve = sorted(control(), key=lambda one: float(one.first["train_flops"]))
    one = multiplier(entry("a", 1e12, [middle]), curve, variance=1e-6, student=2.0)
    assert one is not None
    assert one.interval is not None
    error = (1e-6 * (1 + 2 * 0.25 / 2)) ** 0.5 / middle / EXPONENT
    assert math.log(one.interval[1] / one.value) == pytest.approx(2 * error)


def test_a_dearer_budget_with_a_worse_score_counts_as_the_cheaper() -> None:
    curve = [entry("c", cost, [score]) for cost, score in ((1.0, 2.0), (2.0, 2.1), (4.0, 1.0))]
    found = multiplier(entry("a", 1.0, [2.0]), curve, None, 0.0)
    assert found is not None
    assert found.value == 1.0
    found = multiplier(entry("a", 1.0, [2**0.5]), curve, None, 0.0)
    assert found is not None
    assert found.value == pytest.approx(8**0.5)


def test_another_text_has_no_multiplier_and_one_seed_no_interval() -> None:
    single = [replace(one, runs=one.runs[:1]) for one in control()]
    others = [entry("a", 1e12, [law(2e12)]), entry("b", 1e12, [1.0], text="other")]
    entries, _, _ = multiplied(parse(WORDS), [*single, *others])
    assert [str(one.multiplier) for one in entries] == ["1.00", "2.00", "None"]


def test_the_report_has_the_column_and_the_controls_table_but_ranks_no_other_budget() -> None:
    entries, curve, why = multiplied(parse(WORDS), [*control(), entry("a", 1e12, [law(2e12)] * 2)])
    assert why is None
    assert [one.label for one in entries] == ["vanilla", "a"]
    assert [one.label[7:] for one in curve] == [".b0.25", ".b0.5", "", ".b2", ".b4"]
    report = Report("x", "nanozoo compare", entries, {}, control=curve)
    assert [one.label for one in report.trained] == [
        "vanilla", "a", "vanilla.b0.25", "vanilla.b0.5", "vanilla.b2", "vanilla.b4"
    ]  # fmt: skip
    assert report.small_tables == {
        "The control at its budgets": [
            ["text read", "FLOPs", "bits per byte", "seeds"],
            *(
                ["", shown, f"{law(x):.3f}", "2"]
                for shown, x in (
                    ("250 G", 0.25e12),
                    ("500 G", 0.5e12),
                    ("1 T", 1e12),
                    ("2 T", 2e12),
                    ("4 T", 4e12),
                )
            ),
        ]
    }
    assert "other budgets of its table" in report.method


def test_without_scores_at_two_budgets_the_report_says_why() -> None:
    _, _, why = multiplied(parse(WORDS), control()[:1])
    assert why == "No compute multipliers: vanilla has no scores at two budgets."
    _, curve, why = multiplied(parse(["models=vanilla"]), control()[:1])
    assert (curve, why) == ((), None)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["control=b"], "control=b must be one of models=toy"),
        (["control=toy", "budget=own"], "one budget for all"),
        (["control=toy", "rate_factors=0.5,1"], "do not go together"),
        (["control=toy", "control_budgets=0.5,1"], "1 is budget= itself"),
        (["control_budgets=0.5,2"], "wants control=MODEL"),
    ],
)
def test_a_control_that_makes_no_sense_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(["models=toy", *words])


def test_the_controls_budgets_are_whole_and_come_last() -> None:
    request = parse(
        ["models=toy,wide:toy", "toy.train.max_steps=9", "control=toy", "budget=steps:5",
         "control_budgets=0.5,3"]
    )  # fmt: skip
    assert [(one.label, one.overrides[-1]) for one in at_budgets(request)] == [
        ("toy.b0.5", "train.max_steps=2"), ("toy.b3", "train.max_steps=15")
    ]  # fmt: skip


def test_a_comparison_trains_the_control_on_the_other_budgets(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = [
        "models=toy,again:toy", "control=toy", "control_budgets=0.5,2", "budget=steps:6", "seeds=1",
        "eval.bytes=3000", f"folder={folder}", "data.tokenizer=bytes", "train.batch_tokens=256",
        "data.seq_len=32",
    ]  # fmt: skip
    found = compare(words)
    assert not found.failures
    assert found.report is not None
    assert found.report.small_tables["The control at its budgets"][1:]
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["label"], row["steps"]) for row in rows] == [
        ("toy", "6"), ("again", "6"), ("toy.b0.5", "3"), ("toy.b2", "12")
    ]  # fmt: skip
    by_model = {row["model"]: row["compute multiplier"] for row in found.rows()}
    assert by_model["toy"] == 1.0
    assert by_model["again"] == pytest.approx(1.0)  # the same training under another name
    assert "## The control at its budgets" in markdown(found.report)
    assert "The control at its budgets" in page(found.report)
    assert (folder / "runs" / "toy.b2_0").is_dir()
