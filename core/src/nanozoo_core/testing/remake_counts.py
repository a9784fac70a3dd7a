"""Remakes `step_counts.json` beside the contract tests of some folders, on purpose.

python -m nanozoo_core.testing.remake_counts packages/gpt2/tests ...
"""

from __future__ import annotations

import argparse
import sys

import pytest

from nanozoo_core.files import write_json
from nanozoo_core.testing.step_counts import COMMAND, FILE, REMADE


class Remaking:
    """A plugin of pytest, under which the tests fill their tables."""

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[REMADE] = {}

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK:
            for path, table in session.config.stash[REMADE].items():
                write_json(path, table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=f"Remakes {FILE} beside the contract tests of some folders."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="such as packages/gpt2/tests")
    # The tests that count have this in their names, and some are slow; one process has one plugin.
    options = ["-q", "-k", "of_the_table", "-m", "", "-p", "no:xdist"]
    sys.exit(pytest.main([*options, *parser.parse_args().folders], plugins=[Remaking()]))


if __name__ == "__main__":
    main()
