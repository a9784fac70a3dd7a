"""`nanozoo tune`, from its arguments to its recipes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nanozoo_core.comparing.compare.plan import first_difference
from nanozoo_core.comparing.tune.audit import audit
from nanozoo_core.comparing.tune.candidates import Candidate, make_candidates
from nanozoo_core.comparing.tune.confirm import Choice, confirm
from nanozoo_core.comparing.tune.page import page
from nanozoo_core.comparing.tune.plots import write_plots
from nanozoo_core.comparing.tune.recipe import write_recipe
from nanozoo_core.comparing.tune.report import SearchReport, markdown
from nanozoo_core.comparing.tune.request import TuneRequest, parse
from nanozoo_core.comparing.tune.search import search
from nanozoo_core.comparing.tune.study import (
    Study,
    Told,
    import_optuna,
    open_storage,
    without_password,
)
from nanozoo_core.comparing.tune.trials import Trainer, Trainings
from nanozoo_core.errors import CheckpointError
from nanozoo_core.files import claim_output, null_if_not_finite, read_json, write_json, write_text
from nanozoo_core.machine.terminal import say

SEARCH, TRIALS = "search.json", "trials.json"
FILES = ("report.md", "report.html", SEARCH, TRIALS)


@dataclass(frozen=True)
class Tuning:
    """What a search came to."""

    folder: Path
    report: SearchReport

    @property
    def choices(self) -> Sequence[Choice]:
        return self.report.choices

    @property
    def recipes(self) -> dict[str, Path]:
        """The recipe file of each model, by label."""
        return self.report.recipes

    @property
    def failures(self) -> dict[str, str]:
        return self.report.failures

    def __str__(self) -> str:
        """The tables of the report, and where it is."""
        text = markdown(self.report).split("## How it was made")[0]
        shown = [line for line in text.splitlines() if not line.startswith(("![", "# "))]
        return "\n".join(shown).strip() + f"\n\nthe report: {self.folder / 'report.html'}"


def tune(words: Sequence[str], *, force: bool = False) -> Tuning:
    """Searches the settings of several models with the same effort for each, and writes a recipe of
    each and a report. The same words again go on where it stopped.

    Raises: ConfigError, CheckpointError before anything runs; TrialError; Interrupted.
    """
    request = parse(words)
    import_optuna()
    folder = request.base.folder
    claim_output(folder, "nanozoo tune", FILES, setting="folder", force=force)
    candidates = make_candidates(request)
    for candidate in candidates:
        if candidate.note:
            say(f"{candidate.label}: no run ends early, since {candidate.note}")
    with _alone(folder):
        name = _same_search(request, candidates)
        storage = open_storage(request.storage or f"sqlite:///{(folder / 'study.db').resolve()}")
        studies = [
            Study(
                f"{candidate.label}-{name}",
                candidate.space,
                storage,
                trials=request.trials,
                seed=request.seed,
                checks=candidate.checks,
            )
            for candidate in candidates
        ]
        return _go_on(request, candidates, studies)


def _go_on(
    request: TuneRequest, candidates: Sequence[Candidate], studies: Sequence[Study]
) -> Tuning:
    labels = {study.name: c.label for study, c in zip(studies, candidates, strict=True)}
    by_study = {study.name: c for study, c in zip(studies, candidates, strict=True)}
    per_model = request.trials + 3 * len(request.fresh_seeds) + 2 * request.num_seeds
    trainings = Trainings(
        request.base.folder,
        jobs=request.base.jobs,
        command=_command(request),
        total=per_model * len(studies),
        before=sum(len(study.told()) for study in studies),
    )
    if trainings.before:
        say(f"{trainings.before} of {request.trials * len(studies)} trials are there already")
    search(studies, Trainer(by_study, trainings, request.seed), batch=request.batch)
    told = {labels[study.name]: study.told() for study in studies}
    write_json(request.base.folder / TRIALS, _rows(studies, labels, request))
    audits = {
        candidate.label: found
        for candidate in candidates
        if (found := audit(candidate, told[candidate.label], trainings, seed=request.seed))
    }
    choices, failures = confirm(
        candidates,
        told,
        trainings,
        fresh_seeds=request.fresh_seeds,
        test_seeds=request.test_seeds,
    )
    recipes = {
        choice.candidate.label: write_recipe(
            request.recipes,
            request.budget_name,
            choice,
            command=_command(request),
            seed=request.seed,
        )
        for choice in choices
    }
    report = SearchReport(
        title=f"Search of {', '.join(c.label for c in candidates)}, {request.trials} trials each",
        command=_command(request),
        candidates=candidates,
        told=told,
        choices=choices,
        failures=failures,
        recipes=recipes,
        importances={labels[study.name]: study.importances() for study in studies},
        audits=audits,
        threads=_threads(request.base.jobs),
    )
    _write(request.base.folder, report, studies[0].num_random)
    return Tuning(request.base.folder, report)


def _threads(jobs: int) -> int:
    """Of each training."""
    cores = os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if jobs == 1 and given.isdecimal() else max(1, cores // jobs)


def _write(folder: Path, report: SearchReport, num_random: int) -> None:
    for choice in report.choices:
        label = choice.candidate.label
        write_plots(
            folder,
            choice.candidate,
            choice.told,
            chosen=choice.number,
            importances=report.importances[label],
            num_random=num_random,
        )
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "report.html", page(report, folder))


def _command(request: TuneRequest) -> str:
    """The command without a password."""
    return without_password(request.base.command)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises: CheckpointError where another process searches in the folder: its trials are its
    own, and jobs= starts several trainings."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "tune.lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise CheckpointError(
            f"another nanozoo tune works in {folder}; use its jobs= for more trainings at once, or "
            "another folder="
        ) from error


def _same_search(request: TuneRequest, candidates: Sequence[Candidate]) -> str:
    """Notes what is searched, in the folder, and returns a short name for it.

    Raises: CheckpointError where the folder holds another search.
    """
    now: dict[str, Any] = json.loads(
        json.dumps(
            {
                "trials": request.trials,
                "batch": request.batch,
                "seed": request.seed,
                "models": {c.label: c.identity() for c in candidates},
            }
        )
    )
    path = request.base.folder / SEARCH
    if path.is_file():
        then = read_json(path, dict, remedy="choose another folder=")
        different = first_difference(then, now)
        if different is not None:
            key, old, new = different
            raise CheckpointError(
                f"{request.base.folder} holds a search with {key}={old}, and now {key}={new} is "
                "asked for; choose another folder= or remove it"
            )
    else:
        write_json(path, now)
    return hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:8]


def _rows(
    studies: Sequence[Study], labels: dict[str, str], request: TuneRequest
) -> dict[str, list[dict[str, Any]]]:
    """Every trial, for other programs."""
    found = {}
    for study in studies:
        found[labels[study.name]] = [
            {
                "number": one.number,
                "batch": one.number // request.batch,
                "sampler_seed": study.sampler_seed(one.number),
                "point": _values(study, one),
                **null_if_not_finite(asdict(one.outcome)),
            }
            for one in study.told()
        ]
    return found


def _values(study: Study, one: Told) -> dict[str, Any]:
    return {d.name: d.value(one.point[d.name]) for d in study.space.dimensions}
