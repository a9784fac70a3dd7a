"""report.md of a ladder: its multipliers, trends, laws, rungs and what to know of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nanozoo_core.comparing.compare.tables import markdown_code, markdown_rows, markdown_text
from nanozoo_core.comparing.scale import rate_check
from nanozoo_core.comparing.scale.estimate import Estimate, interval
from nanozoo_core.comparing.scale.multiplier import Multiplier
from nanozoo_core.comparing.scale.rate_check import RateCheck
from nanozoo_core.comparing.scale.verdict import Against, Verdict
from nanozoo_core.comparing.units import scaled

METHOD = (
    "A multiplier is what the control pays for the model's score over what the model pays, at the "
    "score that the model reaches for half of a rung's largest budget: above 1 the model is "
    "better. Text is compared at the same rung, and weights (those that multiply a token) after "
    "the same text. Intervals are 95 percent, over seeds and not over texts: each model's fitted "
    "scores get fresh noise of the size that the seeds show, in trunks and branches, pooled over "
    "all models, and are fitted anew. > and < are bounds where the control never reached that "
    "score, or where its worst is better already. Nothing is extrapolated."
)
WARNING = (
    "This is a tiny scale, one corpus and one vocabulary: a multiplier here is no forecast. Four "
    "small rungs do not settle exponents."
)
UNTUNED = (
    "Every model trains by its own recipe, its rates carried across widths by the spectral rule. "
    "Hand-tuning that went into those recipes is effort that nobody has counted."
)
RATES = (
    "Bits per byte of the tuning text at multiples of the carried learning rates, after a quarter "
    "of a rung's budget, with a seed that no other run has. A best rate within a factor of 1.41 of "
    "the carried one passes; where one end of a model does not, its ladder trains by rates that "
    "are interpolated between its two ends."
)


def shown(one: Multiplier, *, is_bound: bool = False) -> str:
    """1.38 [1.29, 1.47], or a bound."""
    if one.value is None:
        assert one.bound is not None
        return f"{one.bound[0]} {one.bound[1]:.3g}"
    sign = ">= " if is_bound else ""
    if one.interval is None:
        return f"{sign}{one.value:.3g}"
    return f"{sign}{one.value:.3g} [{one.interval[0]:.3g}, {one.interval[1]:.3g}]"


def multiplier_table(against: Against) -> list[list[str]]:
    """A row for each rung, and a column for each thing that is paid."""
    columns = {
        "compute": against.compute,
        "compute, by the hull": against.check,
        "seconds": against.seconds,
        "text": against.text,
        "weights": against.weights,
    }
    columns = {title: found for title, found in columns.items() if found}
    rows = [["rung", "at C", "bits per byte", *columns]]
    for one in against.compute:
        cells = [one.rung, f"{one.cost:.2e}", f"{one.loss:.4f}"]
        for found in columns.values():
            same = [each for each in found if each.rung == one.rung]
            cells.append(shown(same[0], is_bound=against.is_bound) if same else "")
        rows.append(cells)
    return rows


def trend_sentence(against: Against, *, is_significant: bool) -> str | None:
    """Whether the multiplier rises or falls with scale."""
    found = against.trend
    if found is None:
        return None
    text = f"x {found.per_decade:.3g} per tenfold compute"
    if found.interval is None:
        return f"{text}: without a second seed nobody knows whether that is a trend"
    low, high = (10**end for end in found.interval)
    text += f" [{low:.3g}, {high:.3g}]"
    if not is_significant:
        return f"{text}: no trend shown"
    if found.without_lowest is None:
        return f"{text}: {_way(found.slope)}, which three rungs cannot check without the lowest"
    if found.without_lowest * found.slope <= 0:
        return f"{text}: no trend shown, since it does not stay without the lowest rung"
    return f"{text}: {_way(found.slope)} with scale"


def _way(slope: float) -> str:
    return "rises" if slope > 0 else "falls"


def law_rows(estimates: Sequence[Estimate]) -> list[list[str]]:
    """The exponents of each surface, the share of compute that weights should get, the local slope
    of the score over compute, and the largest mean residual of a rung."""
    rows = [["model", "alpha", "beta", "a = beta/(alpha+beta)", "E", "d log L / d log C",
             "largest residual", "starts that agree", "copies at rest"]]  # fmt: skip
    for one in estimates:
        slope = one.local_slope(float(np.log(np.median(one.scores.flops))))
        if one.lack is not None:
            rows.append([one.scores.model, *[""] * 4, _with_interval(slope), *[""] * 3])
            continue
        law = one.surface
        alpha, beta = law.alpha.T
        means = {rung: one.residuals()[one.scores.of(rung)].mean() for rung in one.scores.rungs}
        worst = max(means, key=lambda rung: abs(means[rung]))
        rows.append(
            [
                one.scores.model,
                _with_interval(alpha),
                _with_interval(beta),
                _with_interval(beta / (alpha + beta)),
                _with_interval(np.exp(law.log_e)),
                _with_interval(slope),
                f"{means[worst]:+.2%} at {worst}",
                f"{law.agreeing[0]:.0%} within {law.spread[0]:.1g} in alpha",
                f"{law.has_converged[1:].mean():.1%}" if len(law.log_e) > 1 else "",
            ]
        )
    return rows


def _with_interval(values: np.ndarray | None) -> str:
    if values is None:
        return ""
    ends = interval(values[1:])
    return f"{values[0]:.3g}" + ("" if ends is None else f" [{ends[0]:.3g}, {ends[1]:.3g}]")


def score_rows(estimates: Sequence[Estimate]) -> list[list[str]]:
    """The mean score of every model at every rung and budget."""
    rows = [["model", "rung", "N", "budget", "tokens", "epochs", "C", "bits per byte", "seeds"]]
    for one in estimates:
        scores = one.scores
        for cell in dict.fromkeys(scores.cells):
            at = [n for n, each in enumerate(scores.cells) if each == cell]
            rows.append(
                [
                    scores.model,
                    cell[0],
                    f"{scores.n[at[0]]:,.0f}",
                    f"{cell[1]:g}",
                    scaled(float(scores.tokens[at[0]])),
                    f"{scores.tokens[at[0]] / scores.unique:.1f}",
                    f"{scores.flops[at[0]]:.2e}",
                    f"{scores.loss[at].mean():.4f}",
                    str(len(at)),
                ]
            )
    return rows


def markdown(
    verdict: Verdict,
    *,
    command: str,
    plan: str,
    missing: Sequence[str],
    check: RateCheck | None = None,
) -> str:
    """The whole report."""
    text = markdown_text
    parts = ["# Compute multipliers", markdown_code(command), WARNING, METHOD, UNTUNED]
    parts.append("![Score over compute](frontier.png)")
    for one in verdict.against.values():
        parts.append(f"## {text(one.label)} against {text(verdict.control)}")
        parts.append(_table(multiplier_table(one)))
        sentence = trend_sentence(one, is_significant=verdict.significant.get(one.label, False))
        parts += [text(sentence)] if sentence else []
    estimates = [*verdict.estimates.values()]
    parts += ["## Laws", _table(law_rows(estimates))]
    if verdict.noise is not None:
        noise = verdict.noise
        parts.append(
            f"Noise between seeds, pooled: {noise.trunk:.2%} of a trunk and {noise.branch:.2%} of "
            f"a branch ({noise.freedom} degrees of freedom)."
        )
    notes = [*verdict.notes, *missing]
    if notes:
        parts += ["## To know", "\n".join(f"- {text(note)}" for note in notes)]
    if check is not None:
        parts += ["## Learning rates", RATES, _table(rate_check.rows(check))]
    parts += ["## Scores", _table(score_rows(estimates)), "## Plan", f"```text\n{plan}\n```"]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return markdown_rows(*[[markdown_text(cell) for cell in row] for row in rows])


def as_json(verdict: Verdict) -> dict[str, object]:
    """Every point and every fit in full precision: predictions are made from these numbers, and
    never from printed ones."""
    return {
        "control": verdict.control,
        "noise": None if verdict.noise is None else vars(verdict.noise),
        "models": {label: _estimate_json(one) for label, one in verdict.estimates.items()},
        "against": {
            label: {
                "kind": one.kind,
                "is_lower_bound": one.is_bound,
                **{
                    key: [_multiplier_json(each) for each in getattr(one, key)]
                    for key in ("compute", "check", "seconds", "text", "weights")
                },
                "trend": None if one.trend is None else vars(one.trend),
                "trend_is_significant": verdict.significant.get(label, False),
            }
            for label, one in verdict.against.items()
        },
        "notes": verdict.notes,
    }


def _estimate_json(one: Estimate) -> dict[str, object]:
    points = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in vars(one.scores).items()
    }
    law, surface = one.compute_law, None if one.lack is not None else one.surface
    return {
        "points": points,
        "surface": None if surface is None else _law_json(surface),
        "compute_law": None if law is None else _law_json(law),
        "lack": one.lack,
    }


def _law_json(law: object) -> dict[str, object]:
    """The estimate, and the copies behind its interval."""
    return {key: value.tolist() for key, value in vars(law).items()}


def _multiplier_json(one: Multiplier) -> dict[str, object]:
    ends = None
    if one.interval is not None:
        ends = [end if math.isfinite(end) else None for end in one.interval]
    return {
        "rung": one.rung,
        "cost": one.cost,
        "loss": one.loss,
        "value": one.value,
        "bound": one.bound,
        "interval": ends,
    }
