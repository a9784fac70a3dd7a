"""Runs every command of the `bash` blocks of a page, in order, each page in a fresh clone.

    python docs/run_commands.py [PAGE ...] [--skip TEXT]

Without pages it takes README.md and those of docs/pages. Commands that need what not every machine
has stand in blocks marked `sh`, which are not run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = ("pip install uv", "uv run nox", "git clone", "cd nanozoo")


def commands(page: str) -> list[str]:
    """The lines of the `bash` blocks, comments cut off."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run_page(page: str, skip: tuple[str, ...]) -> bool:
    """Whether every command of a page succeeds."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "nanozoo"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for command in commands((clone / page).read_text()):
            setup, _, rest = command.partition("&& ")
            command = rest if setup.strip() == "pip install uv" else command
            if any(text in command for text in skip):
                print(f"skipped: {command}", flush=True)
                continue
            print(f"$ {command}", flush=True)
            started = time.monotonic()
            done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment)
            print(f"  {time.monotonic() - started:.0f} s, status {done.returncode}", flush=True)
            if done.returncode:
                return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    pages = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/pages/*.md"))
    parser.add_argument("pages", nargs="*", default=["README.md", *pages])
    parser.add_argument("--skip", action="append", default=[], help="leave out commands with this")
    arguments = parser.parse_args()
    skip = (*SKIPPED, *arguments.skip)
    failed = [page for page in arguments.pages if not run_page(page, skip)]
    for page in failed:
        print(f"failed: {page}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
