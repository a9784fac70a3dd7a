"""All that a ladder says of its models against the control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nanozoo_core.comparing.scale.checks import refitted
from nanozoo_core.comparing.scale.collect import Collected
from nanozoo_core.comparing.scale.estimate import COPIES, Estimate, usable
from nanozoo_core.comparing.scale.multiplier import (
    MIN_TREND,
    Multiplier,
    Trend,
    along,
    holm,
    in_text,
    in_weights,
    trend,
)
from nanozoo_core.comparing.scale.repetition import FLAGGED_EPOCHS
from nanozoo_core.comparing.scale.scores import Noise, pooled_noise

KINDS = ("surface", "hull")


@dataclass(frozen=True)
class Against:
    """One model against the control: its multipliers by what is paid, at each rung."""

    label: str
    kind: str
    """surface, or hull where the points carry no surface: of the multipliers in compute and
    seconds."""
    compute: list[Multiplier]
    check: list[Multiplier]
    """In compute by the hull of the points, which assumes no form; empty where that is `kind`."""
    seconds: list[Multiplier]
    text: list[Multiplier]
    weights: list[Multiplier]
    trend: Trend | None
    is_bound: bool
    """Whether the model's scores are upper bounds against exact ones: the multipliers are at least
    these."""

    def disagreements(self) -> list[str]:
        """The rungs at which surface and hull differ by more than both intervals."""
        found = []
        for one, other in zip(self.compute, self.check, strict=False):
            if one.interval is None or other.interval is None:
                continue
            if one.interval[0] > other.interval[1] or one.interval[1] < other.interval[0]:
                found.append(one.rung)
        return found


@dataclass(frozen=True)
class Verdict:
    """Estimates by label, the control's first, and each other model against it."""

    control: str
    noise: Noise | None
    estimates: dict[str, Estimate]
    against: dict[str, Against]
    significant: Mapping[str, bool]
    """Which trends are, all tests together."""
    notes: list[str] = field(default_factory=list)


def judge(found: Collected, control: str, *, copies: int = COPIES) -> Verdict:
    """The control must be among the scores. Models that were scored on another text are left out,
    and a note says so."""
    notes: list[str] = []
    scores = {}
    for label in dict.fromkeys([control, *found.scores]):
        if found.texts[label] != found.texts[control]:
            theirs, mine = found.texts[label], found.texts[control]
            notes.append(
                f"{label} is left out: it was scored on {theirs[1]:,} bytes of {theirs[0]}, the "
                f"control on {mine[1]:,} bytes of {mine[0]}"
            )
            continue
        scores[label], said = usable(found.scores[label])
        notes += said
        epochs = float((scores[label].tokens / scores[label].unique).max())
        if epochs > FLAGGED_EPOCHS:
            notes.append(
                f"The longest runs of {label} read the text {epochs:.1f} times; how much less that "
                f"is worth is an assumption from far larger models."
            )
    noise = pooled_noise([*scores.values()])
    if noise is None:
        notes.append("No run has a second seed, so that there are no intervals; give seeds=2.")
    estimates = {label: Estimate(one, noise, copies) for label, one in scores.items()}
    notes += [
        f"{e.lack}; its multipliers are those of the hull." for e in estimates.values() if e.lack
    ]
    against = {
        label: _against(estimate, estimates[control])
        for label, estimate in estimates.items()
        if label != control
    }
    tests = {
        label: one.trend.p
        for label, one in against.items()
        if one.trend is not None and one.trend.p is not None
    }
    for one in against.values():
        for rung in one.disagreements():
            notes.append(
                f"At rung {rung} the surface and the hull of {one.label} differ by more than their "
                f"intervals."
            )
        if one.trend is None:
            defined = sum(each.value is not None for each in one.compute)
            notes.append(
                f"{one.label} has a multiplier at {defined} rungs; whether it rises with scale "
                f"needs {MIN_TREND}."
            )
    return Verdict(control, noise, estimates, against, holm(tests), notes)


def _against(model: Estimate, control: Estimate) -> Against:
    has_surface = model.lack is None and control.lack is None
    kind = "surface" if has_surface else "hull"
    compute = along(model, control, "flops", kind)
    bands = refitted(model, control, compute)
    if bands is not None:
        compute = [
            one if one.value is None else replace(one, refits=band)
            for one, band in zip(compute, bands, strict=True)
        ]
    return Against(
        label=model.scores.model,
        kind=kind,
        compute=compute,
        check=along(model, control, "flops", "hull") if has_surface else [],
        seconds=along(model, control, "seconds", kind),
        text=in_text(model, control) if has_surface else [],
        weights=in_weights(model, control) if has_surface else [],
        trend=trend(compute),
        is_bound=model.scores.is_bound and not control.scores.is_bound,
    )
