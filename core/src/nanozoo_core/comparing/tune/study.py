"""One search with Optuna: trials are asked for one after the other, and told together.

What TPE proposes depends on the trials that it knows of. A batch is therefore asked for as a whole,
told as a whole in the order of its numbers, and each trial has a sampler of its own whose seed is a
function of the search's seed and the trial's number: in which order trainings end, and whether the
process was killed in between, is without effect. A trial that a dead process has left behind is
taken up under its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nanozoo_core.comparing.tune import points
from nanozoo_core.comparing.tune.pruning import Reports, bars
from nanozoo_core.comparing.tune.space import Dimension, Space
from nanozoo_core.errors import ConfigError

NOTHING_LEARNED = 8.0  # bits per byte of a model that says nothing: what a diverged trial scores
TIMEOUT_SECONDS = 60  # for which SQLite waits for its file
MOST_RANDOM = 12  # of the first trials
State = Literal["complete", "pruned", "diverged", "refused"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, and what it used. A refused one has settings that the model does not take,
    and used nothing."""

    state: State
    score: float | None
    """Bits per byte of the tuning text; of a pruned trial, those of its last report."""
    reports: dict[int, float] = field(default_factory=dict)
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Trial:
    """A trial that is to be trained."""

    number: int
    point: dict[str, float]
    bars: dict[int, float]
    """The worst score with which it goes on, by the number of the report."""


@dataclass(frozen=True)
class Told:
    """A trial that has ended."""

    number: int
    point: dict[str, float]
    outcome: Outcome

    @property
    def score(self) -> float:
        """For ranking: what did not end scores behind all that did."""
        outcome = self.outcome
        if outcome.state == "complete" and outcome.score is not None:
            return outcome.score
        return math.inf


