"""Members through a Hydra launcher (joblib, submitit), as a program:
`python -m nanozoo_core.comparing.compare.launch`.

Hydra sweeps over the numbers of the members; each job trains its member in a process of its own,
so that a failure is that member's alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from nanozoo_core.comparing.compare.execute import failure_sentence, is_done, start_member
from nanozoo_core.comparing.compare.plan import Member, read_member
from nanozoo_core.errors import ConfigError


@hydra.main(version_base=None, config_path=None)
def job(config: DictConfig) -> None:
    """One job of the sweep."""
    plan, number = Path(config.plan), int(config.member)
    start_member(plan, number, read_member(plan, number)).wait()


def launch_members(plan: Path, members: list[Member], launcher: Sequence[str]) -> dict[str, str]:
    """Trains what is not done yet through the launcher that the overrides `hydra/launcher=NAME`,
    `hydra.launcher.*` describe, and waits for it.

    Returns: one sentence for every member that failed, by name.
    Raises: ConfigError when Hydra refuses the launcher.
    """
    numbers = [n for n, member in enumerate(members) if not is_done(member)]
    if numbers:
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "nanozoo_core.comparing.compare.launch", "--multirun"),
                f"+plan='{plan.resolve()}'",
                f"+member={','.join(map(str, numbers))}",
                *(f"hydra.sweep.dir='{plan.parent / 'launcher'}'", "hydra.output_subdir=null"),
                *launcher,
            ],
            check=False,
        )
        if finished.returncode != 0:
            raise ConfigError(
                f"Hydra could not launch the runs with {' '.join(launcher)}; its message stands "
                f"above. A launcher is a plugin: pip install hydra-submitit-launcher, for example"
            )
    return {m.name: failure_sentence(m, 1) for m in members if not is_done(m)}


if __name__ == "__main__":
    job()
