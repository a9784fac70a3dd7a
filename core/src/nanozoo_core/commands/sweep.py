"""How a sweep goes on that was interrupted: each of its runs is known by its settings."""

from __future__ import annotations

from typing import Any

from nanozoo_core.config import ResolvedConfig, resolve
from nanozoo_core.training.claim import RUNS
from nanozoo_core.training.precision_settings import undecided
from nanozoo_core.training.resume import config_to_store
from nanozoo_core.training.run_folder import RunFolder


def earlier_run(settings: dict[str, Any]) -> RunFolder | None:
    """The run under runs/ with all of these composed settings: a finished one, or else the newest
    with a checkpoint; None where there is neither.

    Raises: ConfigError for settings that are wrong.
    """
    asked = resolve(settings | {"resume": None})
    folders = [RunFolder(path) for path in (RUNS / asked.training.model).glob("*")]
    runs = [f for f in folders if f.is_run and (f.is_finished or f.has_checkpoint)]
    same = [run for run in runs if _has_settings(run, asked)]
    return max(same, key=lambda run: (run.is_finished, run.path.stat().st_mtime), default=None)


def _has_settings(run: RunFolder, asked: ResolvedConfig) -> bool:
    stored = run.read_config()
    vocab_size = stored["model_cfg"].get("vocab_size") or asked.vocab_size
    model_cfg = asked.with_vocabulary(vocab_size).model_cfg
    wanted = config_to_store(asked.training, model_cfg)
    if asked.training.init_digest is None:  # noted by the run
        del wanted["init_digest"]
    stored = undecided(stored, wanted)
    return all(stored.get(key) == value for key, value in wanted.items())
