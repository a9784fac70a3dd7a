"""What `import nanozoo_core` offers, and that it costs nothing before it is used."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import pytest

import nanozoo_core
from nanozoo_core.commands import cli, train
from nanozoo_core.python import training


def test_no_public_name_loads_torch_or_hydra_before_it_is_called() -> None:
    """But those of the results, whose modules have torch."""
    probe = (
        "import sys, nanozoo_core\n"
        "nanozoo_core.load_run, nanozoo_core.train, nanozoo_core.compare, nanozoo_core.Run\n"
        "nanozoo_core.models(), nanozoo_core.ConfigError\n"
        "assert not {'torch', 'hydra', 'matplotlib', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


@pytest.mark.parametrize("name", nanozoo_core.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(nanozoo_core, name)
    assert name in dir(nanozoo_core)
    assert name == "__version__" or found.__doc__


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nanozoo_core", "models", "--json"], capture_output=True, check=True
    )
    assert {"name": "toy", "summary": nanozoo_core.models()["toy"]} in json.loads(done.stdout)


@pytest.mark.parametrize("main", [cli.main, train.main], ids=["nanozoo", "train"])
def test_the_version_is_told(
    main: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--version"])
    with contextlib.suppress(SystemExit):
        main()
    assert capsys.readouterr().out == f"nanozoo-core {metadata.version('nanozoo-core')}\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        nanozoo_core.load_runs  # noqa: B018


def test_the_module_of_the_command_does_not_hide_the_function() -> None:
    importlib.import_module("nanozoo_core.train")
    assert nanozoo_core.train is training.train