def import_optuna() -> Any:
    """Raises: ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "nanozoo tune needs the package optuna; install nanozoo-core[tune]"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_storage(url: str) -> Any:
    """A database that Optuna can use. Raises: ConfigError where it cannot be opened."""
    optuna = import_optuna()
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": TIMEOUT_SECONDS}}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # of SQLAlchemy, its drivers or Optuna
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"storage={without_password(url)} cannot be opened: {without_password(reason)}; give "
            f"a URL of SQLAlchemy, such as sqlite:///study.db"
        ) from error


def without_password(text: str) -> str:
    """A URL as reports may show it."""
    import re

    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:...@", text)


class Study:
    """The search of one model, in a storage from which it goes on."""

    def __init__(
        self,
        name: str,
        space: Space,
        storage: Any,
        *,
        trials: int,
        seed: int,
        checks: range = range(0),
    ) -> None:
        """Args: storage: of Optuna. checks: the reports after which a trial may end early."""
        self.name, self.space = name, space
        self.trials, self.seed, self.checks = trials, seed, checks
        self.num_random = min(MOST_RANDOM, max(1, trials // 2))
        """The first trials, the committed recipe among them, which are never pruned."""
        optuna = import_optuna()
        self._optuna = optuna
        self._study = optuna.create_study(
            study_name=name, storage=storage, load_if_exists=True, pruner=optuna.pruners.NopPruner()
        )

    # -- what is there ----------------------------------------------------------------------------

    def told(self) -> list[Told]:
        """The trials that have ended, by number."""
        ended = [t for t in self._trials() if t.state.is_finished()]
        return [Told(t.number, self._point(t), _outcome(t)) for t in ended]

    def _trials(self) -> list[Any]:
        return sorted(self._study.get_trials(deepcopy=False), key=lambda trial: trial.number)

    def _point(self, trial: Any) -> dict[str, float]:
        return {d.name: float(trial.params[d.name]) for d in self.space.dimensions}

    def sampler_seed(self, number: int) -> int:
        """Of the sampler that proposes a trial."""
        return points.sampler_seed(self.seed, number)

    # -- asking and telling -----------------------------------------------------------------------

    def ask(self, at_once: int) -> list[Trial]:
        """The next batch of at most `at_once` trials, or one that was asked for and never told;
        empty when the search is done."""
        known = self._trials()
        open_numbers = [t.number for t in known if not t.state.is_finished()]
        asked = sum(t.state != self._optuna.trial.TrialState.WAITING for t in known)
        first = min([*open_numbers, len(known)])
        first -= first % at_once
        numbers = range(first, min(first + at_once, self.trials))
        ended = {t.number for t in known if t.state.is_finished()}
        running = [n for n in numbers if n not in ended]
        earlier = [one for one in self.told() if one.number < first]
        limits = self._bars(earlier, at_once)
        found = []
        for number in running:
            trial = self._take_up(known[number]) if number < asked else self._new(number)
            point = {d.name: float(self._suggest(trial, d)) for d in self.space.dimensions}
            may_end = number >= self.num_random
            found.append(Trial(number, point, limits if may_end else {}))
        return found

    def tell(self, outcomes: dict[int, Outcome]) -> None:
        """Ends a batch. Args: outcomes: of all its trials, by number."""
        state = self._optuna.trial.TrialState
        for number in sorted(outcomes):
            outcome = outcomes[number]
            trial = self._take_up(self._trials()[number])
            for report, score in sorted(outcome.reports.items()):
                trial.report(score, report)
            trial.set_user_attr("outcome", _stored(outcome))
            if outcome.state == "refused":
                self._study.tell(number, state=state.FAIL)
            elif outcome.state == "pruned":
                self._study.tell(number, state=state.PRUNED)
            else:
                self._study.tell(number, outcome.score)

    def _bars(self, earlier: Sequence[Told], at_once: int) -> dict[int, float]:
        reports = [
            Reports(one.outcome.reports, one.outcome.state == "pruned")
            for one in earlier
            if one.outcome.state in ("complete", "pruned")
        ]
        return bars(reports, self.checks, trials=self.trials, at_once=at_once)

    def _new(self, number: int) -> Any:
        """Trial 0 is the committed recipe, the next are random points, the others are proposed."""
        is_waiting = any(
            t.state == self._optuna.trial.TrialState.WAITING for t in self._trials()
        )  # a process died between the two lines that follow
        if number < self.num_random and not is_waiting:
            names = [d.name for d in self.space.dimensions]
            place = self.space.at(points.shares(names, seed=self.seed, number=number))
            start = self.space.default if number == 0 else place
            self._study.enqueue_trial({d.name: self._exact(d, start[d.name])
                                       for d in self.space.dimensions})  # fmt: skip
        self._set_sampler(number)
        return self._study.ask()

    def _take_up(self, trial: Any) -> Any:
        """A running trial, of this process or of one that is gone."""
        self._set_sampler(trial.number)
        return self._optuna.trial.Trial(self._study, trial._trial_id)

    def _set_sampler(self, number: int) -> None:
        self._study.sampler = self._optuna.samplers.TPESampler(
            n_startup_trials=self.num_random, seed=self.sampler_seed(number)
        )

    def _suggest(self, trial: Any, dimension: Dimension) -> float:
        d = dimension
        if d.whole:
            return float(trial.suggest_int(d.name, int(d.low), int(d.high), log=d.log))
        return float(trial.suggest_float(d.name, d.low, d.high, log=d.log))

    @staticmethod
    def _exact(dimension: Dimension, place: float) -> float:
        return round(place) if dimension.whole else place

    # -- what Optuna makes of it ------------------------------------------------------------------

    def importances(self) -> dict[str, float]:
        """How much of the spread of good scores each dimension explains, from the most; empty where
        too few trials ended, or Optuna cannot tell.

        Source: PED-ANOVA, arXiv 2304.10255.
        """
        complete = [one for one in self.told() if one.outcome.state == "complete"]
        if len(complete) < 8 or len(self.space.dimensions) < 2:
            return {}
        evaluator = self._optuna.importance.PedAnovaImportanceEvaluator()
        found = self._optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {str(name): float(value) for name, value in found.items()}


def _stored(outcome: Outcome) -> dict[str, Any]:
    return {
        "state": outcome.state,
        "score": outcome.score,
        "reports": {str(number): score for number, score in outcome.reports.items()},
        "tokens": outcome.tokens,
        "flops": outcome.flops,
        "seconds": outcome.seconds,
        "why": outcome.why,
    }


def _outcome(trial: Any) -> Outcome:
    stored = dict(trial.user_attrs["outcome"])
    reports = {int(number): score for number, score in stored.pop("reports").items()}
    return Outcome(**stored, reports=reports)
