"""How strong a package's tests are: each of its mutations must make one of them fail.

    python -m nanozoo_core.testing.mutants packages/hnet ... [--only NAME] [--check]

A package lists its mutations in mutations.toml: small changes of its source that break an equation.

    [[mutation]]
    name = "router: query and key exchanged"
    file = "src/nanozoo_hnet/routing.py"
    old = "query(x[:, 1:])"
    new = "key(x[:, 1:])"
    tests = ["tests/test_routing.py"]      # optional: what to run first, files or single tests

For each one the package's source is copied, changed and put before the installed one. The tests run
until the first failure: those named, and if they pass, all of them. A mutation that all tests pass
has survived. `--check` runs no test: it only asks whether each `old` stands exactly once in its
file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanozoo_core.machine.terminal import say

NO_TESTS = 5  # pytest's status when nothing was collected
MISUSED = 4  # and when a named test does not exist
LIMIT_SECONDS = 1200  # a mutation that hangs is found too


@dataclass(frozen=True)
class Mutation:
    """One change of one place in a package's source, and where its tests are likely to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    def apply(self, folder: Path) -> None:
        """Changes the file below `folder`.

        Raises: ValueError when the old text does not stand there exactly once, or is the new one.
        """
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"{self.name}: its old text must stand once in {self.file} and differ from the new "
                f"one, and it stands there {text.count(self.old)} times: {self.old!r}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def read_mutations(package: Path) -> list[Mutation]:
    """The mutations of a package's mutations.toml.

    Raises: ValueError when two share a name.
    """
    listed = tomllib.loads((package / "mutations.toml").read_text(encoding="utf-8"))["mutation"]
    found = [Mutation(**entry | {"tests": tuple(entry.get("tests", ()))}) for entry in listed]
    names = [mutation.name for mutation in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{package / 'mutations.toml'}: named twice: {', '.join(twice)}")
    return found


def mutated_source(package: Path, mutation: Mutation, folder: Path) -> Path:
    """A copy of the package's `src` in `folder` with the mutation, to put on the import path."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package / "src", folder / "src", ignore=ignore, dirs_exist_ok=True)
    mutation.apply(folder)
    return folder / "src"


def is_killed(package: Path, mutation: Mutation) -> bool:
    """Whether a test of the package fails under the mutation."""
    with tempfile.TemporaryDirectory() as folder:
        source = mutated_source(package, mutation, Path(folder))
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(source), *([inherited] if inherited else [])])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        named = [str(package / test) for test in mutation.tests]
        every = [str(package / "tests")]
        return any(fails(tests, environment) for tests in (named, every) if tests)


def fails(tests: Sequence[str], environment: dict[str, str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode == MISUSED:
        raise ValueError(done.stderr.decode().strip() or f"pytest cannot run {' '.join(tests)}")
    return done.returncode not in (0, NO_TESTS)


def survivors(package: Path, mutations: Iterable[Mutation]) -> list[str]:
    """Tries each mutation and says how it went; the names of those that no test noticed."""
    found = []
    for mutation in mutations:
        started = time.monotonic()
        killed = is_killed(package, mutation)
        seconds = time.monotonic() - started
        verdict = "killed  " if killed else "SURVIVED"
        say(f"{verdict} {seconds:5.0f} s  {mutation.name}")
        if not killed:
            found.append(mutation.name)
    return found


def check(package: Path, mutations: Iterable[Mutation]) -> None:
    """Raises: ValueError that names all that no longer fit the source."""
    problems = []
    for mutation in mutations:
        files = [test.partition("::")[0] for test in mutation.tests]
        missing = [file for file in files if not (package / file).exists()]
        if missing:
            problems.append(f"{mutation.name}: {missing[0]} is not there")
        try:
            with tempfile.TemporaryDirectory() as folder:
                mutated_source(package, mutation, Path(folder))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a mutation survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", type=Path, help="folders with a mutations.toml")
    parser.add_argument("--only", default="", help="only mutations with this in their name")
    parser.add_argument("--check", action="store_true", help="only see that each still fits")
    given = parser.parse_args(arguments)
    lists = {
        package.resolve(): [m for m in read_mutations(package) if given.only in m.name]
        for package in given.packages
    }
    for package, mutations in lists.items():
        check(package, mutations)
    if given.check:
        return 0
    survived = False
    for package, mutations in lists.items():
        found = survivors(package, mutations)
        survived = survived or bool(found)
        noticed = len(mutations) - len(found)
        say(f"{package.name}: {noticed} of {len(mutations)} mutations were noticed")
    return int(survived)


if __name__ == "__main__":
    sys.exit(main())
