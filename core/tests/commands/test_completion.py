"""Tab completion: the words that it offers, and that each shell shows them."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanozoo_core.commands import cli, completion

PATIENCE_SECONDS = 120  # before a shell that answers nothing fails a test
CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])|\r|\x0f")
OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""  # a shell that has its terminal is one that somebody sits at
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(nanozoo completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'eval "$(nanozoo completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "nanozoo completion fish | source"),
}


def words(command: str, prefix: str, **arguments: object) -> list[str]:
    namespace = argparse.Namespace(**arguments)
    found = completion.setting_words(command, prefix, namespace)
    return [word for word in found if word.startswith(prefix)]


def test_settings_are_those_of_the_model_and_the_command(tmp_path: Path) -> None:
    assert words("train", "train.max_st", model=None) == ["train.max_steps="]
    assert words("train", "model_cfg.num_l", model="toy") == ["model_cfg.num_layers="]
    assert words("train", "model_cfg.", model=None) == []
    assert words("show", "model_cfg.num_l", target="toy") == ["model_cfg.num_layers="]
    assert words("prepare", "", corpus="stdlib")[0].startswith("data.")
    assert words("compare", "bud") == ["budget="]
    assert words("evaluate", "eval.by", run=tmp_path) == ["eval.bytes="]
    (tmp_path / "config.yaml").write_text("model: toy\n")
    assert words("generate", "model_cfg.mod", run=tmp_path) == ["model_cfg.model_dim="]


def test_values_are_those_that_are_known() -> None:
    assert words("train", "optim.name=", model=None) == ["optim.name=muon", "optim.name=adamw"]
    assert words("train", "log.wandb=", model=None) == ["log.wandb=true", "log.wandb=false"]
    assert words("train", "train.max_steps=", model=None) == []
    assert "model=toy" in words("train", "model=t", model=None)
    assert "models=a,toy" in words("compare", "models=a,t")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "expected"),
    [("nanozoo inspe", "nanozoo inspect "), ("train train.max_ste", "train train.max_steps=")],
    ids=["command", "setting"],
)
def test_a_shell_completes(shell: str, typed: str, expected: str, tmp_path: Path) -> None:
    """Typed on a terminal: what is behind the tab comes from the shell."""
    command, install = SHELLS[shell]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{shell} is not installed")
    for name, target in (("nanozoo", "cli"), ("train", "train")):
        program = tmp_path / name
        program.write_text(
            f"#!{sys.executable}\nfrom nanozoo_core.commands.{target} import main\nmain()\n"
        )
        program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "TERM": "xterm", "HOME": str(tmp_path), "PS1": "> "}
    # READY stands in the line as two words, so that its echo is not taken for the answer.
    shown = on_a_terminal(
        command, environment, [f"{install}\necho REA''DY\n", "READY", f"{typed}\t", expected]
    )
    assert expected in shown, repr(shown)


def on_a_terminal(command: list[str], environment: dict[str, str], talk: list[str]) -> str:
    """Types the texts at even places, and waits after each for the next one to appear; returns what
    was shown behind the last that was typed."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
        cwd=environment["HOME"],
    )
    os.close(terminal)
    shown = ""
    try:
        for typed, awaited in zip(talk[::2], talk[1::2], strict=True):
            shown = ""
            os.write(controller, typed.encode())
            deadline = time.monotonic() + PATIENCE_SECONDS
            while awaited not in shown and time.monotonic() < deadline:
                if select.select([controller], [], [], 1)[0]:
                    shown += os.read(controller, 4096).decode(errors="replace")
                    shown = CONTROL.sub("", shown)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    return shown


def test_the_command_names_its_shells() -> None:
    parser = cli.build_parser()
    assert parser.parse_args(["completion", "zsh"]).shell == "zsh"
