"""Ranking: what is compared with what, and what the seeds can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import studentized_range, t, tukey_hsd

from nanozoo_core.comparing.compare.ranking import half_width, rank, warnings
from nanozoo_core.comparing.compare.results import Entry, Run
from nanozoo_core.comparing.compare.studentized_range import student_quantile, survival


def entry(label: str, *bpbs: float, **changes: Any) -> Entry:
    result = {
        "val_bound": "exact",
        "data_fingerprint": "abc",
        "val_bytes": 1000,
        "val_tokens": 250,
        "train_bytes": 2_000_000,
        "train_seconds": 10.0,
        "device": "cpu",
        "seed": 0,
    }
    runs = [
        Run(label, seed, Path("nowhere"), {**result, "val_bpb": bpb, **changes}, [], (), "train")
        for seed, bpb in enumerate(bpbs)
    ]
    return Entry(label, tuple(runs))


def test_ranks_span_what_the_seeds_leave_open() -> None:
    entries = [
        entry("worst", 2.00, 2.02), entry("best", 1.50, 1.52), entry("near", 1.51, 1.53)
    ]  # fmt: skip
    (group,) = rank(entries)
    assert [(p.entry.label, p.rank) for p in group.places] == [
        ("best", "1-2"), ("near", "1-2"), ("worst", "3")
    ]  # fmt: skip


def test_the_test_is_tukeys() -> None:
    samples = [(1.50, 1.54, 1.49), (1.56, 1.60, 1.57), (1.58, 1.66, 1.59)]
    expected = tukey_hsd(*samples).pvalue < 0.05
    entries = [entry(str(n), *sample) for n, sample in enumerate(samples)]
    assert expected.any()
    assert not expected[1, 2]
    (group,) = rank(entries)
    for n, place in enumerate(group.places):  # already in the order of the means
        assert place.best == 1 + expected[n, :n].sum()
        assert place.worst == 3 - expected[n, n + 1 :].sum()


def test_equal_seeds_leave_no_doubt_and_equal_scores_all() -> None:
    (group,) = rank([entry("a", 1.5, 1.5), entry("b", 1.6, 1.6), entry("c", 1.6, 1.6)])
    assert [p.rank for p in group.places] == ["1", "2-3", "2-3"]


def test_the_interval_is_students_with_the_pooled_spread() -> None:
    entries = [entry("a", 1.0, 1.2), entry("b", 2.0, 2.2)]
    # Pooled variance 0.02 from two degrees of freedom, whose t is 4.3027; two seeds each.
    assert half_width(entries[0], entries) == pytest.approx(4.3027 * 0.1, rel=1e-4)


def test_one_seed_has_an_order_and_no_interval() -> None:
    entries = [entry("b", 1.6), entry("a", 1.5)]
    (group,) = rank(entries)
    assert [(p.entry.label, p.rank, p.half_width) for p in group.places] == [
        ("a", "1", None), ("b", "2", None)
    ]  # fmt: skip
    assert any("One seed each" in sentence for sentence in warnings(entries))


def test_bounds_and_other_texts_are_ranked_apart() -> None:
    entries = [
        entry("exact", 1.6, 1.61),
        entry("bound", 1.2, 1.21, val_bound="upper"),
        entry("elsewhere", 1.1, 1.11, data_fingerprint="other"),
        entry("shorter", 1.0, 1.01, val_bytes=500),
        entry("tuned", 0.9, 0.91, val_split="tune"),
        entry("other half", 0.8, 0.81, val_split="test"),
        entry("of now", 1.7, 1.71, val_split="all"),
    ]
    groups = rank(entries)
    assert [[p.entry.label for p in group.places] for group in groups] == [
        ["exact", "of now"], ["bound"], ["elsewhere"], ["shorter"], ["tuned"], ["other half"]
    ]  # fmt: skip
    said = " ".join(warnings(entries))
    assert "5 different texts" in said
    assert "upper bounds" in said


def test_unequal_terms_are_named() -> None:
    entries = [entry("a", 1.5, 1.5), entry("b", 1.4, 1.4, train_bytes=4_000_000, device="gpu")]
    said = " ".join(warnings(entries))
    assert "different amounts of text, 2.0 to 4.0 MB" in said
    assert "different machines: cpu, gpu" in said
    assert warnings([entry("a", 1.5, 1.6), entry("b", 1.4, 1.5)]) == []


@pytest.mark.parametrize(("k", "v"), [(2, 1), (3, 4), (18, 2), (40, 100)])
def test_the_studentized_range_is_that_of_scipy(k: int, v: int) -> None:
    for q in (0.5, 3.5, 6.0):
        assert survival(q, k, v) == pytest.approx(studentized_range.sf(q, k, v), abs=1e-6)
    assert student_quantile(0.05, v) == pytest.approx(t.ppf(0.975, v), rel=1e-10)
