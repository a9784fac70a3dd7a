"""`nanozoo bench --peers`, from its arguments to its table: one script after another."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.peers.races import (
    FOLDER_OF_CLONES,
    clones_folder,
    read_races,
    scripts_folder,
)
from nanozoo_core.comparing.peers.report import describe, rows_of
from nanozoo_core.comparing.peers.request import COMMAND, FILE, parse
from nanozoo_core.errors import NanozooError
from nanozoo_core.files import claim_output, write_json
from nanozoo_core.machine.terminal import say
from nanozoo_core.training import records


def race_peers(words: Sequence[str], *, force: bool = False) -> None:
    """Runs the races that can run, and reports on them.

    Raises: ConfigError before anything runs; NanozooError at the end when a race failed, the others
        being reported all the same, and when the user stops it.
    """
    scripts = scripts_folder()
    request = parse(words, read_races(scripts))
    claim_output(request.folder, f"nanozoo {COMMAND}", [FILE], setting="folder", force=force)
    record: dict[str, Any] = {
        "command": shlex.join(["nanozoo", *COMMAND.split(), *request.words]),
        "date": time.strftime("%Y-%m-%d"),
        "git_commit": records.git_commit(),
        "threads": 1,
        "races": [],
        "not_run": [],
    }
    say("measuring what one thread of this processor can do")
    measured = run_script(scripts / "limits.py", [])
    record |= {"machine": measured["machine"], "limits": measured["results"]}
    failures = []
    for race in request.races:
        label = f"{race.model} beside {race.peer}"
        why = race.missing()
        if why is None:
            say(label)
            options = [*race.options, *request.arguments]
            try:
                found = run_script(scripts / race.script, options)["results"]
                record["races"] += rows_of(race, found, record["limits"])
            except RaceError as error:
                why = str(error)
                failures.append(f"{label}: {why}")
        if why is not None:
            record["not_run"].append({"model": race.model, "peer": race.peer, "why": why})
        write_json(request.folder / FILE, record)  # so that a race that is stopped ends none before
    say(f"\n{describe(record)}\n\nwritten to {request.folder / FILE}")
    if failures:
        raise NanozooError("\n".join(failures))


class RaceError(NanozooError):
    """A race cannot be run to its end, and why."""


def run_script(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What a script writes with --json, run in a process of its own on one thread.

    Raises: RaceError with the last line that it has to say; NanozooError when the user stops it.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", FOLDER_OF_CLONES: str(clones_folder())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        command = [sys.executable, str(script), *arguments, "--json", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        except KeyboardInterrupt:
            raise NanozooError("stopped before the end; what is done is written") from None
        if done.returncode == 0:
            return json.loads(path.read_text(encoding="utf-8"))
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    module = re.search(r"No module named '([^']+)'", lines[-1])
    if module is not None:
        raise RaceError(f"it needs {module[1]}: uv run --with {module[1]} nanozoo {COMMAND}")
    raise RaceError(lines[-1])
