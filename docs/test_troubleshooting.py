"""Each message of the troubleshooting page is what its command prints."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from nanozoo_core.commands import cli, train

PAGE = Path(__file__).parent / "pages/troubleshooting.md"
ENTRIES = re.findall(r"```console\n\$ (.*)\n(.*)\n```", PAGE.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of somebody's, one with a run that has only begun, and no connection."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    Path("here").mkdir()
    Path("here/notes.txt").write_text("mine")
    Path("there").mkdir()
    Path("there/config.yaml").write_text("model: gpt2\nmodel_cfg: {}\ntrain: {max_steps: 1}\n")


@pytest.mark.parametrize(("command", "message"), ENTRIES, ids=[command for command, _ in ENTRIES])
def test_a_message_is_what_its_command_prints(
    command: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "device=cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if "wandb=true" in command and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    program, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as stopped:
        train.main() if program == "train" else cli.main(words)
    assert stopped.value.code == 1
    printed = capsys.readouterr().err.strip()
    pattern = ".+".join(map(re.escape, message.split("...")))
    assert re.fullmatch(pattern, printed), printed


def test_the_page_has_what_a_newcomer_meets() -> None:
    assert len(ENTRIES) >= 12
    assert len(ENTRIES) == PAGE.read_text(encoding="utf-8").count("```console")
