"""The report of a ladder: its multipliers, trends, laws, rungs and what to know of them."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanozoo_core.comparing import simple_page
from nanozoo_core.comparing.compare.tables import markdown_code, markdown_rows, markdown_text
from nanozoo_core.comparing.scale import checks, frontier, rate_check
from nanozoo_core.comparing.scale.estimate import Estimate, interval
from nanozoo_core.comparing.scale.multiplier import Multiplier
from nanozoo_core.comparing.scale.power_law import PowerLaw
from nanozoo_core.comparing.scale.rate_check import RateCheck
from nanozoo_core.comparing.scale.verdict import Against, Verdict
from nanozoo_core.comparing.units import scaled

TITLE, PICTURE = "Compute multipliers", "Score over compute"
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
REFITS = "compute, without any one rung"
CHECKS = (
    "The size of the lowest loss at a compute grows as C^a. Beside a of the surface stand its "
    "smallest and largest value when the surface is fitted without any one of its rungs, the "
    "growth of the size on the envelope of all runs, and that of the vertices of parabolas in log "
    "N. The last needs four sizes within a factor of four of their middle at one compute. These "
    "are checks: a result is none of them."
)
EXTRAPOLATED = (
    "Nothing was trained at these computes: the surface is followed beyond the largest run, with "
    "sizes beyond the largest rung. The interval is that of the seeds alone, and says nothing of a "
    "form that is wrong there; the surfaces without any one rung say a little of it."
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


def band(ends: tuple[float, float] | None) -> str:
    """The smallest and the largest, as in 1.31 .. 1.44."""
    return "" if ends is None else f"{ends[0]:.3g} .. {ends[1]:.3g}"


def multiplier_table(against: Against) -> list[list[str]]:
    """A row for each rung, and a column for each thing that is paid."""
    columns = {
        "compute": against.compute,
        "compute, by the hull": against.check,
        REFITS: against.compute if any(one.refits for one in against.compute) else [],
        "seconds": against.seconds,
        "text": against.text,
        "weights": against.weights,
    }
    columns = {title: found for title, found in columns.items() if found}
    rows = [["rung", "at C", "bits per byte", *columns]]
    for one in against.compute:
        cells = [one.rung, f"{one.cost:.2e}", f"{one.loss:.4f}"]
        for title, found in columns.items():
            same = [each for each in found if each.rung == one.rung]
            if title == REFITS:
                cells.append(band(one.refits))
            else:
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
                _with_interval(_best_size(law)),
                _with_interval(np.exp(law.log_e)),
                _with_interval(slope),
                f"{means[worst]:+.2%} at {worst}",
                f"{law.agreeing[0]:.0%} within {law.spread[0]:.1g} in alpha",
                f"{law.has_converged[1:].mean():.1%}" if len(law.log_e) > 1 else "",
            ]
        )
    return rows


def check_rows(estimates: Sequence[Estimate]) -> list[list[str]]:
    """The exponent of the best size by the surface and by other ways."""
    rows = [["model", "a of the surface", "without any one rung", "by the envelope",
             "by parabolas"]]  # fmt: skip
    for one in estimates:
        surface, refits = "", None
        if one.lack is None:
            surface = _with_interval(_best_size(one.surface))
            if one.refits is not None:
                values = _best_size(one.refits)
                refits = float(values.min()), float(values.max())
        growths = checks.by_envelope(one.scores), checks.by_parabolas(one.scores)
        cells = [
            f"computes: {g.computes}" if g.exponent is None else f"{g.exponent:.3g}"
            for g in growths
        ]
        rows.append([one.scores.model, surface, band(refits), *cells])
    return rows


def _best_size(law: PowerLaw) -> np.ndarray:
    """a = beta / (alpha + beta)."""
    alpha, beta = law.alpha.T
    return np.asarray(beta / (alpha + beta))


def extrapolated_rows(estimates: Sequence[Estimate], factor: float) -> list[list[str]]:
    """The loss that each surface has at `factor` times its largest compute."""
    rows = [["model", "at C", "bits per byte", "without any one rung"]]
    for one in estimates:
        edge = one.beyond(factor)
        if edge is None:
            continue
        cost = float(edge.log_cost[-1])
        refits = None
        if one.refits is not None:
            found = frontier.of_surface(one.refits, one.scores, "flops", beyond=factor).at(cost)
            refits = float(np.exp(found.min())), float(np.exp(found.max()))
        at = np.exp(edge.at(cost))
        rows.append([one.scores.model, f"{np.exp(cost):.2e}", _with_interval(at), band(refits)])
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


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    sentences: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """Of a table, the head first."""
    points: Sequence[str] = ()
    plain: str = ""
    """Lines that stay as they are."""


def sections(
    verdict: Verdict,
    *,
    plan: str,
    missing: Sequence[str],
    check: RateCheck | None = None,
    extrapolate: float | None = None,
) -> list[Section]:
    """What follows the picture."""
    parts = []
    for one in verdict.against.values():
        sentence = trend_sentence(one, is_significant=verdict.significant.get(one.label, False))
        title = f"{one.label} against {verdict.control}"
        parts.append(Section(title, [sentence] if sentence else [], multiplier_table(one)))
    estimates = [*verdict.estimates.values()]
    noise = verdict.noise
    seen = [] if noise is None else [
        f"Noise between seeds, pooled: {noise.trunk:.2%} of a trunk and {noise.branch:.2%} of "
        f"a branch ({noise.freedom} degrees of freedom)."
    ]  # fmt: skip
    parts.append(Section("Laws", seen, law_rows(estimates)))
    parts.append(Section("Checks of the exponents", [CHECKS], check_rows(estimates)))
    if extrapolate is not None:
        rows = extrapolated_rows(estimates, extrapolate)
        parts.append(Section("Extrapolated", [EXTRAPOLATED], rows))
    notes = [*verdict.notes, *missing]
    if notes:
        parts.append(Section("To know", points=notes))
    if check is not None:
        parts.append(Section("Learning rates", [RATES], rate_check.rows(check)))
    parts.append(Section("Scores", rows=score_rows(estimates)))
    parts.append(Section("Plan", plain=plan))
    return parts


def markdown(parts: Sequence[Section], *, command: str) -> str:
    """The whole report."""
    text = markdown_text
    found = [f"# {TITLE}", markdown_code(command), WARNING, METHOD, UNTUNED]
    found.append(f"![{PICTURE}](frontier.png)")
    for one in parts:
        found.append(f"## {text(one.title)}")
        if one.rows:
            found.append(markdown_rows(*[[text(cell) for cell in row] for row in one.rows]))
        found += map(text, one.sentences)
        if one.points:
            found.append("\n".join(f"- {text(point)}" for point in one.points))
        if one.plain:
            found.append(f"```text\n{one.plain}\n```")
    return "\n\n".join(found) + "\n"


def page(parts: Sequence[Section], *, command: str, folder: Path) -> str:
    """The whole report as HTML. Args: folder: where the picture lies."""
    body = [simple_page.heading(TITLE, 1), f"<p><code>{html.escape(command)}</code></p>"]
    body.append(simple_page.paragraph(WARNING, is_warning=True))
    body += map(simple_page.paragraph, (METHOD, UNTUNED))
    body.append(simple_page.picture(folder / "frontier.png"))
    for one in parts:
        body.append(simple_page.heading(one.title))
        if one.rows:
            body.append(simple_page.table(one.rows))
        body += map(simple_page.paragraph, one.sentences)
        if one.points:
            points = "".join(f"<li>{html.escape(point)}</li>" for point in one.points)
            body.append(f"<ul>{points}</ul>")
        if one.plain:
            body.append(f"<pre>{html.escape(one.plain)}</pre>")
    return simple_page.whole_page(TITLE, body)


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
        "best_size": {
            "envelope": vars(checks.by_envelope(one.scores)),
            "parabolas": vars(checks.by_parabolas(one.scores)),
        },
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
        "without_any_one_rung": None if one.refits is None else [
            end if math.isfinite(end) else None for end in one.refits],
    }  # fmt: skip
