"""What a reader of a report sees: colours, names beside lines, and the page in a browser."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from nanozoo_core.comparing.compare import plots
from nanozoo_core.comparing.compare.curves import Point, smoothed
from nanozoo_core.comparing.compare.labels import spread
from nanozoo_core.comparing.compare.page import page
from nanozoo_core.comparing.compare.palette import DASHES, HUES, colour_of, looks, luminance
from nanozoo_core.comparing.compare.report import Report
from nanozoo_core.comparing.compare.results import Entry, collect

TEXT, MARKS = 4.5, 3.0  # least contrast by WCAG 2.2, for text and for parts of pictures
TEMPLATE = files("nanozoo_core.comparing.compare").joinpath("report.html").read_text("utf-8")


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_luminance_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)
    assert contrast("#ff0000", "#ffffff") == pytest.approx(3.998, abs=1e-3)


def themes() -> list[dict[str, str]]:
    """The page's colours by name, light and dark."""
    blocks = re.findall(r":root \{(.*?)\}", TEMPLATE, re.DOTALL)
    assert len(blocks) == 2
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_and_marks_stand_out_on_the_page(theme: dict[str, str]) -> None:
    for ink, ground in itertools.product(("ink", "faint", "link"), ("page", "card")):
        assert contrast(theme[ink], theme[ground]) >= TEXT, (ink, ground)
    assert contrast(theme["ink"], theme["warn"]) >= TEXT
    marks = [theme["grey"], *(colour_of(hue / 360) for hue in range(0, 360, 5))]
    for mark, ground in itertools.product(marks, ("page", "card")):
        assert contrast(mark, theme[ground]) >= MARKS, (mark, ground)


def test_text_and_marks_stand_out_in_the_plots() -> None:
    assert min(contrast(ink, "#ffffff") for ink in (plots.INK, plots.FAINT)) >= TEXT
    assert contrast(plots.GREY, "#ffffff") >= MARKS


def write_run(folder: Path, label: str, bpb: float, family: str, *, seed: int = 0) -> Path:
    """A finished run folder without its training, whose curve ends at its score."""
    run = folder / f"{label}_{seed}"
    run.mkdir(parents=True)
    result = {
        "model": label, "family": family, "params": 1000, "val_bpb": bpb, "val_bound": "exact",
        "val_bytes": 1000, "val_tokens": 1000, "data_fingerprint": "abc", "train_bytes": 4_000_000,
        "train_seconds": 20.0, "train_flops": 4e12, "peak_memory_bytes": 2**30, "seed": seed,
        "device": "cpu", "baselines_bpb": {"bz2": 1.709, "xz": 1.71}, "git_commit": None,
        "cache_bytes_per_token": 0.0, "state_bytes": 61e6,
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result))
    config = {"model": label, "seed": seed, "data": {"seq_len": 32}, "optim": {"name": "adamw"}}
    (run / "config.yaml").write_text(json.dumps(config | {"note": f"<b>{label}</b>"}))
    rows = [
        {"step": n, "bytes": 1e5 * n, "flops": 1e11 * n, "seconds": n / 2,
         "train_bpb": bpb + 1 / n + 0.1 * (-1) ** n}
        for n in range(1, 41)
    ]  # fmt: skip
    rows.append({"step": 40, "bytes": 4e6, "flops": 4e12, "seconds": 20, "val_bpb": bpb})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def entries_of(folder: Path, families: list[str]) -> list[Entry]:
    runs = [
        write_run(folder, f"model{n}", 1.7 + n / 1000, family) for n, family in enumerate(families)
    ]
    entries, _ = collect([], runs)
    return entries


def test_a_hue_is_a_family_a_dash_a_member_and_eight_are_in_colour(tmp_path: Path) -> None:
    entries = entries_of(tmp_path, ["a", "a", "a", "b", "b", "c", "a", "d", "b", "a", "c"])
    found = looks(entries)
    colours = {entry.family: found[entry.label].colour for entry in entries}
    assert len(set(colours.values())) == 4
    assert all(found[entry.label].colour == colours[entry.family] for entry in entries)
    assert len({(look.colour, look.dash) for look in found.values()}) == len(entries)
    in_colour = [entry.label for entry in entries if found[entry.label].in_colour]
    # The best of a, b, c and d, and the next best four.
    assert in_colour == ["model0", "model1", "model2", "model3", "model4", "model5", "model6",
                         "model7"]  # fmt: skip
    assert len(set(DASHES)) == len(DASHES) == 6
    many = looks(entries_of(tmp_path / "many", [str(n) for n in range(2 * len(HUES))]))
    assert len({look.colour for look in many.values()}) == 2 * len(HUES)
    assert sum(look.in_colour for look in many.values()) == 8


def test_labels_move_as_little_as_they_must() -> None:
    assert spread([1.0, 5.0, 9.0], 3.0) == [1.0, 5.0, 9.0]
    assert spread([5.0, 5.0], 2.0) == [4.0, 6.0]
    assert spread([], 1.0) == []
    generator = random.Random(0)
    for _ in range(50):
        wanted = [generator.uniform(0, 10) for _ in range(5)]
        places = spread(wanted, 1.5)
        order = sorted(range(5), key=lambda n: wanted[n])
        gaps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
        assert min(gaps) >= 1.5 - 1e-9
        # No other arrangement is nearer: of any run of labels that touch, the mean stays.
        cost = sum((w - p) ** 2 for w, p in zip(wanted, places, strict=True))
        for _ in range(200):
            moved = [places[n] + generator.gauss(0, 0.3) for n in order]
            if min(b - a for a, b in itertools.pairwise(moved)) >= 1.5:
                other = sum((wanted[n] - p) ** 2 for n, p in zip(order, moved, strict=True))
                assert cost <= other + 1e-9


def test_a_curve_is_smoothed_over_a_tenth_of_it() -> None:
    points = [Point(n, n, n, n, bpb=float(n % 3), low=0, high=0) for n in range(50)]
    found = smoothed(points)
    for n in (0, 1, 17, 49):
        weights = [0.8 ** (n - k) for k in range(n + 1)]
        mean = sum(w * points[k].bpb for k, w in enumerate(weights)) / sum(weights)
        assert found[n] == pytest.approx(mean, rel=1e-12)


def test_a_score_leads_to_the_settings_that_made_it(tmp_path: Path) -> None:
    entries = entries_of(tmp_path, ["a", "b"])
    text = page(Report("x", "nanozoo report x", entries, {}))
    for entry in entries:
        assert f'<a href="#run-{entry.label}">{entry.mean:.3f}' in text
        (inside,) = re.findall(rf'<details id="run-{entry.label}">(.*?)</details>', text)
        assert f"&lt;b&gt;{entry.label}&lt;/b&gt;" in inside
        assert entry.runs[0].command in inside
    assert '<td data-key="61000000.0">61 MB</td>' in text  # of decoding, whatever the length


CHECK = """<script>
const heights = [], narrow = [];
for (const svg of document.querySelectorAll("#curves .charts svg")) {
  const boxes = [...svg.querySelectorAll(".name, .baseline")].map(t => t.getBoundingClientRect());
  heights.push(boxes.length);
  const frame = svg.getBoundingClientRect();
  for (const a of boxes) {
    if (a.right > frame.right + 1 || a.bottom > frame.bottom + 1) narrow.push("cut off");
    for (const b of boxes) if (a !== b && a.left < b.right && b.left < a.right
      && a.top + 2 < b.bottom && b.top + 2 < a.bottom) narrow.push("overlap");
  }
}
const inColour = () => document.querySelectorAll("#curves .charts svg .line").length;
const before = inColour();
document.querySelectorAll(".legend button")[11].click();
const table = document.querySelector(".ranking");
table.tHead.rows[0].cells[2].firstChild.click();
table.tHead.rows[0].cells[2].firstChild.click();
const score = table.tBodies[0].rows[0].cells[2].getBoundingClientRect();
document.documentElement.innerHTML = `<body><pre>${JSON.stringify({
  labels: heights, faults: narrow, before, after: inColour(),
  last: table.tBodies[0].rows[0].cells[1].textContent, scoreEnds: score.right,
  columns: [...table.tHead.rows[0].cells].filter(c => !c.hidden).length,
  page: document.documentElement.scrollWidth})}</pre></body>`;
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1440])  # no window of Chromium is narrower than 500
def test_the_page_in_a_browser(tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium, as `chromium` or `google-chrome`")
    entries = entries_of(tmp_path, list("aabbccddeeff"))
    text = page(Report("x", "nanozoo report x", entries, {}))
    (tmp_path / "page.html").write_text(text.replace("</body>", CHECK), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         "--virtual-time-budget=3000", "--dump-dom", str(tmp_path / "page.html")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (shown,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    found = json.loads(shown)
    assert found["labels"] == [10, 10, 10]  # eight models and two compressors
    assert found["faults"] == []
    assert found["before"] == found["after"] == 8 * 3
    assert found["last"] == "model11"  # sorted twice: the worst first
    assert found["columns"] == (3 if width < 640 else 15)
    assert found["page"] <= width
    assert found["scoreEnds"] < width
    assert math.isfinite(found["scoreEnds"])
